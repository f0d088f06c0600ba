"""Which lock classes were taken while others were held: a graph that is kept free of cycles.

An edge A -> B says that somebody blocked on taking a lock of class B while he held one of class A.  A cycle of such edges
is an inversion: a deadlock that did not happen this time.  We keep a *topological order* of the classes while edges
come in: each class has a rank, and every edge runs from a lower to a higher one.

1. An edge that agrees with the ranks (nearly all do, programs have a habit) costs a comparison.
2. One that disagrees, x -> y with rank(y) < rank(x), searches forwards from y among the ranks up to that of x.  If it meets
   x, the edge would close a cycle: it is *rejected and remembered*, so that the graph stays acyclic, later cycles are still
   found, and each is told once.  The search is breadth first, so the cycle told is a shortest one.
3. Else what was found, and what leads to x from ranks above that of y, exchange places within the ranks that they have.

An acquisition that gives up by itself (a try-lock, a timeout) waits for nobody for ever, so no edge leads to it; what is
taken while such a lock is held has edges from it as from any other.

Identity is the serial of a class, which is never given twice.  So no slot can be mistaken for its former tenant, and no
version is needed beside it, as it is where ids are indexes.

Not here   no finding is made.  Whether a cycle can happen (gates, one thread only, order enforced otherwise) is a detector's.
Invariants O1 ranks are unique, and every edge runs from a lower to a higher rank; so the edges have no cycle.
           O2 an edge is known at both its ends.
           O3 the edges of a remembered cycle, but the one that closes it, are in the graph; that one is not.
Cost       O(1) for an edge that agrees; else the classes between the two ranks with their edges.  One edge a pair of classes.
Not safe   for two threads at once: the monitor's alone.
Sources    Pearce, Kelly: A Dynamic Topological Sort Algorithm for Directed Acyclic Graphs, ACM JEA 11, 2006; abseil
           synchronization/internal/graphcycles.cc.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from concagent.errors import InvariantError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from concagent.model import CallSite


@dataclass(frozen=True, slots=True)
class OrderEdge:
    """A lock of class ``inner`` was taken while one of class ``outer`` was held; the evidence is of the first time.

    ``held`` are the classes that the thread held then, outermost first: one of them may be a gate.
    """

    outer: int
    inner: int
    site: CallSite | None
    thread: int
    held: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OrderCycle:
    """An edge that was rejected, and the path of edges from its ``inner`` back to its ``outer``, () for a self-edge."""

    closing: OrderEdge
    path: tuple[OrderEdge, ...]

    @property
    def classes(self) -> tuple[int, ...]:
        """Return the serials of the classes on the cycle, from the closing edge's outer one on."""
        return (self.closing.outer, *(edge.outer for edge in self.path))


class LockOrderGraph:
    """The order in which lock classes are taken, in one process."""

    def __init__(self) -> None:
        """Start empty."""
        self._ranks: dict[int, int] = {}
        self._after: dict[int, dict[int, OrderEdge]] = {}
        self._before: dict[int, set[int]] = {}
        self._rejected: dict[tuple[int, int], OrderCycle] = {}
        self._next_rank = 0
        self._edge_count = 0

    def add(
        self, held: Sequence[int], inner: int, site: CallSite | None, thread: int, blocking: bool
    ) -> tuple[OrderCycle, ...]:
        """Add the edges of one acquisition; return the cycles that they would have closed and that are new.

        Args:
            held: Serials of the classes held, outermost first; a class may come twice.
            inner: Serial of the class acquired.
            site: Where it was acquired.
            thread: Serial of the thread.
            blocking: Whether it would have waited without end; otherwise nothing is added.
        """
        if not blocking:
            return ()
        found = []
        for outer in dict.fromkeys(held):
            cycle = self._add_edge(OrderEdge(outer, inner, site, thread, tuple(held)))
            if cycle is not None:
                found.append(cycle)
        return tuple(found)

    def remove(self, serial: int) -> None:
        """Forget a class, its edges, and the cycles that ran through it; no-op for an unknown one.

        An edge that closed such a cycle is looked at anew when it comes again.  Ranks need no work: a gap hurts nobody.
        """
        if serial not in self._ranks:
            return
        self._edge_count -= len(self._after[serial]) + len(self._before[serial])
        for inner in self._after.pop(serial):
            self._before[inner].discard(serial)
        for outer in self._before.pop(serial):
            del self._after[outer][serial]
        del self._ranks[serial]
        for ends, cycle in list(self._rejected.items()):
            if serial in cycle.classes:
                del self._rejected[ends]

    @property
    def edge_count(self) -> int:
        """Return the number of edges; remembered closing ones are none."""
        return self._edge_count

    def edges(self) -> tuple[OrderEdge, ...]:
        """Return all edges, sorted by outer and inner class."""
        every = (edge for inner in self._after.values() for edge in inner.values())
        return tuple(sorted(every, key=lambda edge: (edge.outer, edge.inner)))

    def cycles(self) -> tuple[OrderCycle, ...]:
        """Return the cycles found so far that still stand, oldest first."""
        return tuple(self._rejected.values())

    def check_invariants(self) -> None:
        """Check O1-O3.

        Raises:
            InvariantError: One does not hold.
        """
        if len(set(self._ranks.values())) != len(self._ranks):
            raise InvariantError("O1: two classes have one rank")
        edges = {(edge.outer, edge.inner) for edge in self.edges()}
        for outer, inner in edges:
            if self._ranks[outer] >= self._ranks[inner]:
                raise InvariantError(f"O1: the edge {outer} -> {inner} runs against the ranks")
        if edges != {(outer, inner) for inner, before in self._before.items() for outer in before}:
            raise InvariantError("O2: an edge is known at one end only")
        if len(edges) != self._edge_count:
            raise InvariantError(f"O2: {len(edges)} edges, but {self._edge_count} counted")
        for ends, cycle in self._rejected.items():
            if ends in edges or not {(edge.outer, edge.inner) for edge in cycle.path} <= edges:
                raise InvariantError(f"O3: the cycle closed by {ends[0]} -> {ends[1]} does not stand")

    def _add_edge(self, edge: OrderEdge) -> OrderCycle | None:
        outer, inner = edge.outer, edge.inner
        self._add_class(outer)
        self._add_class(inner)
        if inner in self._after[outer] or (outer, inner) in self._rejected:
            return None
        if self._ranks[outer] >= self._ranks[inner]:
            came_from = self._search_forwards(inner, self._ranks[outer])
            if outer in came_from:
                cycle = OrderCycle(edge, self._path(came_from, inner, outer))
                self._rejected[outer, inner] = cycle
                return cycle
            self._reorder(self._search_backwards(outer, self._ranks[inner]), list(came_from))
        self._after[outer][inner] = edge
        self._before[inner].add(outer)
        self._edge_count += 1
        return None

    def _add_class(self, serial: int) -> None:
        if serial not in self._ranks:
            self._ranks[serial] = self._next_rank
            self._next_rank += 1
            self._after[serial] = {}
            self._before[serial] = set()

    def _search_forwards(self, start: int, up_to: int) -> dict[int, int]:
        """Return what can be reached from ``start`` within the ranks, each with the class before it; shortest paths."""
        came_from = {start: start}
        work = deque([start])
        while work:
            at = work.popleft()
            for inner in self._after[at]:
                if inner not in came_from and self._ranks[inner] <= up_to:
                    came_from[inner] = at
                    work.append(inner)
        return came_from

    def _search_backwards(self, start: int, down_to: int) -> list[int]:
        found = {start}
        work = [start]
        while work:
            for outer in self._before[work.pop()]:
                if outer not in found and self._ranks[outer] > down_to:
                    found.add(outer)
                    work.append(outer)
        return list(found)

    def _path(self, came_from: dict[int, int], start: int, end: int) -> tuple[OrderEdge, ...]:
        path = []
        while end != start:
            path.append(self._after[came_from[end]][end])
            end = came_from[end]
        return tuple(reversed(path))

    def _reorder(self, lower: list[int], upper: list[int]) -> None:
        """Give all of ``lower`` ranks below all of ``upper``, out of the ranks that they have; inside each the order stays."""
        ranks = self._ranks
        moved = [*sorted(lower, key=ranks.__getitem__), *sorted(upper, key=ranks.__getitem__)]
        free = sorted(ranks[serial] for serial in moved)
        ranks.update(zip(moved, free, strict=True))
