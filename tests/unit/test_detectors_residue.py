from __future__ import annotations

from dataclasses import replace

from factories import actor, holds, resource, ring_of, signals, site, snapshot, waits

from concagent.detectors import deadlock, residue


def roles(finding):
    return {one.name: one.role for one in finding.actors}


# ---------------------------------------------------------------- findings of a residue


def findings_of(picture, stuck, known=(), **options):
    return residue.residue_findings(picture, frozenset(stuck), frozenset(known), **options)


def test_two_rings_are_two_findings():
    one, other = ring_of(1, 4), ring_of(2, 3)
    picture = snapshot(*one.requests, *one.assignments, *other.requests, *other.assignments)

    findings = findings_of(picture, {1, 2, 3, 4})

    assert [sorted(roles(finding)) for finding in findings] == [["worker-1", "worker-4"], ["worker-2", "worker-3"]]


def test_who_waits_but_goes_on_is_in_no_finding():
    picture = snapshot(waits(1, 10), waits(2, 20, timed=True), holds(1, 20), kinds={10: "event"})

    (finding,) = findings_of(picture, {1})

    assert roles(finding) == {"worker-1": "member"}


def test_only_those_on_the_circle_are_members():
    ring = ring_of(1, 2)
    picture = snapshot(*ring.requests, *ring.assignments, waits(3, 10), holds(3, 30), waits(4, 30))

    (finding,) = findings_of(picture, {1, 2, 3, 4})

    assert roles(finding) == {"worker-1": "member", "worker-2": "member", "worker-3": "behind", "worker-4": "behind"}
    assert (finding.kind, finding.confidence) == ("deadlock", "proven")
    assert finding.title.startswith("deadlock of 2 threads")


def test_a_ring_that_was_told_is_not_told_again_for_one_more_behind_it():
    ring = ring_of(1, 2)
    picture = snapshot(*ring.requests, *ring.assignments, waits(3, 10))

    assert findings_of(picture, {1, 2, 3}, known={1, 2}) == []


def test_a_group_that_was_told_is_not_told_again():
    picture = snapshot(waits(1, 10), kinds={10: "event"})

    assert findings_of(picture, {1}, known={1}) == []


def test_all_who_sleep_without_a_circle_are_one_stall():
    picture = snapshot(waits(1, 10), waits(2, 10), waits(3, 20), kinds={10: "event", 20: "condition"})

    (finding,) = findings_of(picture, {1, 2, 3})

    assert (finding.kind, finding.confidence, finding.resource_kind) == ("stall", "proven", "event")
    assert "stall of 3 threads: worker-1 waits for event" in finding.title
    assert finding.title.endswith("and 1 more, and nobody is left who could end it")


def test_who_waits_for_a_lock_of_a_sleeper_is_behind_the_stall():
    picture = snapshot(waits(1, 10), holds(1, 20), waits(2, 20), kinds={10: "event"})

    (finding,) = findings_of(picture, {1, 2})

    assert roles(finding) == {"worker-1": "member", "worker-2": "behind"}
    assert finding.title.startswith("stall of 1 thread: ")


def test_a_stall_of_nothing_but_locks_has_all_as_members():
    picture = snapshot(waits(1, 10), holds(9, 10), states={9: "ended"})

    (finding,) = findings_of(picture, {1})

    assert roles(finding) == {"worker-1": "member"}


def test_a_circle_through_permits_is_a_suspicion_with_its_reason():
    edges = waits(1, 10), holds(1, 20), holds(2, 10), waits(2, 20)
    picture = snapshot(*edges, waits(5, 50), kinds={10: "semaphore", 50: "event"}, states={3: "live"})

    (finding,) = findings_of(picture, {1, 2, 5}, suspected=True)

    assert (finding.kind, finding.confidence, finding.resource_kind) == ("deadlock", "suspected", "semaphore")
    assert finding.reason.startswith("every permit is held by a thread that is stuck here")


def test_a_doubt_about_a_residue_makes_it_a_suspicion():
    (finding,) = findings_of(snapshot(waits(1, 10), kinds={10: "event"}), {1}, doubt="a handler may set it")

    assert (finding.confidence, finding.reason) == ("suspected", "a handler may set it")


def test_fifty_of_those_behind_are_named_and_no_more():
    ring = ring_of(1, 2)
    queue = [waits(serial, 10) for serial in range(3, 100)]
    picture = snapshot(*ring.requests, *ring.assignments, *queue)

    (finding,) = findings_of(picture, range(1, 100))

    assert len(finding.actors) == len(deadlock.ring_finding(picture, (1, 2)).actors) == 52


# ---------------------------------------------------------------- circles through signals


def test_who_needs_a_lock_of_the_waiter_to_come_to_its_put_closes_a_circle():
    picture = snapshot(
        waits(1, 10),
        holds(1, 20),
        waits(2, 20),
        waits(3, 20),
        resources=(resource(10, "queue", detail="full, 1 of 1"),),
        actors=(actor(2, "blocked", calls=("get",)), actor(3, "blocked", calls=("put", "release"))),
    )

    (finding,) = findings_of(picture, {1, 2, 3})

    assert (finding.kind, finding.confidence) == ("deadlock", "proven")
    assert roles(finding) == {"worker-1": "member", "worker-2": "member", "worker-3": "behind"}
    assert "(full, 1 of 1)" in finding.title
    assert finding.title.endswith("and each could go on only after another")


def test_who_has_given_the_signal_before_is_known_and_no_guess_is_made():
    picture = snapshot(
        waits(1, 10),
        holds(1, 20),
        waits(2, 20),
        waits(3, 20),
        signals(3, 10),
        kinds={10: "event"},
        actors=(actor(2, "blocked", calls=("set",)), actor(3, "blocked")),
    )

    (finding,) = findings_of(picture, {1, 2, 3})

    assert roles(finding) == {"worker-1": "member", "worker-3": "member", "worker-2": "behind"}


def test_a_join_makes_no_circle_of_a_wait_for_a_signal():
    picture = snapshot(waits(1, 10), waits(2, 20), holds(1, 20), signals(2, 10), kinds={10: "queue", 20: "thread"})

    (finding,) = findings_of(picture, {1, 2})

    assert (finding.kind, roles(finding)) == ("stall", {"worker-1": "member", "worker-2": "behind"})


def test_a_circle_through_known_signallers_is_a_suspicion_while_others_live():
    picture = snapshot(
        waits(1, 10), holds(1, 20), waits(2, 20), signals(2, 10), kinds={10: "queue"}, states={3: "live"}
    )

    (finding,) = findings_of(picture, {1, 2}, suspected=True)

    assert (finding.kind, finding.confidence) == ("deadlock", "suspected")
    assert finding.reason.startswith("whoever has ended such waits so far is stuck here")


def test_all_holders_of_the_permits_are_in_the_circle():
    picture = snapshot(
        *(waits(1, 20), holds(1, 10), waits(2, 30), holds(2, 10), waits(3, 10), holds(3, 20)),
        kinds={10: "semaphore", 30: "event"},
        actors=(actor(3, "blocked", calls=("set",)),),
    )

    (finding,) = findings_of(picture, {1, 2, 3})

    assert (finding.kind, set(roles(finding).values())) == ("deadlock", {"member"})


def test_two_circles_that_a_path_joins_are_two_findings():
    one, other = ring_of(1, 2), ring_of(4, 5)
    picture = snapshot(*one.requests, *one.assignments, *other.requests, *other.assignments, waits(3, 10), holds(3, 60))

    assert len(findings_of(picture, {1, 2, 3, 4, 5})) == 2


def test_how_a_proof_was_found_is_told_as_its_reason():
    (finding,) = findings_of(snapshot(waits(1, 10), kinds={10: "event"}), {1}, evidence="nothing refers to it")

    assert (finding.confidence, finding.reason) == ("proven", "nothing refers to it")


def test_a_stall_of_tasks_is_told_as_one_of_tasks():
    task = actor(1, "blocked")
    picture = snapshot(
        waits(1, 10), kinds={10: "event"}, actors=(type(task)(1, "task", 1, None, "t", False, "blocked"),)
    )

    assert "stall of 1 task:" in findings_of(picture, {1})[0].title


def test_a_queue_needs_what_its_state_says():
    assert residue.verbs(resource(1, "queue", detail="full, 1 of 1")) == {"get", "get_nowait"}
    assert residue.verbs(resource(1, "queue", detail="empty")) == {"put", "put_nowait"}
    assert residue.verbs(resource(1, "queue", detail="2 tasks not done")) == {"task_done"}
    assert residue.verbs(resource(1, "queue")) == {"get", "get_nowait", "put", "put_nowait"}
    assert not residue.verbs(resource(1, "lock"))


def test_two_who_wait_for_room_in_each_others_queue_are_a_circle():
    full = [resource(serial, "queue", detail="full, 1 of 1") for serial in (10, 20)]
    both = (actor(1, "blocked", calls=("get", "put")), actor(2, "blocked", calls=("get", "put")))

    (finding,) = findings_of(snapshot(waits(1, 10), waits(2, 20), resources=tuple(full), actors=both), {1, 2})

    assert (finding.kind, finding.resource_kind) == ("deadlock", "queue")


def test_two_who_only_put_into_a_full_queue_are_a_stall():
    full = (resource(10, "queue", detail="full, 1 of 1"),)
    both = (actor(1, "blocked", calls=("put",)), actor(2, "blocked", calls=("put",)))

    (finding,) = findings_of(snapshot(waits(1, 10), waits(2, 10), resources=full, actors=both), {1, 2})

    assert finding.kind == "stall"


def test_the_other_holder_of_a_permit_is_a_member_though_it_waits_for_a_signal():
    picture = snapshot(
        *(waits(1, 20), holds(1, 10), waits(2, 30), holds(2, 10), waits(3, 10), holds(3, 20)),
        kinds={10: "semaphore", 30: "event"},
    )

    (finding,) = findings_of(picture, {1, 2, 3})

    assert roles(finding) == dict.fromkeys(("worker-1", "worker-2", "worker-3"), "member")


def test_who_waits_for_the_end_of_a_sleeper_is_behind_it():
    picture = snapshot(
        waits(1, 10),
        waits(2, 20),
        holds(1, 20),
        resources=(resource(20, "thread", ended_by="all-holders"),),
        kinds={10: "event"},
    )

    (finding,) = findings_of(picture, {1, 2})

    assert roles(finding) == {"worker-1": "member", "worker-2": "behind"}


def test_five_thousand_in_one_circle_are_found_without_recursion():
    (finding,) = findings_of(ring_of(*range(1, 5001)), range(1, 5001))

    assert len(finding.actors) == 5000


# ---------------------------------------------------------------- tasks


def tasks_crossed(semaphore, **fields):
    first, second = (replace(actor(10**9 + n, "blocked"), type="task") for n in (1, 2))
    one, two = first.serial, second.serial
    edges = [waits(one, 20), holds(one, 10), waits(two, 10), holds(two, 20), *fields.pop("more", ())]
    kinds = (resource(10, semaphore, ended_by="signal"), resource(20, semaphore, ended_by="signal"))
    return snapshot(*edges, actors=(first, second), resources=kinds, **fields), {one, two}


def test_tasks_that_wait_for_each_others_permits_are_a_deadlock_also_if_there_may_be_more():
    picture, stuck = tasks_crossed("asyncio-semaphore")

    (finding,) = findings_of(picture, stuck)

    assert (finding.kind, finding.confidence) == ("deadlock", "proven")


def test_the_thread_of_their_loop_is_behind_them():
    picture, stuck = tasks_crossed("asyncio-semaphore", more=[waits(3, 30)], kinds={30: "event-loop"})

    (finding,) = findings_of(picture, stuck | {3})

    assert roles(finding) == {"worker-1000000001": "member", "worker-1000000002": "member", "worker-3": "behind"}


# ---------------------------------------------------------------- who waits for what only he himself would do


def lonely(**fields):
    edges = [waits(1, 10), waits(2, 20), holds(1, 20), *fields.pop("more", ())]
    return snapshot(*edges, kinds={10: "event", 20: "thread", **fields.pop("kinds", {})}, **fields)


def test_who_would_set_his_own_event_later_is_a_deadlock_of_one():
    (finding,) = findings_of(lonely(), {1, 2}, own={1: site(13, "read")})

    assert roles(finding) == {"worker-1": "member", "worker-2": "behind"}
    assert (finding.kind, finding.confidence) == ("deadlock", "proven")
    assert "which only itself would do later (bank.py:13 in read)" in finding.title
    assert "current_thread()" in finding.advice


def test_if_somebody_else_would_set_it_too_it_is_a_stall():
    other = actor(3, "blocked", calls=("set",))
    picture = lonely(more=[waits(3, 30)], kinds={30: "event"}, actors=(other,))

    (finding,) = findings_of(picture, {1, 2, 3}, own={1: site(13, "read")})

    assert finding.kind == "stall"


def test_a_known_signaller_comes_before_ones_own_later_code():
    picture = lonely(more=[waits(3, 30), signals(3, 10)], kinds={30: "event"})

    (finding,) = findings_of(picture, {1, 2, 3}, own={1: site(13, "read")})

    assert finding.kind == "stall"
