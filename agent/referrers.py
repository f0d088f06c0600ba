"""Words for who refers to an awaited object: "module global jobs.queue", "local variable 'q' of serve() in thread MainThread".

The addresses that a look has found may mean something else by now.  So the objects are fetched anew, only those that the
collector still knows, and a step of the way is told only if the one still refers to the other.  No code of the program runs:
no ``repr``, no property.

Cost       one more pass over the heap for each path, and the locals of all threads where no object is to blame.
"""

from __future__ import annotations

import sys
import types
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from concagent import _real, state

if TYPE_CHECKING:
    from collections.abc import Collection

HELD: Final = 1  # somebody refers to it who cannot be seen: a running frame, C code
MODULE: Final = 2
CALLBACK: Final = 3
FINALIZER: Final = 4

_UNKNOWN: Final = "held by C code (unknown)"
_STEPS: Final = 4  # of a long way, the first ones are told


class Words:
    """Tells the paths of one answer."""

    def __init__(self, twin: Any, stuck: Collection[int]) -> None:
        """Say where to look, and which threads' frames do not count."""
        self.twin = twin
        self.stuck = frozenset(stuck)

    def of(self, why: int, path: list[int], target: object) -> str:
        """Return who refers to ``target``, at the end of a path of addresses from a root."""
        objects = [*self.twin.reach_objects(path[:-1]), target]
        steps = [_step(one, other) for one, other in pairwise(objects) if one is not None]
        root = objects[0]
        if why == MODULE:
            first = _module_words(root, objects[1] if len(objects) > 1 else None)
            steps = steps[1:]
        elif why == CALLBACK:
            first = "callback of a weak reference"
        elif why == FINALIZER:
            first = f"finalizer of {_kind(root)}"
        else:
            seen = self._local_words(path[0])
            first = seen or (_UNKNOWN if len(path) == 1 or root is None else f"{_kind(root)}, {_UNKNOWN}")
        if len(steps) > _STEPS:
            steps = [*steps[:_STEPS], "..."]
        return ", ".join([first, *steps])

    def _local_words(self, address: int) -> str | None:
        for ident in _real.current_frames():
            if ident in self.stuck:
                continue
            for code, values in self.twin.reach_locals(ident):
                if code is not None and address in values and not code.co_filename.startswith(state.own_folders):
                    name = _local_name(code, values.index(address))
                    thread = _real.find_thread(ident)
                    where = thread.name if thread is not None else f"thread-{ident}"
                    return f"local variable {name!r} of {code.co_name}() in thread {where}"
        return None


def _local_name(code: types.CodeType, slot: int) -> str:
    cells = [name for name in code.co_cellvars if sys.version_info < (3, 11) or name not in code.co_varnames]
    names = [*code.co_varnames, *cells, *code.co_freevars]
    return names[slot] if slot < len(names) else "?"


def _kind(one: object) -> str:
    return f"a {type(one).__name__}" if one is not None else "something that is gone"


def _key_of(container: dict[Any, Any], value: object) -> str | None:
    for key, one in list(container.items()):
        if one is value:
            return key if type(key) is str else None
    return None


def _module_words(root: Any, target: object) -> str:
    modules: list[tuple[str, Any]] = list(sys.modules.items())  # programs put other things there, too
    for name, module in modules:
        if not isinstance(module, types.ModuleType):
            continue
        parts = object.__getattribute__(module, "__dict__")
        if root is module or root is parts:
            key = _key_of(parts, target)
            return f"module global {name}.{key}" if key else f"a global of module {name}"
    return "a module global"


def _step(one: Any, other: object) -> str:
    """Return how one object refers to the next, in words."""
    kind = type(one)
    if kind is dict:
        key = _key_of(one, other)
        return f"key {key!r} of a dict" if key else "a dict"
    if kind in (list, tuple, set, frozenset):
        return f"an item of a {kind.__name__}"
    if kind is types.CellType:
        return "a variable of a closure"
    if isinstance(one, types.FunctionType):
        return f"function {one.__qualname__}"
    if kind in (types.GeneratorType, types.CoroutineType):
        return f"a local variable of the suspended {one.__qualname__}()"
    if kind is types.MethodType or kind is types.BuiltinMethodType:
        return "a bound method"
    try:
        parts = object.__getattribute__(one, "__dict__")
    except AttributeError:
        parts = None
    key = _key_of(parts, other) if type(parts) is dict else None
    if key is not None:
        return f"attribute {key} of {_kind(one)}"
    return _kind(one)
