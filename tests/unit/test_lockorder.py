"""The lock-order graph against a list of edges that is too simple to be wrong.

By hand, 100,000 random steps (ACCEPTANCE M21):  .venv/bin/python tests/unit/test_lockorder.py 100000 [SEED]
"""

from __future__ import annotations

import random
import sys
import time

import pytest

from concagent.errors import InvariantError
from concagent.lockorder import LockOrderGraph
from concagent.model import CallSite

SITE = CallSite("shop.py", 12, "f")


def add(graph: LockOrderGraph, outer: int, inner: int):
    """Add one edge; return the cycle that it closes, or None."""
    cycles = graph.add((outer,), inner, SITE, 1, blocking=True)
    return cycles[0] if cycles else None


def pairs(graph: LockOrderGraph) -> list[tuple[int, int]]:
    return [(edge.outer, edge.inner) for edge in graph.edges()]


class NaiveOrder:
    """A list of edges; reachability by trying again until nothing is new."""

    def __init__(self) -> None:
        self.edges: set[tuple[int, int]] = set()

    def reachable(self, start: int) -> set[int]:
        found = {start}
        while True:
            more = found | {inner for outer, inner in self.edges if outer in found}
            if more == found:
                return found
            found = more

    def add(self, outer: int, inner: int) -> bool:
        """Return whether the edge closes a cycle; add it if not."""
        closes = outer in self.reachable(inner)
        if not closes:
            self.edges.add((outer, inner))
        return closes

    def remove(self, node: int) -> None:
        self.edges = {edge for edge in self.edges if node not in edge}


def run_side_by_side(steps: int, seed: int, nodes: int = 7) -> int:
    """Drive both with the same random steps; return the number of cycles.  Serials are never used again after ``remove``."""
    chance = random.Random(seed)
    graph, naive = LockOrderGraph(), NaiveOrder()
    serials = list(range(nodes))
    fresh = nodes
    told: set[tuple[int, int]] = set()
    cycles = 0
    for step in range(steps):
        if chance.random() < 0.15:
            index = chance.randrange(nodes)
            gone = serials[index]
            if chance.random() < 0.5:  # half of them come back under the same serial
                serials[index], fresh = fresh, fresh + 1
            graph.remove(gone)
            naive.remove(gone)
            told = {edge for edge in told if gone not in edge and edge in remembered(graph)}
        else:
            outer, inner = chance.choice(serials), chance.choice(serials)
            cycle = add(graph, outer, inner)
            closes = naive.add(outer, inner)
            assert (cycle is not None) == (closes and (outer, inner) not in told), (seed, step, outer, inner)
            if cycle is not None:
                told.add((outer, inner))
                cycles += 1
                check_cycle(cycle, naive, outer, inner)
        assert set(pairs(graph)) == naive.edges, (seed, step)
        assert graph.edge_count == len(naive.edges)
        graph.check_invariants()
    return cycles


def remembered(graph: LockOrderGraph) -> set[tuple[int, int]]:
    return {(cycle.closing.outer, cycle.closing.inner) for cycle in graph.cycles()}


def check_cycle(cycle, naive: NaiveOrder, outer: int, inner: int) -> None:
    ends = [(edge.outer, edge.inner) for edge in cycle.path]
    assert set(ends) <= naive.edges
    walked = inner
    for start, end in ends:
        assert start == walked
        walked = end
    assert walked == outer


def test_random_steps_agree_with_a_list_of_edges():
    cycles = run_side_by_side(3000, seed=1)

    assert cycles > 100


def test_256_classes_agree_with_a_list_of_edges():
    assert run_side_by_side(600, seed=2, nodes=256) >= 0


def test_an_order_that_is_kept_has_no_cycle():
    graph = LockOrderGraph()

    assert add(graph, 1, 2) is None
    assert add(graph, 2, 3) is None
    assert add(graph, 1, 3) is None
    assert pairs(graph) == [(1, 2), (1, 3), (2, 3)]


def test_the_reverse_order_is_an_inversion_of_two_classes():
    graph = LockOrderGraph()
    add(graph, 1, 2)

    cycle = add(graph, 2, 1)

    assert cycle.classes == (2, 1)
    assert [(edge.outer, edge.inner) for edge in cycle.path] == [(1, 2)]
    assert graph.cycles() == (cycle,)


def test_the_edge_that_closes_a_cycle_is_not_in_the_graph_and_is_told_once():
    graph = LockOrderGraph()
    add(graph, 1, 2)
    add(graph, 2, 1)

    assert add(graph, 2, 1) is None
    assert pairs(graph) == [(1, 2)]
    assert graph.edge_count == 1


def test_a_later_cycle_is_found_though_an_earlier_one_was():
    graph = LockOrderGraph()
    for outer, inner in ((1, 2), (2, 3), (2, 1)):
        add(graph, outer, inner)

    assert add(graph, 3, 1).classes == (3, 1, 2)


def test_the_cycle_told_is_a_shortest_one():
    graph = LockOrderGraph()
    for outer, inner in ((1, 2), (2, 3), (3, 4), (1, 4)):
        add(graph, outer, inner)

    assert add(graph, 4, 1).classes == (4, 1)


def test_a_self_edge_is_rejected():
    graph = LockOrderGraph()

    cycle = add(graph, 1, 1)

    assert cycle.classes == (1,)
    assert cycle.path == ()
    assert graph.edge_count == 0


def test_without_the_class_in_the_middle_the_former_cycle_can_be_closed():
    graph = LockOrderGraph()
    add(graph, 1, 2)
    add(graph, 2, 3)
    add(graph, 3, 1)

    graph.remove(2)

    assert add(graph, 3, 1) is None
    assert pairs(graph) == [(3, 1)]
    graph.check_invariants()


def test_a_cycle_that_did_not_run_through_a_removed_class_stays_remembered():
    graph = LockOrderGraph()
    add(graph, 1, 2)
    add(graph, 2, 1)
    add(graph, 2, 3)

    graph.remove(3)
    graph.remove(99)

    assert add(graph, 2, 1) is None
    assert len(graph.cycles()) == 1


def test_all_edges_of_a_hundred_classes_in_random_order_are_accepted():
    graph = LockOrderGraph()
    forward = [(outer, inner) for outer in range(100) for inner in range(outer + 1, 100)]
    random.Random(3).shuffle(forward)

    cycles = [add(graph, outer, inner) for outer, inner in forward]

    assert cycles == [None] * 4950
    assert graph.edge_count == 4950
    graph.check_invariants()


def test_every_held_class_comes_before_the_new_one():
    graph = LockOrderGraph()

    graph.add((1, 2, 1), 3, SITE, 7, blocking=True)

    assert pairs(graph) == [(1, 3), (2, 3)]
    assert {edge.held for edge in graph.edges()} == {(1, 2, 1)}
    assert {(edge.site, edge.thread) for edge in graph.edges()} == {(SITE, 7)}


def test_one_acquisition_can_close_two_cycles():
    graph = LockOrderGraph()
    add(graph, 3, 1)
    add(graph, 3, 2)

    cycles = graph.add((1, 2), 3, SITE, 1, blocking=True)

    assert [cycle.classes for cycle in cycles] == [(1, 3), (2, 3)]


def test_a_try_lock_adds_no_edge():
    graph = LockOrderGraph()
    add(graph, 1, 2)

    assert graph.add((2,), 1, SITE, 1, blocking=False) == ()
    assert pairs(graph) == [(1, 2)]


def broken_ranks(graph: LockOrderGraph) -> None:
    graph._ranks[2] = graph._ranks[1]


def broken_direction(graph: LockOrderGraph) -> None:
    graph._ranks[1] = 99


def broken_mirror(graph: LockOrderGraph) -> None:
    graph._before[2].clear()


def broken_count(graph: LockOrderGraph) -> None:
    graph._edge_count = 5


def broken_memory(graph: LockOrderGraph) -> None:
    graph._rejected[1, 2] = graph._rejected.pop((2, 1))


@pytest.mark.parametrize(
    ("damage", "invariant"),
    [
        (broken_ranks, "O1"),
        (broken_direction, "O1"),
        (broken_mirror, "O2"),
        (broken_count, "O2"),
        (broken_memory, "O3"),
    ],
)
def test_a_damaged_graph_does_not_pass_its_check(damage, invariant):
    graph = LockOrderGraph()
    add(graph, 1, 2)
    add(graph, 2, 1)
    damage(graph)

    with pytest.raises(InvariantError, match=invariant):
        graph.check_invariants()


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    began = time.perf_counter()
    total = run_side_by_side(count, first)
    print(f"{count} steps with seed {first}: {total} cycles, no difference, {time.perf_counter() - began:.1f} s")
