"""Which lock classes are used by code that the interpreter runs in the midst of other code, and what that code holds.

Finalizers, weakref and gc callbacks run on whatever thread drops the last reference or makes the garbage collector run; signal
handlers run on the main thread.  Whoever waits for a lock there lets the function that was interrupted wait, too.  So a
deadlock is possible, though it may never have been seen,

1. if ordinary code that can be interrupted takes the same lock, and the lock is not re-entrant;
2. if it takes another lock B, and some other thread waits for B while it holds A, which the interruption wants: T1 holds B
   and is interrupted, T2 holds A and wants B.  That holds for re-entrant locks as well.

The core tells a few uses of each class (see ``_core_use.c``); this module keeps them and draws the conclusions.

Never      a finalizer that only tries; a class in signal mode; a lock that dies with the object that is finalized: nobody
           who held it could have been interrupted, since he would have kept the object alive; ordinary code that pauses the
           garbage collector while it holds the lock (finalizers only); a lock that a thread has for itself (case 2);
           ``Event.set`` in a signal handler: the moments in which an event's own lock is held are a few instructions, every
           second program ends by it, and so it would hide what matters.
Limits     of the first uses only, so two threads that come to a lock later than others are no evidence.
Cost       O(classes that interruptions use), and a search of the order graph for each.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from concagent import core

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import CodeType

    from concagent.lockorder import LockOrderGraph, OrderEdge

WORDS: Final = ("ordinary code", "a finalizer", "a weakref callback", "a gc callback", "a signal handler")
SIGNAL: Final = 4
_EVENT_METHODS: Final = frozenset({"set", "clear"})  # nothing else in `threading` has these names


class Use(NamedTuple):
    """A lock was taken in this circumstance (an index into `WORDS`), by a thread with this serial.

    ``stack`` are (code, offset), innermost first: up to the site in ordinary code, else up to what was interrupted.
    """

    cls: int
    cell: Any
    kind: int
    is_main: bool
    gc_enabled: bool
    thread: int
    held: tuple[int, ...]
    stack: tuple[tuple[CodeType, int], ...]

    @property
    def site(self) -> tuple[CodeType, int]:
        """Return where the lock was taken: the innermost function that is not ``threading`` itself."""
        return next((pair for pair in self.stack if not core.is_transparent(pair[0])), self.stack[-1])


class Hazard(NamedTuple):
    """An interruption wants what ordinary code holds, or what somebody holds who waits for that (``path``, case 2)."""

    interruption: Use
    ordinary: Use
    path: tuple[OrderEdge, ...] = ()


class Contexts:
    """The uses seen so far; the monitor's thread only."""

    def __init__(self) -> None:
        """Start empty."""
        self._ordinary: dict[int, list[Use]] = {}
        self._interrupting: list[Use] = []
        self._told: set[tuple[int, int]] = set()
        self._settled = 0

    def add(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Take what ``core.drain_uses`` returned."""
        for cls, cell, kind, is_main, gc_enabled, thread, held, stack in rows:
            if not stack:
                continue
            use = Use(cls, cell, kind, bool(is_main), bool(gc_enabled), thread, tuple(held), tuple(stack))
            if kind == 0:
                self._ordinary.setdefault(cls, []).append(use)
            elif not _only_an_event(use):
                self._interrupting.append(use)

    def hazards(self, order: LockOrderGraph, *, last: bool = False) -> Iterator[Hazard]:
        """Yield what is new, a class and a circumstance once, the nearest danger first.

        What came since the last call is looked at in the next one, unless this is the ``last``: a finalizer may be running
        still, and the object whose lock it takes be about to go.
        """
        edges: dict[int, list[OrderEdge]] | None = None
        settled = len(self._interrupting) if last else self._settled
        self._settled = len(self._interrupting)
        for use in self._interrupting[:settled]:
            if (use.cls, use.kind) in self._told or use.cell.cls.signal or not use.cell.alive:
                continue
            if edges is None:
                edges = {}
                for edge in order.edges():
                    edges.setdefault(edge.outer, []).append(edge)
            found = self._direct(use) or self._through_others(use, edges)
            if found is not None:
                self._told.add((use.cls, use.kind))
                yield found

    def _direct(self, use: Use) -> Hazard | None:
        if use.cell.kind != "lock":
            return None
        ordinary = next((other for other in self._ordinary.get(use.cls, ()) if _can_interrupt(use, other)), None)
        return Hazard(use, ordinary) if ordinary is not None else None

    def _through_others(self, use: Use, edges: dict[int, list[OrderEdge]]) -> Hazard | None:
        """Return the nearest class B that is awaited while A is held, and held by somebody who can be interrupted."""
        paths: dict[int, tuple[OrderEdge, ...]] = {use.cls: ()}
        work = deque([use.cls])
        while work:
            at = work.popleft()
            for edge in edges.get(at, ()):
                if edge.inner in paths:
                    continue
                path = paths[edge.inner] = (*paths[at], edge)
                work.append(edge.inner)
                for other in self._ordinary.get(edge.inner, ()):
                    if _can_interrupt(use, other) and self._can_meet(use, other, path):
                        return Hazard(use, other, path)
        return None

    def _can_meet(self, use: Use, ordinary: Use, path: tuple[OrderEdge, ...]) -> bool:
        """Return whether one thread can hold B while others go along the path: nothing keeps them from it."""
        threads = {edge.thread for edge in path}
        gates = set(ordinary.held).intersection(*(edge.held for edge in path)) - {use.cls, ordinary.cls}
        same = {other.cell.serial for other in self._ordinary[ordinary.cls] if other.thread != ordinary.thread}
        return ordinary.thread not in threads and not gates and (not same or ordinary.cell.serial in same)


def _can_interrupt(use: Use, ordinary: Use) -> bool:
    return ordinary.is_main if use.kind == SIGNAL else ordinary.gc_enabled


def _only_an_event(use: Use) -> bool:
    return use.kind == SIGNAL and any(
        code.co_filename == threading.__file__ and code.co_name in _EVENT_METHODS for code, _ in use.stack
    )
