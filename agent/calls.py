"""What the functions of a stack would call if they went on: a look at names, for words in a report and for doubts.

A function that waits for a lock and has ``jobs.get()`` further down is likely who would have made room in the queue.  The
call may stand in a function that it calls, so those that its names lead to are looked at, too, ``_DEPTH`` calls deep.

Cost       the functions that a stack's names lead to, once a finding; nothing is called, no attribute of an instance is read.
"""

from __future__ import annotations

from types import CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from concagent import core, discipline, state
from concagent.framevalues import attribute_of, value_of, values_of
from concagent.words import SIGNALLING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import FrameType

_DEPTH: Final = 2
_LIMIT: Final = 200  # functions looked at for one stack


def signalling_calls(frame: FrameType | None) -> tuple[str, ...]:
    """Return which names of `words.SIGNALLING` a live stack's functions use, or those they lead to, sorted.

    Functions of the standard library and ours are left out: each queue's ``get`` has a ``notify`` in it.
    """
    return tuple(sorted(SIGNALLING.intersection(name for code in _led_to(frame) for name in code.co_names)))


def may_hand_over(frame: FrameType | None) -> bool:
    """Return whether a live stack's functions, or those they lead to, release what they have not taken themselves."""
    return any(discipline.releases_for_others(code) for code in _led_to(frame))


def later_call(frame: FrameType | None, target: object, names: frozenset[str]) -> tuple[CodeType, int] | None:
    """Return (code, offset) where a function of a stack would go on to call one of these methods of just this object.

    None if none would.  Only calls further down in the functions that are running count, on variables and attributes that
    mean the object now.
    """
    for _ in range(_LIMIT):
        if frame is None:
            break
        code = frame.f_code
        if _is_of_program(code) and not names.isdisjoint(code.co_names):
            for offset, expression in discipline.calls_behind(code, frame.f_lasti, names):
                found = value_of(frame, expression)
                if (
                    found is target or attribute_of(found, ("_condition",)) is target
                ):  # who waits for a future waits there
                    return code, offset
        frame = frame.f_back
    return None


def _led_to(frame: FrameType | None) -> set[CodeType]:
    """Return the code of a stack's functions, and of those to which their names lead."""
    seen: set[CodeType] = set()
    while frame is not None and len(seen) < _LIMIT:
        if _is_of_program(frame.f_code):
            inner = values_of(frame, ("self", *frame.f_code.co_freevars))
            _look(frame.f_code, _Names(inner, frame.f_globals), seen, _DEPTH)
        frame = frame.f_back
    return seen


class _Names(NamedTuple):
    """What names mean in a function.  To copy the globals of its module would cost more than all that is looked up in them."""

    inner: Mapping[str, Any]
    outer: Mapping[str, Any]

    def get(self, name: str) -> Any:
        """Return the value of a name, None if it has none."""
        return self.inner[name] if name in self.inner else self.outer.get(name)


def _look(code: CodeType, names: _Names, seen: set[CodeType], depth: int) -> None:
    if code in seen or not _is_of_program(code) or len(seen) >= _LIMIT:
        return
    seen.add(code)
    if depth:
        for function in _functions(code, names):
            has_self = code.co_argcount and function.__code__.co_varnames[:1] == code.co_varnames[:1] == ("self",)
            inner = {"self": names.get("self")} if has_self else {}
            _look(function.__code__, _Names(inner, function.__globals__), seen, depth - 1)


def _functions(code: CodeType, names: _Names) -> Iterator[FunctionType]:
    instance = names.get("self")
    own = None if instance is None else type(instance)
    for name in (*code.co_names, *code.co_freevars):
        for value in (names.get(name), _class_attribute(own, name)):
            target = value.__func__ if isinstance(value, MethodType) else value
            if isinstance(target, FunctionType):
                yield target


def _class_attribute(cls: type | None, name: str) -> Any:
    for base in cls.__mro__ if cls is not None else ():
        if name in base.__dict__:
            return base.__dict__[name]
    return None


def is_library(code: CodeType) -> bool:
    """Return whether this is code of ours, or of the library that locks and waits are made of."""
    return code.co_filename.startswith(state.own_folders) or bool(core.is_transparent(code))


def _is_of_program(code: CodeType) -> bool:
    return not is_library(code)
