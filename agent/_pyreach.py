"""One look at the heap: who refers to these objects, and which of their references nobody can explain.

The twin of ``_core_reach.c``; the argument is in ``reach``.  It must see one moment, too: while it looks, the other threads are
kept from taking over (the interpreter hands the GIL on only when asked to, and waiters ask after the switch interval, which
is set out of reach for that time), and the collector, whose finalizers are code of the program, is off.

What it cannot see are the references that running frames hold: there is no way to read an evaluation stack from Python.
They stay unexplained, so whatever is in a stuck thread's frame counts as reached, and nothing is proven of it; of tasks,
whose frames are suspended and known to the collector, as much is proven as by the C core.

Limits     a signal handler can run in between if the main thread asks; the agent asks from its own.
Cost       about 1 us for each object that the collector knows; ``limit`` bounds the pause.
"""

from __future__ import annotations

import gc
import sys
import types
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from concagent import _real

if TYPE_CHECKING:
    from collections.abc import Iterator

STRONG, WEAK, KEEPS = 0, 1, 2
FINALIZER, KEPT, SOURCE_FORCED = 1, 2, 4
LIMIT: Final = 200_000  # objects: beyond that the pause would be too long

_ALONE_SECONDS: Final = 1000.0
_GENERATORS: Final = (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)
_CALLBACK: Final = weakref.ref.__dict__["__callback__"]
_is_gc: Final = 1 << 14  # Py_TPFLAGS_HAVE_GC


@contextmanager
def _alone() -> Iterator[None]:
    """Keep the other threads and the collector from running meanwhile."""
    interval, collects = sys.getswitchinterval(), gc.isenabled()
    gc.disable()
    sys.setswitchinterval(_ALONE_SECONDS)
    try:
        _real.sleep(2 * interval)  # whoever waits for the GIL has taken notice after one old interval
        yield
    finally:
        sys.setswitchinterval(interval)
        if collects:
            gc.enable()


class _Look:
    """What one look has found so far."""

    def __init__(self, addresses: list[int], passes: list[tuple[int, int, int]]) -> None:
        self.explained = dict.fromkeys(addresses, 0)
        self.objects: dict[int, Any] = {}
        self.edges: list[tuple[int, int, int]] = []
        self.left = {(source, target): times for source, target, times in passes}
        self.deep = False
        self.todo: list[Any] = []
        self.looked_into: set[int] = set()

    def explain(self, source: object) -> None:
        """Count the references of a container of ours."""
        for one in gc.get_referents(source):
            if id(one) in self.explained:
                self.explained[id(one)] += 1
                self.objects[id(one)] = one

    def look_at(self, source: object) -> None:
        """Count the references of an object of the heap, and note where they come from."""
        before = len(self.edges)
        self._look_into(source)
        while self.todo:
            self._look_into(self.todo.pop())
        if len(self.edges) > before and isinstance(source, weakref.ref):
            callback = _CALLBACK.__get__(source)
            if callback is not None and weakref.ref.__call__(source) is not None:
                first = self.edges[before]
                self.edges[before] = (first[0], first[1], first[2] | SOURCE_FORCED)

    def _look_into(self, source: object) -> None:
        address = id(source)
        # Since 3.14 a suspended frame has borrowed references among others, which Python cannot tell apart.
        counted = sys.version_info < (3, 14) or not isinstance(source, _GENERATORS)
        known: set[int] = set()
        for one in gc.get_referents(source):
            if self.deep and type(one) in (tuple, dict) and not gc.is_tracked(one) and id(one) not in self.looked_into:
                self.looked_into.add(id(one))
                self.todo.append(one)
            target = id(one)
            if target not in self.explained:
                continue
            self.objects[target] = one
            self.explained[target] += counted
            if self.left.get((address, target), 0) > 0:
                self.left[address, target] -= 1
                self.edges.append((address, target, KEEPS))
            elif target not in known:
                known.add(target)
                self.edges.append((address, target, STRONG))

    def nodes(self) -> dict[int, tuple[int, int]]:
        """Return address -> (references that nobody explains, flags) of all that were come across."""
        self.objects[0] = object()  # what a reference of ours costs, measured
        counts = {address: sys.getrefcount(one) for address, one in self.objects.items()}
        base = counts.pop(0)
        del self.objects[0]
        return {
            address: (count - base - self.explained[address], FINALIZER if _has_finalizer(self.objects[address]) else 0)
            for address, count in counts.items()
        }


def _has_finalizer(one: object) -> bool:
    return any("__del__" in vars(base) for base in type.__dict__["__mro__"].__get__(type(one)))


def reach_look(
    addresses: list[int],
    pinned: list[int],
    threads: list[tuple[int, list[tuple[Any, int, int, int]]]],
    args: list[Any],
    own: list[Any],
    passes: list[tuple[int, int, int]],
    limit: int,
    seconds: float,
) -> tuple[dict[int, tuple[int, int]], list[tuple[int, int, int]], int] | None:
    """Look at the heap once; the same as ``_core.reach_look`` but for the frames of ``threads``.

    Returns:
        (address -> (unexplained references, flags), edges as (source, target, kind), objects looked at); None if a limit was hit.
    """
    del threads
    deadline = _real.monotonic_ns() + int(seconds * 1e9)
    look = _Look(addresses, passes)
    with _alone():
        heap = gc.get_objects()
        visited = len(heap)
        if visited > min(limit, LIMIT):
            return None
        for container in (*own, own, args):
            look.explain(container)
        look.deep = any(not type(look.objects[one]).__flags__ & _is_gc for one in pinned if one in look.objects)
        mine = {id(one) for one in (own, args, heap, vars(look), *vars(look).values(), look)}
        mine.update(map(id, own))
        one = container = None
        for number, one in enumerate(heap):
            if number % 1024 == 0 and _real.monotonic_ns() > deadline:
                return None
            if id(one) in look.explained:
                look.objects[id(one)] = one
            if id(one) not in mine:
                look.look_at(one)
        one = container = None
        del heap
        nodes = look.nodes()
        edges = look.edges
        for address, one in look.objects.items():
            edges += [(id(reference), address, WEAK) for reference in weakref.getweakrefs(one)]
        one = None
        look.objects.clear()
    return nodes, edges, visited


def reach_frames(ident: int) -> list[tuple[Any, int]] | None:
    """Return None: nothing is known of a running frame's references."""
    del ident
    return None


def reach_locals(ident: int) -> list[tuple[Any, list[int]]]:
    """Return nothing, as `reach_frames`."""
    del ident
    return []


def reach_objects(addresses: list[int]) -> list[Any]:
    """Return the tracked objects at these addresses, None where there is none (any more)."""
    wanted = dict.fromkeys(addresses)
    for one in gc.get_objects():
        if id(one) in wanted:
            wanted[id(one)] = one
    return [wanted[address] for address in addresses]
