"""Named tuples that are made without compiling anything: `install` makes twenty, and that was a tenth of its time.

``typing.NamedTuple`` writes the source of a ``__new__`` for each class and has it evaluated, and looks at each annotation.
Here one function serves all classes; making a *value* costs half a microsecond more, which is why what is made often is
a class of its own.  The type checker is told that it is ``typing.NamedTuple``, and there is nothing here that that one lacks:
a class is a plain subclass of ``tuple`` with ``__slots__``, fields in order with defaults, its own methods and properties,
``_fields``, ``_asdict``, ``_replace``, equality and hash of tuples, pickling and copying.

Limits     no ``_make``, no inheritance from another named tuple, no generic ones.
Sources    CPython Lib/typing.py (NamedTupleMeta), Lib/collections/__init__.py (namedtuple).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NamedTuple as NamedTuple

_tuple_new: Final = tuple.__new__


def _constructor(fields: tuple[str, ...], defaults: dict[str, Any]) -> Callable[..., Any]:
    """Return the ``__new__`` of a class."""
    size = len(fields)

    def new(_cls: Any, /, *args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != size:
            if len(args) > size:
                raise TypeError(f"takes {size} arguments but {len(args)} were given")
            values = list(args)
            for name in fields[len(args) :]:
                if name in kwargs:
                    values.append(kwargs.pop(name))
                elif name in defaults:
                    values.append(defaults[name])
                else:
                    raise TypeError(f"missing argument: {name!r}")
            if kwargs:
                raise TypeError(f"unexpected or repeated arguments: {sorted(kwargs)}")
            args = tuple(values)
        return _tuple_new(_cls, args)

    new.__name__ = "__new__"
    return new


def _repr(self: Any) -> str:
    values = ", ".join(f"{name}={value!r}" for name, value in zip(self._fields, self, strict=True))
    return f"{type(self).__name__}({values})"


def _asdict(self: Any) -> dict[str, Any]:
    """Return a new dict which maps field names to their values."""
    return dict(zip(self._fields, self, strict=True))


def _replace(self: Any, /, **changes: Any) -> Any:
    """Return a new value with some fields replaced."""
    values = [changes.pop(name, value) for name, value in zip(self._fields, self, strict=True)]
    if changes:
        raise ValueError(f"got unexpected field names: {sorted(changes)}")
    return _tuple_new(type(self), values)


def _getnewargs(self: Any) -> tuple[Any, ...]:
    """Return the values, for pickle and copy."""
    return tuple(self)


if not TYPE_CHECKING:
    try:
        from _collections import _tuplegetter as _getter
    except ImportError:  # pragma: no cover  an interpreter without it
        from operator import itemgetter

        def _getter(index, doc):
            return property(itemgetter(index), doc=doc)

    class _Maker(type):
        """Makes plain tuple classes out of class bodies that name `NamedTuple` as their base."""

        def __new__(cls, name, bases, body):
            if not bases:
                return super().__new__(cls, name, bases, body)
            fields = tuple(_annotations_of(body))
            defaults = {field: body.pop(field) for field in fields if field in body}
            body |= {field: _getter(index, None) for index, field in enumerate(fields)}
            body |= {"__slots__": (), "_fields": fields, "__match_args__": fields, "_field_defaults": defaults}
            body |= {"__new__": _constructor(fields, defaults), "__getnewargs__": _getnewargs}
            for method, function in (("__repr__", _repr), ("_asdict", _asdict), ("_replace", _replace)):
                body.setdefault(method, function)
            return type(name, (tuple,), body)

    class NamedTuple(metaclass=_Maker):
        """The base to name; see the module."""

    def _annotations_of(body):
        """Return the annotations of a class body; they are strings, whatever the version."""
        return body.get("__annotations__", {})
