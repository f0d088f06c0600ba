"""Findings about interruptions and forks, made from what is given: no threads, no locks."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from concagent import contexts, forks
from concagent.detectors import context, forked
from concagent.detectors.context import Side, Step
from concagent.lockorder import LockOrderGraph
from concagent.model import Actor, AssignmentEdge, CallSite, RequestEdge, Resource, Snapshot, StackFrame

HERE = CallSite("app.py", 3, "close")
THERE = CallSite("app.py", 9, "size")
FRAME = StackFrame("app.py", 3, "close")


def side(serial: int, name: str | None = "pool", site: CallSite | None = HERE) -> Side:
    return Side(Resource(serial, "lock", name, site), site, (FRAME,))


def test_a_finding_of_one_lock_names_both_places() -> None:
    found = context.context_finding(side(1), "a finalizer", side(1, site=THERE), (), 7, 1.5)

    assert (found.kind, found.confidence, found.detail) == ("context-hazard", "potential", "finalizer")
    assert found.title == (
        'lock "pool" is taken in a finalizer (app.py:3 in close), and in code that this can interrupt (app.py:9 in size)'
    )
    assert [entry["circumstance"] for entry in found.order] == ["a finalizer", "ordinary code"]
    assert len(found.resources) == 1


def test_a_finding_of_two_locks_shows_the_way_between_them() -> None:
    steps = (Step("pool", "cache", THERE),)

    found = context.context_finding(side(1), "a signal handler", side(2, "cache", THERE), steps, 7, 1.5)

    assert found.order[2] == {"outer": "pool", "inner": "cache", "site": THERE.to_dict()}
    assert 'can interrupt who holds lock "cache"' in found.title


@pytest.mark.parametrize(
    ("name", "site", "said"), [(None, HERE, "lock made at app.py:3 in close"), (None, None, "lock")]
)
def test_a_lock_without_a_name_is_called_by_its_place(name: str | None, site: CallSite | None, said: str) -> None:
    found = context.context_finding(side(1, name, site), "a finalizer", side(1, name, site), (), 7, 1.5)

    assert found.title.startswith(f"{said} is taken in a finalizer")


def test_the_same_hazard_has_the_same_fingerprint_and_another_circumstance_another_one() -> None:
    def mark(what: str) -> str:
        return context.context_finding(side(1), what, side(1), (), os.getpid(), 1.5).fingerprint

    assert mark("a finalizer") == mark("a finalizer") != mark("a signal handler")


def forked_snapshot(stack: tuple[StackFrame, ...], waiting: tuple[int, ...] = ()) -> Snapshot:
    actors = [Actor(1, "thread", 10, 11, "worker-1", False, "ended")]
    actors += [Actor(serial, "thread", 20, serial, f"t{serial}", False, "blocked", stack) for serial in (2, 3)]
    return Snapshot(
        20,
        0,
        1.0,
        tuple(actors),
        (Resource(5, "lock", "prices", HERE),),
        tuple(RequestEdge(serial, 5, 0, 1, False, THERE if serial == 2 else None) for serial in waiting),
        (AssignmentEdge(5, 1, 0, 1, HERE),),
    )


def test_a_fork_hazard_names_who_forked_and_who_held_what() -> None:
    found = forked.hazard_finding(forked_snapshot((FRAME,)), 2)

    assert (
        found.title
        == 't2 forked at app.py:3 in close while worker-1 held lock "prices" (acquired at app.py:3 in close)'
    )
    assert [(actor.name, actor.role) for actor in found.actors] == [("worker-1", "member"), ("t2", "bystander")]


def test_a_fork_whose_stack_is_not_known_is_told_without_it() -> None:
    assert forked.hazard_finding(forked_snapshot(()), 2).title.startswith("t2 forked while worker-1 held")


@pytest.mark.parametrize(
    ("waiting", "said"),
    [((2,), 't2 waits for lock "prices" at app.py:9 in size;'), ((3, 2), 't3 and 1 more wait for lock "prices";')],
)
def test_a_deadlock_of_a_child_names_the_parents_process(waiting: tuple[int, ...], said: str) -> None:
    snapshot = forked_snapshot((FRAME,), waiting)

    found = forked.deadlock_finding(forked.Scene(snapshot), snapshot.assignments[0], waiting)

    assert said in found.title
    assert "worker-1 of the parent process 10 held it" in found.title
    assert (found.kind, found.confidence) == ("deadlock", "proven")


def test_what_one_process_of_a_family_has_told_no_other_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "_told", bytearray(4096))
    monkeypatch.setattr(forks, "_PAGE", 16)  # room for two

    answers = [forks.is_first(mark) for mark in ("1" * 16, "1" * 16, "2" * 16, "2" * 16, "3" * 16, "3" * 16)]

    assert answers == [True, False, True, False, True, True]  # the page is full


# ---------------------------------------------------------------- conclusions

CODE = (lambda: None).__code__


def row(cls: int, kind: int, *, main: bool = True, gc: bool = True, thread: int = 1, **other: Any) -> tuple[Any, ...]:
    """Return a row as the core tells it; ``lock``: the lock's serial, ``held``, ``what``: its kind, ``signal``, ``alive``."""
    cell = SimpleNamespace(
        serial=other.get("lock", cls * 100),
        kind=other.get("what", "lock"),
        cls=SimpleNamespace(signal=other.get("signal", False)),
        alive=other.get("alive", True),
    )
    return (cls, cell, kind, main, gc, thread, other.get("held", ()), other.get("stack", ((CODE, 0),)))


def conclusions(rows: list[tuple[Any, ...]], *edges: tuple[tuple[int, ...], int, int]) -> list[tuple[int, int, int]]:
    """Return (class that is interrupted for, kind, class that is held); an edge is (held, inner, thread)."""
    seen, order = contexts.Contexts(), LockOrderGraph()
    for held, inner, thread in edges:
        order.add(held, inner, HERE, thread, True)
    seen.add(rows)
    assert list(seen.hazards(order)) == []  # what is new is left for the next look
    found = [(h.interruption.cls, h.interruption.kind, h.ordinary.cls) for h in seen.hazards(order)]
    assert list(seen.hazards(order, last=True)) == []  # each is told once
    return found


def test_an_interruption_and_ordinary_code_take_the_same_lock() -> None:
    assert conclusions([row(1, 0), row(1, 1)]) == [(1, 1, 1)]


@pytest.mark.parametrize(
    "rows",
    [
        [row(1, 1)],
        [row(1, 0), row(2, 1)],
        [row(1, 0, what="rlock"), row(1, 1, what="rlock")],
        [row(1, 0), row(1, 1, alive=False)],
        [row(1, 0), row(1, 1, signal=True)],
        [row(1, 0, gc=False), row(1, 1)],
        [row(1, 0, main=False), row(1, 4)],
        [row(1, 0), row(1, 1, stack=())],
    ],
    ids=["nobody", "another", "reentrant", "dead", "signal", "paused", "not main", "no stack"],
)
def test_what_is_no_hazard(rows: list[tuple[Any, ...]]) -> None:
    assert conclusions(rows) == []


A, B, C = row(1, 1, what="rlock"), row(2, 0, thread=1), row(3, 0, thread=1)


def test_who_waits_for_what_the_interrupted_thread_holds_is_a_hazard_however_far() -> None:
    assert conclusions([A, B], ((1,), 2, 9)) == [(1, 1, 2)]
    assert conclusions([A, C], ((1,), 2, 9), ((2,), 3, 8)) == [(1, 1, 3)]


def test_one_thread_alone_cannot_meet_itself() -> None:
    assert conclusions([A, B], ((1,), 2, 1)) == []


def test_a_gate_over_both_sides_keeps_them_apart() -> None:
    assert conclusions([A, row(2, 0, thread=1, held=(7,))], ((7, 1), 2, 9)) == []


def test_a_lock_that_each_thread_has_for_itself_is_not_what_the_other_waits_for() -> None:
    mine, his = row(2, 0, thread=1, lock=201), row(2, 0, thread=9, lock=209)

    assert conclusions([A, mine, his], ((1,), 2, 9)) == []
    assert conclusions([A, mine, row(2, 0, thread=9, lock=201)], ((1,), 2, 9)) == [(1, 1, 2)]
