from __future__ import annotations

from dataclasses import replace

import pytest
from factories import actor, holds, resource, ring_of, site, snapshot, waits

from concagent.detectors import deadlock


def roles(finding):
    return {one.name: one.role for one in finding.actors}


# ---------------------------------------------------------------- what counts as proof


def test_a_ring_of_owned_holds_is_proven_though_others_live():
    assert deadlock.is_proven(ring_of(1, 2, states={3: "live"}), (1, 2))


def test_a_ring_of_locks_none_of_which_is_owned_is_proven():
    assert deadlock.ring_is_closed(ring_of(1, 2, discipline="bare", states={3: "live"}), (1, 2))


def test_one_hold_that_may_be_a_signal_among_owned_ones_proves_nothing_while_others_live():
    picture = snapshot(waits(1, 20), holds(1, 10, "bare"), waits(2, 10), holds(2, 20), states={3: "live"})

    assert not deadlock.is_proven(picture, (1, 2))


def test_a_bare_hold_in_a_ring_through_a_join_proves_nothing_while_others_live():
    edges = waits(1, 20), holds(2, 20), waits(2, 10), holds(1, 10, "bare")

    picture = snapshot(*edges, kinds={20: "thread"}, states={3: "live"})

    assert not deadlock.is_proven(picture, (1, 2))


@pytest.mark.parametrize("discipline", ["bare", "later"])
def test_a_thread_that_waits_for_its_own_lock_may_wait_for_a_signal(discipline):
    picture = snapshot(waits(1, 10), holds(1, 10, discipline), states={2: "live"})

    assert not deadlock.is_proven(picture, (1,))


def test_a_thread_that_waits_for_its_own_lock_is_proven_if_nobody_is_left():
    assert deadlock.is_proven(snapshot(waits(1, 10), holds(1, 10, "bare")), (1,))


def test_a_foreign_native_thread_is_somebody_left():
    picture = snapshot(waits(1, 10), holds(1, 10, "bare"), foreign_threads=1)

    assert not deadlock.is_proven(picture, (1,))


def test_a_ring_with_a_lock_that_is_free_by_now_is_not_closed():
    assert not deadlock.ring_is_closed(snapshot(waits(1, 10), waits(2, 10)), (1, 2))


# ---------------------------------------------------------------- findings of rings


def test_a_ring_finding_names_members_bystanders_and_edges():
    ring = ring_of(1, 2)

    finding = deadlock.ring_finding(snapshot(*ring.requests, *ring.assignments, waits(3, 10)), (1, 2))

    assert (finding.kind, finding.confidence, finding.resource_kind) == ("deadlock", "proven", "lock")
    assert roles(finding) == {"worker-1": "member", "worker-2": "member", "worker-3": "behind"}
    assert finding.title == (
        "deadlock of 2 threads: worker-1 waits for lock made at bank.py:20 in __init__ held by worker-2, "
        "worker-2 waits for lock made at bank.py:10 in __init__ held by worker-1"
    )
    assert finding.edges == (
        ("4711/t1", "waits", "r20"),
        ("4711/t2", "waits", "r10"),
        ("4711/t3", "waits", "r10"),
        ("r10", "held-by", "4711/t1"),
        ("r20", "held-by", "4711/t2"),
    )


def test_the_victim_is_named():
    finding = deadlock.ring_finding(ring_of(1, 2), (2, 1), victim=2)

    assert roles(finding) == {"worker-2": "victim", "worker-1": "member"}


def test_a_doubt_makes_the_finding_a_suspicion_and_is_its_reason():
    finding = deadlock.ring_finding(ring_of(1, 2), (1, 2), doubt="somebody may come")

    assert (finding.confidence, finding.reason) == ("suspected", "somebody may come")


def test_a_title_names_three_steps_of_a_long_ring():
    finding = deadlock.ring_finding(ring_of(1, 2, 3, 4, 5), (1, 2, 3, 4, 5))

    assert finding.title.startswith("deadlock of 5 threads: worker-1 waits")
    assert finding.title.endswith("held by worker-4, ... and 2 more")


def test_a_join_in_a_ring_is_told_as_a_join():
    picture = snapshot(waits(1, 20), holds(2, 20), waits(2, 10), holds(1, 10), kinds={20: "thread"})

    finding = deadlock.ring_finding(picture, (1, 2))

    assert "worker-1 joins worker-2, worker-2 waits for" in finding.title
    assert finding.resource_kind == "lock"
    assert "before join()" in finding.advice


def test_a_self_deadlock_says_where():
    finding = deadlock.ring_finding(snapshot(waits(1, 10), holds(1, 10)), (1,))

    assert finding.title == (
        "self-deadlock: worker-1 waits for lock made at bank.py:10 in __init__, which it holds itself at bank.py:201 in work"
    )
    assert "threading.RLock" in finding.advice


def test_a_self_deadlock_without_a_site_is_told_without_it():
    finding = deadlock.ring_finding(snapshot(waits(1, 10, site=None), holds(1, 10)), (1,))

    assert finding.title.endswith("which it holds itself")


def test_a_thread_that_waits_for_its_own_end_is_told_so():
    finding = deadlock.ring_finding(snapshot(waits(1, 10), holds(1, 10), kinds={10: "thread"}), (1,))

    assert finding.title == "self-deadlock: worker-1 waits for its own end at bank.py:201 in work"


def test_the_fingerprint_of_a_ring_does_not_depend_on_who_comes_first_or_on_who_is_behind():
    ring = ring_of(1, 2)
    longer = snapshot(*ring.requests, *ring.assignments, waits(3, 10))

    assert deadlock.ring_finding(ring, (1, 2)).fingerprint == deadlock.ring_finding(longer, (2, 1)).fingerprint


def test_names_of_locks_and_threads_are_those_of_the_program():
    picture = replace(
        snapshot(waits(1, 10), holds(1, 10), resources=(resource(10, name="orders"),)),
        actors=(actor(1, "blocked", name="MainThread"),),
    )

    finding = deadlock.ring_finding(picture, (1,))

    assert 'MainThread waits for lock "orders"' in finding.title
    assert finding.resources[0].holders[0].acquired == site(301)
