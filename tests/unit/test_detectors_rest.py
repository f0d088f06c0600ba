"""Orphans, misuses, long waits and holds."""

from __future__ import annotations

import pytest
from factories import actor, holds, resource, snapshot, waits

from concagent.detectors import misuse, orphan, slow

# ---------------------------------------------------------------- orphans


def orphaned(*edges, **changes):
    return snapshot(*edges, holds(9, 10), states={9: "ended"}, **changes)


def test_a_lock_of_an_ended_thread_is_orphaned():
    (finding,) = orphan.orphan_findings(orphaned(waits(1, 10)), frozenset({1}))

    assert (finding.kind, finding.confidence, finding.detail) == ("orphaned-lock", "proven", "owner terminated")
    assert {one.name: one.role for one in finding.actors} == {"worker-1": "member", "worker-9": "bystander"}
    assert finding.title == (
        "worker-1 waits for lock made at bank.py:10 in __init__, whose holder worker-9 has ended "
        "(acquired at bank.py:309 in work)"
    )


def test_several_who_wait_for_one_orphan_are_one_finding():
    picture = snapshot(waits(1, 10), waits(2, 10), holds(9, 10, site=None), states={9: "ended"})

    (finding,) = orphan.orphan_findings(picture, frozenset({1, 2}))

    assert (
        finding.title
        == "worker-1 and 1 more wait for lock made at bank.py:10 in __init__, whose holder worker-9 has ended"
    )


@pytest.mark.parametrize(
    ("picture", "asked"),
    [
        (orphaned(waits(1, 10, timed=True)), {1}),
        (orphaned(waits(1, 10)), set()),
        (orphaned(), {1}),
        (orphaned(waits(1, 10), resources=(resource(10, signal_mode=True),)), {1}),
        (orphaned(waits(1, 10), kinds={10: "semaphore"}), {1}),
        (snapshot(waits(1, 10), holds(9, 10)), {1}),
    ],
    ids=["timed", "not asked about", "nobody waits", "signal mode", "semaphore", "holder lives"],
)
def test_what_is_no_orphan_is_not_told(picture, asked):
    assert orphan.orphan_findings(picture, frozenset(asked)) == []


# ---------------------------------------------------------------- misuses


def test_a_double_release_names_the_lock_that_nobody_holds():
    picture = snapshot(actors=(actor(1),), resources=(resource(10, name="orders"),))

    finding = misuse.misuse_finding(picture, "double-release", 10, 1)

    assert finding.title == 'worker-1 releases lock "orders", which nobody holds'
    assert (finding.kind, finding.detail, finding.confidence) == ("misuse", "double-release", "proven")
    assert [one.id for one in finding.resources] == ["r10"]


def test_a_foreign_release_names_the_owner():
    finding = misuse.misuse_finding(
        snapshot(holds(2, 10), actors=(actor(1),), kinds={10: "rlock"}), "foreign-release", 10, 1
    )

    assert finding.title == "worker-1 releases rlock made at bank.py:10 in __init__, which worker-2 owns"
    assert {one.name: one.role for one in finding.actors} == {"worker-1": "member", "worker-2": "bystander"}


@pytest.mark.parametrize("detail", ["exit-held", "destroy-held"])
def test_a_lock_held_too_long_says_where_it_was_acquired(detail):
    finding = misuse.misuse_finding(snapshot(holds(1, 10)), detail, 10, 1)

    assert "(acquired at bank.py:301 in work)" in finding.title
    assert len(finding.actors) == 1


def test_a_misuse_without_sites_is_told_without_them():
    picture = snapshot(
        holds(1, 10, site=None), actors=(actor(1, stack=()),), resources=(resource(10, created=None, kind="lock"),)
    )

    assert misuse.misuse_finding(picture, "exit-held", 10, 1).title == "worker-1 ended while it still held lock"


def test_misuses_at_two_places_are_two_defects():
    one, other = (
        snapshot(actors=(actor(serial),), resources=(resource(10),)) for serial in (1, 2)
    )  # their stacks end in different lines

    found = [misuse.misuse_finding(p, "double-release", 10, s).fingerprint for p, s in ((one, 1), (other, 2))]

    assert found[0] != found[1]


# ---------------------------------------------------------------- long waits and holds


def test_a_long_wait_is_told_with_its_holder():
    picture = snapshot(waits(1, 10, since_ns=0, epoch=7), holds(2, 10))

    ((key, finding),) = slow.long_waits(picture, 10**9, ())

    assert key == (1, 7)
    assert (finding.kind, finding.confidence) == ("long-wait", "hint")
    assert finding.title == (
        "worker-1 has waited 1.0 s for lock made at bank.py:10 in __init__ held by worker-2 at bank.py:201 in work"
    )
    assert {one.name: one.role for one in finding.actors} == {"worker-1": "member", "worker-2": "bystander"}


def test_a_long_wait_without_a_site_for_what_it_holds_itself_has_no_bystander():
    picture = snapshot(waits(1, 10, since_ns=0, site=None), holds(1, 10))

    ((_, finding),) = slow.long_waits(picture, 10**9, ())

    assert finding.title.endswith("held by worker-1")
    assert len(finding.actors) == 1


@pytest.mark.parametrize(
    ("picture", "skip"),
    [
        (snapshot(waits(1, 10, since_ns=0, timed=True), holds(2, 10)), ()),
        (snapshot(waits(1, 10, since_ns=0), holds(2, 10)), [(1, 1)]),
        (snapshot(waits(1, 10, since_ns=0), holds(2, 10), kinds={10: "future"}), ()),
        (snapshot(waits(1, 10, since_ns=0), holds(2, 10), kinds={10: "process"}), ()),
        (snapshot(waits(1, 10, since_ns=1), holds(2, 10)), ()),
        (snapshot(waits(1, 10, since_ns=0), holds(2, 10), kinds={10: "thread"}), ()),
        (snapshot(waits(1, 10, since_ns=0), kinds={10: "queue"}), ()),
    ],
    ids=["timed", "told", "a future", "a process", "short", "a join", "nobody holds it"],
)
def test_what_is_no_long_wait_is_not_told(picture, skip):
    assert slow.long_waits(picture, 10**9, skip) == []


def test_a_long_hold_is_told_with_a_waiter():
    picture = snapshot(waits(1, 10), holds(2, 10, since_ns=10**8), monotonic_ns=11 * 10**8)

    ((key, finding),) = slow.long_holds(picture, 10**9, ())

    assert key == (10, 10**8)
    assert finding.title == (
        "worker-2 has held lock made at bank.py:10 in __init__ for 1.0 s, taken at bank.py:302 in work"
    )
    assert {one.name: one.role for one in finding.actors} == {"worker-2": "member", "worker-1": "behind"}


def test_a_long_hold_without_a_site_is_told_without_it():
    picture = snapshot(waits(1, 10), holds(2, 10, since_ns=1, site=None), monotonic_ns=10**9 + 1)

    ((_, finding),) = slow.long_holds(picture, 10**9, ())

    assert finding.title.endswith("for 1.0 s")


@pytest.mark.parametrize(
    ("edges", "options", "skip"),
    [
        ((waits(1, 10), holds(2, 10, since_ns=1)), {}, [(10, 1)]),
        ((waits(1, 10), holds(2, 10, since_ns=2)), {}, ()),
        ((holds(2, 10, since_ns=1),), {}, ()),
        ((waits(1, 10), holds(2, 10, since_ns=1)), {"states": {2: "ended"}}, ()),
        ((waits(1, 10), holds(2, 10, since_ns=0)), {}, ()),
        ((waits(1, 10), holds(2, 10, since_ns=None)), {}, ()),
        ((waits(1, 10), holds(2, 10, since_ns=1)), {"kinds": {10: "semaphore"}}, ()),
    ],
    ids=["told", "short", "nobody waits", "ended", "never stamped", "unknown", "semaphore"],
)
def test_what_is_no_long_hold_is_not_told(edges, options, skip):
    assert slow.long_holds(snapshot(*edges, monotonic_ns=10**9 + 1, **options), 10**9, skip) == []
