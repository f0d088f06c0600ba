"""Reads variables of a running function without leaving a trace in it.

Before 3.13 a frame's ``f_locals`` is a copy that stays with the frame and keeps what was in it alive until the function
returns, so it is emptied afterwards; unless the program has it, too: ``locals()`` is that same dictionary.  What is no function
(a module, a class body, ``exec`` with a mapping of the program's) is not looked into: the names there may be anybody's code.
"""

from __future__ import annotations

import sys
from types import GetSetDescriptorType, MemberDescriptorType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import FrameType

_FUNCTION: Final = 0x1  # CO_OPTIMIZED
_COPIES: Final = sys.version_info < (3, 13)  # of locals; later the mapping is the frame's own
_dict_of_class: Final = type.__dict__["__dict__"].__get__
_mro_of_class: Final = type.__dict__["__mro__"].__get__
_OUR_REFERENCES: Final = 3  # to a copy that nobody else has: the frame's, the variable's, the argument's


def values_of(frame: FrameType, names: Iterable[str]) -> dict[str, Any]:
    """Return the values of those of these variables that a running function has."""
    if not frame.f_code.co_flags & _FUNCTION:
        return {}
    found = frame.f_locals
    try:
        return {name: found[name] for name in names if name in found}
    finally:
        if _COPIES and sys.getrefcount(found) <= _OUR_REFERENCES:
            found.clear()


def value_of(frame: FrameType, expression: Sequence[str]) -> Any:
    """Return what a dotted name means in a running function now, None if nothing, or if code of the program would tell."""
    name = expression[0]
    found = values_of(frame, (name,))
    return attribute_of(found[name] if name in found else frame.f_globals.get(name), expression[1:])


def attribute_of(value: Any, names: Iterable[str]) -> Any:
    """Return an attribute of an attribute ... as it lies in objects and classes: no property and no ``__getattr__`` is asked."""
    for name in names:
        value = _attribute(value, name)
    return value


def class_attribute(cls: type, name: str) -> Any:
    """Return what a class or one of its bases has under a name, not bound; None if nothing."""
    return next((_dict_of_class(base)[name] for base in _mro_of_class(cls) if name in _dict_of_class(base)), None)


def _attribute(value: Any, name: str) -> Any:
    if isinstance(value, type):
        return class_attribute(value, name)
    found = class_attribute(type(value), name)
    if type(found) is MemberDescriptorType:  # a slot
        try:
            return found.__get__(value)
        except AttributeError:  # an empty one
            return None
    if hasattr(type(found), "__set__"):  # a property and its like come before what the object has itself
        return None
    if type(class_attribute(type(value), "__dict__")) in {GetSetDescriptorType, MemberDescriptorType}:
        return object.__getattribute__(value, "__dict__").get(name, found)
    return found
