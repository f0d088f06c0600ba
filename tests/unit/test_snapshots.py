"""What a snapshot makes of records that change while it reads them: no threads here, the records are played."""

from __future__ import annotations

import os
import sys
import threading
from types import SimpleNamespace

import pytest

from concagent import _pycore, _real, graph, snapshots, state
from concagent.model import StackFrame

CODE = (lambda: None).__code__


class Cell:
    """A lock cell; its hold is a tuple (record, code, offset, by ``with``), or None."""

    def __init__(self, serial, hold=None, *, signal=False, kind="lock"):
        self.serial, self.hold, self.kind, self.name, self.depth, self.since_ns = serial, hold, kind, None, 1, 5
        self.cls = SimpleNamespace(code=CODE, lasti=0, signal=signal)

    def hold_seen_by(self, _wait):
        return None if self.cls.signal else self.hold


class Record:
    """A thread's record; the thread's ident and native id are its serial."""

    def __init__(self, serial, *, wait=None, held=(), ended=False, agent=False):
        self.serial, self.ident, self.native_id, self.name, self.daemon = serial, serial, serial, f"t{serial}", False
        self.wait, self.held, self.epoch, self.ended, self.agent = wait, list(held), 1, ended, agent
        self.pid = os.getpid()

    def waiting(self):
        return self.wait

    def refresh(self):
        """Keep the name."""


def waiting_for(cell, *, timed=False, token=None):
    return SimpleNamespace(resource=cell, timed=timed, code=CODE, lasti=0, since_ns=7, token=token, user=None)


@pytest.fixture
def take(monkeypatch):
    """Return the picture of played records, each with a frame unless it is in ``frameless``."""

    def take(*records, frameless=(), **options):
        frames = {record.ident: sys._getframe() for record in records if record.serial not in frameless}
        monkeypatch.setattr(snapshots.core, "records", lambda: list(records))
        monkeypatch.setattr(snapshots.core, "readings", _pycore.readings)  # of records that are none of the core's
        monkeypatch.setattr(_real, "current_frames", lambda: frames)
        picture = snapshots.take(**options)
        graph.check_invariants(picture)
        return picture

    return take


def ring():
    """Return two records that wait for each other's lock, and the locks."""
    one, other = Record(1), Record(2)
    first, second = Cell(10, (one, CODE, 0, True)), Cell(20, (other, CODE, 0, True))
    one.held, other.held = [first], [second]
    one.wait, other.wait = waiting_for(second), waiting_for(first)
    return one, other, first, second


def states(picture):
    return {one.serial: one.state for one in picture.actors}


def test_waits_that_are_equal_in_both_readings_are_edges(take):
    one, other, _, _ = ring()

    picture = take(one, other)

    assert states(picture) == {1: "blocked", 2: "blocked"}
    assert [(e.actor, e.resource, e.since_ns, e.epoch) for e in picture.requests] == [(1, 20, 7, 1), (2, 10, 7, 1)]
    assert [(e.resource, e.holder) for e in picture.assignments] == [(10, 1), (20, 2)]
    assert graph.find_rings(picture) == ((1, 2),)


@pytest.mark.parametrize("what", ["epoch", "wait", "hold"])
def test_what_changes_between_the_readings_makes_no_edge(take, what):
    one, other, first, _ = ring()

    def change():
        if what == "epoch":
            other.epoch += 2
        elif what == "wait":
            other.wait = waiting_for(first)
        else:
            first.hold = (one, CODE, 0, True)  # an equal hold, taken anew

    first_look = Record(0)  # it is read first in both rounds
    looks = iter([lambda: None, change])
    first_look.waiting = lambda: next(looks)()

    picture = take(first_look, one, other)

    assert states(picture)[2] == "live"
    assert 2 not in {edge.actor for edge in picture.requests}
    assert graph.find_rings(picture) == ()


def test_a_timed_wait_is_an_edge_that_says_so(take):
    cell = Cell(10)

    picture = take(Record(1, wait=waiting_for(cell, timed=True)))

    assert states(picture) == {1: "timed"}
    assert picture.requests[0].timed


def test_a_lock_in_signal_mode_has_no_holder_to_wait_for(take):
    holder = Record(2)

    picture = take(Record(1, wait=waiting_for(Cell(10, (holder, CODE, 0, True), signal=True))))

    assert picture.assignments == ()
    assert picture.resources[0].signal_mode


def test_a_thread_without_a_frame_has_ended_and_waits_for_nothing(take):
    one, other, _, _ = ring()

    picture = take(one, other, frameless={2})

    assert states(picture) == {1: "blocked", 2: "ended"}
    assert [edge.actor for edge in picture.requests] == [1]


def test_a_holder_that_is_not_looked_at_is_listed(take):
    outside = Record(9, ended=True)
    waiter = Record(1, wait=waiting_for(Cell(10, (outside, CODE, 0, True))))

    picture = take(waiter, outside, only={1})

    assert states(picture) == {1: "blocked", 9: "ended"}


def test_a_stale_entry_of_the_held_stack_is_no_edge(take):
    other = Record(2)
    given_away = Cell(10, (other, CODE, 0, True))

    picture = take(Record(1, held=[given_away, Cell(20)]), other)

    assert picture.assignments == ()


def test_permits_are_edges_to_all_who_have_some(take):
    one, other, none = Record(1), Record(2), Record(3)
    cell = state.SyncCell("semaphore", threading.Semaphore(0))
    cell.holders = {one: 2, other: 1, none: 0}
    other.wait = waiting_for(cell)

    picture = take(one, other, none)

    assert [(e.holder, e.depth) for e in picture.assignments] == [(1, 2), (2, 1)]


def test_our_own_threads_are_told_apart(take):
    assert states(take(Record(1, agent=True))) == {1: "agent"}


def test_a_thread_that_did_nothing_tracked_is_listed_as_live(take, monkeypatch):
    picture = take(Record(1))
    monkeypatch.setattr(_real, "current_frames", lambda: {77: sys._getframe()})

    picture = snapshots.take(stacks=True)

    assert [(one.state, one.name) for one in picture.actors if one.serial > 10**8] == [("live", "thread-77")]


def test_stacks_are_read_for_whom_they_are_wanted(take):
    one, other, _, _ = ring()

    picture = take(one, other, stacks={1}, stack_limit=1)

    assert [len(actor.stack) for actor in picture.actors] == [1, 0]
    assert [len(actor.stack) for actor in take(one, other, stacks=True).actors] > [1, 1]


def test_who_waits_for_his_own_lock_is_said_to_release_it_or_not(take):
    me = Record(1)
    cell = Cell(10, (me, CODE, 0, False))
    me.held = [cell]
    me.wait = waiting_for(cell, token=(me, CODE, 0, True))

    picture = take(me)

    assert (picture.requests[0].discipline, picture.assignments[0].discipline) == ("owned", "bare")


def test_a_stack_runs_from_the_outermost_frame_and_leaves_ours_out():
    def inner():
        return snapshots.stack_frames(sys._getframe())

    frames = inner()

    assert [frame.function.rpartition(".")[2] for frame in frames[-2:]] == [
        "test_a_stack_runs_from_the_outermost_frame_and_leaves_ours_out",
        "inner",
    ]
    assert frames[-1] == StackFrame(__file__, inner.__code__.co_firstlineno + 1, frames[-1].function, frames[-1].source)
    assert frames[-1].source == "return snapshots.stack_frames(sys._getframe())"
    assert snapshots.is_own_code(snapshots.take.__code__)


def test_a_line_is_found_for_every_offset():
    code = snapshots.take.__code__

    lines = [snapshots.line_of(code, offset) for offset in range(0, len(code.co_code), 2)]

    assert min(lines) >= code.co_firstlineno
    assert snapshots.call_site(None, 0) is None


@pytest.mark.parametrize(
    ("kind", "target", "permits"),
    [
        ("semaphore", SimpleNamespace(_value=3), 3),
        ("semaphore", SimpleNamespace(), None),
        ("barrier", SimpleNamespace(_parties=3, _count=1), 2),
        ("barrier", SimpleNamespace(), None),
        ("event", SimpleNamespace(_value=3), None),
    ],
)
def test_permits_are_read_where_there_are_some(kind, target, permits):
    assert snapshots._permits(kind, target) == permits
