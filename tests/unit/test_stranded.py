"""Stranded waits: when the question is asked, and what is made of the answer; `reach` itself has tests of its own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from factories import actor, holds, signals, snapshot, waits

from concagent import core, reach, snapshots, stranded
from concagent.told import Told

SECOND = 10**9


class Asked:
    """Stands for the program: its threads' waits, and the answers to the reachability question."""

    def __init__(self, monkeypatch):
        self.told = []
        self.known = Told()
        self.questions = []
        self.reached = frozenset()
        self.complete = True
        self.now = None
        monkeypatch.setattr(core, "records", self.records)
        monkeypatch.setattr(core, "record_of_ident", lambda _ident: SimpleNamespace(serial=99))
        monkeypatch.setattr(snapshots, "take", lambda **_: self.now)
        monkeypatch.setattr(reach, "reached", self.answer)
        monkeypatch.setattr(reach, "signal_objects", lambda target: (target,))
        self.stranded = stranded.Stranded(5.0, self.tell, self.known)

    def records(self):
        return [
            SimpleNamespace(serial=edge.actor, ident=1000 + edge.actor, waiting=lambda edge=edge: self.wait(edge))
            for edge in self.now.requests
        ]

    def wait(self, edge):
        return SimpleNamespace(resource=SimpleNamespace(serial=edge.resource), user=object())

    def answer(self, targets, stuck, **limits):
        self.questions.append((sorted(targets), sorted(stuck), limits.get("node_limit")))
        paths = dict.fromkeys(self.reached, "module global m.x")
        return reach.Reach(self.reached & targets.keys(), self.complete, paths)

    def tell(self, actors, **words):
        self.told.append((sorted(actors), words))

    def look(self, picture, at=10 * SECOND):
        self.now = picture
        self.stranded.look(picture, at)

    def check(self, picture):
        self.now = picture
        self.stranded.check(picture)


@pytest.fixture
def asked(monkeypatch):
    return Asked(monkeypatch)


def picture(*edges, **fields):
    return snapshot(*edges, **{"monotonic_ns": 10 * SECOND, **fields})


ALONE = picture(waits(1, 10), kinds={10: "event"}, states={2: "live"})


def test_an_old_wait_for_what_nothing_refers_to_is_told_with_its_evidence(asked):
    asked.look(ALONE)

    ((actors, words),) = asked.told
    assert (actors, list(words)) == ([1], ["evidence"])
    assert asked.questions == [([10], [1001], 400_000)]


def test_what_something_refers_to_is_not_told(asked):
    asked.reached = frozenset({10})

    asked.look(ALONE)

    assert asked.told == []


def test_a_young_wait_is_not_asked_of(asked):
    asked.look(picture(waits(1, 10, since_ns=9 * SECOND), kinds={10: "event"}, states={2: "live"}))

    assert asked.questions == []


def test_a_timed_wait_is_not_asked_of(asked):
    asked.look(picture(waits(1, 10, timed=True), kinds={10: "event"}, states={2: "live"}))

    assert asked.questions == []


def test_a_walk_that_was_given_up_proves_nothing(asked):
    asked.complete = False

    asked.look(ALONE)

    assert asked.told == []


def test_the_main_thread_is_never_stranded(asked):
    asked.look(picture(waits(99, 10), kinds={10: "event"}, states={2: "live"}))

    assert asked.questions == []


def test_the_main_thread_behind_a_stranded_one_is_told(asked):
    asked.look(
        picture(waits(1, 10), waits(99, 20), holds(1, 20), kinds={10: "event", 20: "thread"}, states={2: "live"})
    )

    assert [actors for actors, _ in asked.told] == [[1, 99]]


def test_who_is_freed_by_what_is_reached_is_asked_no_more_and_his_frames_count_again(asked):
    asked.reached = frozenset({20})
    asked.look(picture(waits(1, 10), waits(2, 20), kinds={10: "event", 20: "event"}, states={3: "live"}))

    assert [question[1] for question in asked.questions] == [[1001, 1002], [1001]]
    assert [actors for actors, _ in asked.told] == [[1]]


def test_a_wait_that_is_over_when_the_walk_is_done_is_not_told(asked):
    asked.now = None
    later = picture(waits(1, 10, epoch=2), kinds={10: "event"}, states={2: "live"})
    asked.now = later
    asked.stranded.look(ALONE, 10 * SECOND)

    assert asked.told == []


def test_the_same_wait_is_asked_of_again_after_pauses_that_double(asked):
    asked.reached = frozenset({10})
    for second in range(10, 60):
        asked.look(ALONE, second * SECOND)

    assert len(asked.questions) == 4  # at 10, 15, 25 and 45 seconds


def test_a_new_wait_is_asked_of_at_once(asked):
    asked.reached = frozenset({10, 20})
    asked.look(ALONE)
    asked.look(picture(waits(1, 10), waits(2, 20), kinds={10: "event", 20: "event"}, states={3: "live"}), 11 * SECOND)

    assert len(asked.questions) == 2


def test_what_was_told_is_not_asked_of(asked):
    asked.known.add([(1, 1)], proven=True)

    asked.look(ALONE)

    assert asked.questions == []


# ---------------------------------------------------------------- on demand


def test_who_asks_is_told_a_suspicion_with_who_refers_to_it(asked):
    asked.reached = frozenset({10})

    asked.check(ALONE)

    ((actors, words),) = asked.told
    assert actors == [1]
    assert "module global m.x" in words["doubt"]
    assert asked.questions[0][2] is None


@pytest.mark.parametrize(
    "idle",
    [
        picture(waits(1, 10), waits(3, 10), kinds={10: "queue"}, states={2: "live"}),
        picture(waits(1, 10), kinds={10: "queue"}, actors=(actor(1, "blocked", daemon=True), actor(2))),
        picture(waits(1, 10, site=None), kinds={10: "queue"}, states={2: "live"}),
        picture(waits(1, 10), signals(2, 10), kinds={10: "queue"}, states={2: "live"}),
    ],
)
def test_a_worker_that_is_idle_is_not_suspected(asked, idle):
    asked.reached = frozenset({10})

    asked.check(idle)

    assert asked.told == []


def test_a_wait_for_a_lock_is_no_stall_to_be_suspected(asked):
    asked.reached = frozenset({10})

    asked.check(picture(waits(1, 10), holds(2, 10, "bare"), waits(2, 20), kinds={20: "event"}, states={3: "live"}))

    assert [actors for actors, _ in asked.told] == [[2]]
