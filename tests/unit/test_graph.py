"""Rings, reduction and graphs against oracles that try everything, and by example.

By hand, the cost of a large picture:  .venv/bin/python tests/unit/test_graph.py
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise

import pytest
from factories import actor, holds, resource, ring_of, signals, snapshot, waits
from hypothesis import given
from hypothesis import strategies as st

from concagent import graph
from concagent.errors import InvariantError
from concagent.model import SINGLE_HOLDER_KINDS, CallSite, Snapshot

# ---------------------------------------------------------------- rings, by example


def test_two_threads_in_opposite_order_form_one_ring():
    assert graph.find_rings(ring_of(1, 2)) == ((1, 2),)


def test_a_ring_is_told_in_waiting_order_from_its_smallest_member():
    picture = ring_of(5, 3, 9)

    assert graph.find_rings(picture) == ((3, 9, 5),)


def test_two_rings_are_two():
    one, other = ring_of(1, 4), ring_of(2, 3)

    picture = snapshot(*one.requests, *one.assignments, *other.requests, *other.assignments)

    assert graph.find_rings(picture) == ((1, 4), (2, 3))


def test_a_thread_that_waits_for_what_it_holds_is_a_ring_of_one():
    assert graph.find_rings(snapshot(waits(1, 10), holds(1, 10))) == ((1,),)


def test_who_waits_for_a_member_is_behind_the_ring_and_not_in_it():
    ring = ring_of(1, 2)

    lasso = snapshot(*ring.requests, *ring.assignments, waits(3, 10), holds(3, 30), waits(4, 30))

    assert graph.find_rings(lasso) == ((1, 2),)
    assert graph.behind(lasso, (1, 2)) == (3, 4)


def test_a_timed_member_makes_no_ring():
    ring = ring_of(1, 2)

    picture = snapshot(*(replace(edge, timed=edge.actor == 1) for edge in ring.requests), *ring.assignments)

    assert graph.find_rings(picture) == ()


def test_a_lock_in_signal_mode_makes_no_ring():
    picture = ring_of(1, 2, resources=(resource(10, signal_mode=True),))

    assert graph.find_rings(picture) == ()


def test_a_semaphore_makes_no_ring():
    assert graph.find_rings(ring_of(1, 2, kinds={10: "semaphore"})) == ()


def test_a_member_that_has_ended_makes_no_ring():
    picture = snapshot(waits(1, 20), holds(1, 10), holds(2, 20), states={2: "ended"})

    assert graph.find_rings(picture) == ()
    assert graph.successors(picture) == {}


def test_two_threads_that_join_each_other_are_a_ring():
    picture = snapshot(waits(1, 20), holds(2, 20), waits(2, 10), holds(1, 10), kinds={10: "thread", 20: "thread"})

    assert graph.find_rings(picture) == ((1, 2),)


# ---------------------------------------------------------------- reduction, by example


def test_a_chain_that_ends_with_a_live_thread_is_not_stuck():
    assert graph.reduce(snapshot(waits(1, 20), holds(2, 20), waits(2, 30), holds(3, 30))) == frozenset()


def test_a_ring_and_who_is_behind_it_are_stuck_though_others_live():
    ring = ring_of(1, 2)

    picture = snapshot(*ring.requests, *ring.assignments, waits(3, 10), states={4: "live"})

    assert graph.reduce(picture) == {1, 2, 3}


def test_a_timed_waiter_is_never_deadlocked():
    ring = ring_of(1, 2)

    picture = snapshot(*(replace(edge, timed=edge.actor == 1) for edge in ring.requests), *ring.assignments)

    assert graph.reduce(picture) == frozenset()


def test_an_unknown_holder_may_release():
    assert graph.reduce(snapshot(waits(1, 10))) == frozenset()


def test_a_holder_that_has_ended_releases_nothing():
    assert graph.reduce(snapshot(waits(1, 10), holds(2, 10), states={2: "ended"})) == {1}


def test_a_holder_that_the_picture_shows_in_no_wait_goes_on():
    picture = snapshot(waits(1, 10), holds(2, 10), states={2: "blocked"})

    assert graph.reduce(picture) == frozenset()


def test_what_a_callback_on_our_own_thread_holds_it_releases():
    assert graph.reduce(snapshot(waits(1, 10), holds(2, 10), states={2: "agent"})) == frozenset()


def test_a_callback_on_our_own_thread_that_is_stuck_is_not_counted():
    picture = snapshot(waits(1, 10), holds(2, 10), waits(2, 20), holds(1, 20), states={2: "agent"})

    assert graph.reduce(picture) == {1}


def test_our_own_threads_signal_nobody():
    assert graph.reduce(snapshot(waits(1, 10), kinds={10: "event"}, states={2: "agent"})) == {1}


def test_any_live_thread_may_set_an_event():
    picture = snapshot(waits(1, 10), kinds={10: "event"}, states={2: "live"})

    assert graph.reduce(picture) == frozenset()
    assert graph.reduce(picture, signals=False) == frozenset()


def test_an_event_that_nobody_is_left_to_set_is_waited_for_forever():
    assert graph.reduce(snapshot(waits(1, 10), waits(2, 10), kinds={10: "event"})) == {1, 2}


def test_one_holder_of_a_semaphore_that_goes_on_is_enough():
    picture = snapshot(waits(1, 10), holds(1, 20), holds(2, 10), waits(2, 20), holds(3, 10), kinds={10: "semaphore"})

    assert graph.reduce(picture, signals=False) == frozenset()


def test_permits_all_with_stuck_threads_are_a_suspicion_while_others_live():
    edges = waits(1, 10), holds(1, 20), holds(2, 10), waits(2, 20)

    picture = snapshot(*edges, kinds={10: "semaphore"}, states={3: "live"})

    assert graph.reduce(picture) == frozenset()
    assert graph.reduce(picture, signals=False) == {1, 2}


def test_a_free_permit_ends_the_wait():
    picture = snapshot(waits(1, 10), holds(2, 10), waits(2, 10), resources=(resource(10, "semaphore", permits=1),))

    assert graph.reduce(picture) == frozenset()


def test_a_semaphore_without_known_holders_may_be_released_by_anybody():
    picture = snapshot(waits(1, 10), kinds={10: "semaphore"}, states={2: "live"})

    assert graph.reduce(picture, signals=False) == frozenset()


def test_a_bare_lock_may_be_released_by_a_live_third_thread():
    picture = ring_of(1, 2, discipline="bare", states={3: "live"})

    assert graph.reduce(picture) == frozenset()
    assert graph.reduce(picture, signals=False) == {1, 2}


def test_a_bare_lock_is_released_by_nobody_if_nobody_is_left():
    assert graph.reduce(ring_of(1, 2, discipline="bare")) == {1, 2}


def test_a_lock_in_signal_mode_may_be_released_by_a_live_third_thread():
    picture = snapshot(waits(1, 10), resources=(resource(10, signal_mode=True),), states={2: "live"})

    assert graph.reduce(picture, signals=False) == frozenset()


def test_a_lock_in_signal_mode_is_released_by_nobody_if_nobody_is_left():
    assert graph.reduce(snapshot(waits(1, 10), resources=(resource(10, signal_mode=True),))) == {1}


@pytest.mark.parametrize(
    ("hold", "habit", "answer"),
    [
        ("owned", "bare", False),
        ("bare", "bare", True),
        ("bare", "owned", True),
        ("later", "bare", True),  # acquire(); start(thread); acquire(); release()
        ("later", "later", False),
        ("later", "owned", False),
        ("finally", "bare", True),  # acquire(); try: start(thread); acquire() finally: release()
        ("finally", "later", True),
        ("finally", "finally", False),
        ("finally", "owned", False),
    ],
)
def test_who_waits_for_his_own_lock_may_wait_for_a_signal_unless_he_releases_twice(hold, habit, answer):
    assert graph.may_be_signal(waits(1, 10, discipline=habit), holds(1, 10, hold)) is answer


def test_a_lock_held_under_try_and_awaited_in_another_function_is_no_signal():
    request = waits(1, 10, site=CallSite("a.py", 9, "inner"))
    hold = holds(1, 10, "finally", site=CallSite("a.py", 3, "outer"))

    assert not graph.may_be_signal(request, hold)


def test_a_lock_that_another_thread_releases_later_is_no_signal():
    assert not graph.may_be_signal(waits(1, 10), holds(2, 10, "later"))


@pytest.mark.parametrize("edge", [waits(9, 10), waits(1, 99)])
def test_an_edge_to_somebody_unlisted_is_a_bug_of_ours(edge):
    good = snapshot(waits(1, 10), holds(2, 10))

    with pytest.raises(InvariantError, match="P1"):
        graph.reduce(replace(good, requests=(edge,)))


# ---------------------------------------------------------------- invariants


def test_a_picture_by_the_rules_passes():
    graph.check_invariants(ring_of(1, 2))


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"actors": (actor(2), actor(1))}, "P3"),
        ({"actors": (actor(1), actor(1), actor(2))}, "P3"),
        ({"resources": (resource(20), resource(10))}, "P3"),
        ({"requests": (waits(1, 10), waits(1, 20))}, "P2"),
        ({"requests": (waits(3, 10),)}, "P1"),
        ({"assignments": (holds(1, 30),)}, "P1"),
    ],
)
def test_a_picture_against_a_rule_is_refused(changes, rule):
    picture = replace(ring_of(1, 2), **changes)

    with pytest.raises(InvariantError, match=rule):
        graph.check_invariants(picture)


# ---------------------------------------------------------------- random pictures

KINDS = ("lock", "rlock", "thread", "semaphore", "condition", "event", "barrier", "future")
ENDED_BY = {"future": ("any-holder", "signal"), "lock": (None, None, None, "all-holders")}
DISCIPLINES = ("owned", "finally", "later", "bare")


@st.composite
def pictures(draw) -> Snapshot:
    """Up to five actors; each waits for at most one of up to four resources."""
    actors = range(1, 1 + draw(st.integers(1, 5)))
    resources = []
    edges = []
    for serial in range(10, 10 + draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(KINDS))
        permits = draw(st.sampled_from((0, 0, 1))) if kind == "semaphore" else None
        ended_by = draw(st.sampled_from(ENDED_BY.get(kind, (None,))))
        mode = draw(st.sampled_from((False, False, True)))
        resources.append(resource(serial, kind, signal_mode=mode, permits=permits, ended_by=ended_by))
        most = 1 if resources[-1].ends == "holder" else 3
        holders = draw(st.sets(st.sampled_from(actors), max_size=most))
        edges += [holds(holder, serial, draw(st.sampled_from(DISCIPLINES))) for holder in holders]
        edges += [signals(one, serial) for one in draw(st.sets(st.sampled_from(actors), max_size=2))]
    states = {}
    for serial in actors:
        states[serial] = draw(st.sampled_from(("blocked", "blocked", "blocked", "live", "timed", "ended", "agent")))
        if draw(st.booleans()) or states[serial] == "blocked":
            wanted = draw(st.sampled_from(resources)).serial
            timed = states[serial] == "timed"
            edges.append(waits(serial, wanted, timed=timed, discipline=draw(st.sampled_from(DISCIPLINES))))
    return snapshot(*edges, states=states, resources=tuple(resources))


def follows(picture: Snapshot) -> set[tuple[int, int]]:
    """Return (waiter, holder) as the definition says it, edge by edge."""
    return {
        (request.actor, held.holder)
        for request in picture.requests
        for held in picture.assignments
        if held.resource == request.resource
        and picture.resource(held.resource).kind in SINGLE_HOLDER_KINDS
        and not picture.resource(held.resource).signal_mode
        and not request.timed
        and picture.actor(held.holder).state != "ended"
    }


def closure(pairs: set[tuple[int, int]]) -> set[tuple[int, int]]:
    while True:
        more = pairs | {(a, d) for a, b in pairs for c, d in pairs if b == c}
        if more == pairs:
            return pairs
        pairs = more


@given(pictures())
def test_rings_are_the_sets_of_actors_that_reach_each_other(picture):
    reach = closure(follows(picture))
    members = {a for a, b in reach if a == b}

    rings = graph.find_rings(picture)

    expected = {frozenset(b for b in members if (a, b) in reach and (b, a) in reach) for a in members}
    assert {frozenset(ring) for ring in rings} == expected
    assert sum(map(len, rings)) == len(members)
    for ring in rings:
        assert ring[0] == min(ring)
        assert {*zip(ring, [*ring[1:], ring[0]], strict=True)} <= follows(picture)
    assert list(rings) == sorted(rings)


@given(pictures(), st.sets(st.integers(1, 5)))
def test_behind_are_the_others_that_reach_a_member(picture, members):
    reach = closure(follows(picture))

    found = graph.behind(picture, members)

    assert found == tuple(sorted({a for a, b in reach if b in members} - members))


def can_go_on(picture: Snapshot, serial: int, freed: frozenset[int], sharp: bool, reached: set[int] | None) -> bool:
    """Return whether one actor can go on, once those in ``freed`` have released everything."""
    state = picture.actor(serial).state
    request = next((edge for edge in picture.requests if edge.actor == serial), None)
    if state == "ended":
        return False
    if state in ("live", "timed") or request is None or request.timed:
        return True
    wanted = picture.resource(request.resource)
    held_by = [edge for edge in picture.assignments if edge.resource == wanted.serial]
    known = [edge.actor for edge in picture.signals if edge.resource == wanted.serial]
    somebody = any(picture.actor(other).state != "agent" for other in freed)
    in_reach = reached is None or wanted.serial in reached
    let_go = [edge.holder in freed for edge in held_by]
    if let_go and (all(let_go) if wanted.ends == "all-holders" else any(let_go)):
        return True
    if wanted.ends != "holder" and in_reach and any(one in freed for one in known):
        return True
    if wanted.ends in ("holder", "all-holders"):
        if not held_by and not wanted.signal_mode:
            return True
        may = not sharp and any(graph.may_be_signal(request, edge) for edge in held_by)
        return somebody and in_reach and (wanted.signal_mode or may)
    if wanted.ends == "any-holder" and wanted.permits:
        return True
    if wanted.ends == "any-holder" and held_by and (sharp or wanted.kind == "future"):
        return somebody and in_reach and wanted.signal_mode
    return somebody and in_reach and not (sharp and known)


def freed_by_some_order(picture: Snapshot, sharp: bool, reached: set[int] | None) -> set[int]:
    """Try every order in which actors can go on."""
    seen: set[frozenset[int]] = set()
    work = [frozenset()]
    while work:
        freed = work.pop()
        if freed not in seen:
            seen.add(freed)
            left = {one.serial for one in picture.actors} - freed
            work += [freed | {serial} for serial in left if can_go_on(picture, serial, freed, sharp, reached)]
    return set().union(*seen)


within_reach = st.none() | st.sets(st.integers(10, 13))


@given(pictures(), st.booleans(), within_reach)
def test_the_residue_is_who_is_freed_by_no_order_of_releases(picture, sharp, reached):
    freed = freed_by_some_order(picture, sharp, reached)

    residue = graph.reduce(picture, signals=not sharp, reached=reached)

    assert residue == {one.serial for one in picture.actors if one.state == "blocked"} - freed


@given(pictures(), st.booleans(), within_reach)
def test_r1_who_could_end_a_wait_of_the_residue_is_in_it_or_has_ended(picture, sharp, reached):
    residue = graph.reduce(picture, signals=not sharp, reached=reached)

    gone_on = frozenset(freed_by_some_order(picture, sharp, reached))

    requests = {edge.actor: edge for edge in picture.requests}
    assert all(not requests[serial].timed for serial in residue)
    assert not any(can_go_on(picture, serial, gone_on, sharp, reached) for serial in residue)


@given(pictures(), st.booleans(), within_reach, st.data())
def test_r2_one_more_live_actor_makes_the_residue_no_larger(picture, sharp, reached, data):
    revived = data.draw(st.sampled_from(picture.actors))
    actors = tuple(replace(one, state="live") if one is revived else one for one in picture.actors)

    residue = graph.reduce(replace(picture, actors=actors), signals=not sharp, reached=reached)

    assert residue <= graph.reduce(picture, signals=not sharp, reached=reached)


@given(pictures(), st.booleans(), st.data())
def test_r2_a_missed_edge_makes_the_residue_no_larger(picture, sharp, data):
    single = {r.serial for r in picture.resources if r.has_one_holder}
    missable = [*picture.requests, *(edge for edge in picture.assignments if edge.resource in single)]
    missed = data.draw(st.sampled_from(missable)) if missable else None
    requests = tuple(edge for edge in picture.requests if edge is not missed)
    assignments = tuple(edge for edge in picture.assignments if edge is not missed)

    residue = graph.reduce(replace(picture, requests=requests, assignments=assignments), signals=not sharp)

    assert residue <= graph.reduce(picture, signals=not sharp)


@given(pictures(), st.sets(st.integers(10, 13)), st.integers(10, 13))
def test_r2_one_more_resource_within_reach_makes_the_residue_no_larger(picture, reached, one_more):
    residue = graph.reduce(picture, reached=reached | {one_more})

    assert residue <= graph.reduce(picture, reached=reached)


@given(pictures())
def test_with_everything_within_reach_the_answer_is_that_without_the_question(picture):
    assert graph.reduce(picture, reached={one.serial for one in picture.resources}) == graph.reduce(picture)


@given(pictures())
def test_who_is_left_with_signals_is_left_without_them(picture):
    assert graph.reduce(picture) <= graph.reduce(picture, signals=False)


def test_a_future_that_one_of_two_workers_will_run_waits_for_either():
    queued = resource(10, "future", ended_by="any-holder")
    edges = [waits(1, 10), holds(2, 10), holds(3, 10), waits(2, 20), holds(1, 20)]

    assert graph.reduce(snapshot(*edges, states={3: "live"}, resources=(queued,))) == frozenset()
    assert graph.reduce(snapshot(*edges, waits(3, 20), states={4: "live"}, resources=(queued,))) == {1, 2, 3}


def test_a_writer_waits_for_all_readers():
    readers = resource(10, "lock", ended_by="all-holders")
    edges = [waits(1, 10), holds(2, 10), holds(3, 10), waits(2, 20), holds(1, 20)]

    assert graph.reduce(snapshot(*edges, states={3: "live"}, resources=(readers,))) == {1, 2}
    assert graph.reduce(snapshot(waits(1, 10), holds(2, 10), holds(3, 10), resources=(readers,))) == frozenset()


def test_an_event_that_nobody_alive_refers_to_is_waited_for_forever():
    picture = snapshot(waits(1, 10), kinds={10: "event"}, states={2: "live"})

    assert graph.reduce(picture, reached=()) == {1}
    assert graph.reduce(picture, reached={10}) == frozenset()


def test_a_known_signaller_that_is_stuck_is_a_suspicion_while_others_live():
    picture = snapshot(
        waits(1, 10), signals(2, 10), waits(2, 20), holds(1, 20), kinds={10: "queue"}, states={3: "live"}
    )

    assert graph.reduce(picture) == frozenset()
    assert graph.reduce(picture, signals=False) == {1, 2}


def test_a_known_signaller_that_goes_on_is_enough():
    picture = snapshot(waits(1, 10), signals(2, 10), kinds={10: "queue"}, states={2: "live"})

    assert graph.reduce(picture, signals=False) == frozenset()


@given(pictures())
def test_a_ring_of_owned_locks_is_in_the_residue(picture):
    owned = replace(picture, assignments=tuple(replace(edge, discipline="owned") for edge in picture.assignments))
    blocked = {one.serial for one in picture.actors if one.state == "blocked"}

    rings = [ring for ring in graph.find_rings(owned) if blocked.issuperset(ring)]

    assert {serial for ring in rings for serial in ring} <= graph.reduce(owned)


serials = st.integers(1, 3)


@given(
    st.lists(serials, max_size=3),
    st.lists(serials, max_size=3),
    st.lists(st.tuples(serials, serials), max_size=3),
    st.lists(st.tuples(serials, serials), max_size=3),
)
def test_the_check_refuses_just_what_breaks_a_rule(actors, resources, requests, assignments):
    picture = replace(
        snapshot(),
        actors=tuple(map(actor, actors)),
        resources=tuple(map(resource, resources)),
        requests=tuple(waits(*pair) for pair in requests),
        assignments=tuple(holds(*pair) for pair in assignments),
    )
    good = (
        all(a < b for a, b in pairwise(actors))
        and all(a < b for a, b in pairwise(resources))
        and all(a in actors and r in resources for a, r in requests + assignments)
        and all(one[0] != other[0] for i, one in enumerate(requests) for other in requests[:i])
    )

    try:
        graph.check_invariants(picture)
        passed = True
    except InvariantError:
        passed = False

    assert passed == good


# ---------------------------------------------------------------- networkx


@given(pictures())
def test_the_resource_allocation_graph_has_every_node_and_edge(picture):
    rag = graph.resource_allocation_graph(picture)

    names = {one.serial: one.id for one in (*picture.actors, *picture.resources)}
    assert set(rag.nodes) == set(names.values())
    waiting = {(names[e.actor], names[e.resource], "waits") for e in picture.requests}
    held = {(names[e.resource], names[e.holder], "held-by") for e in picture.assignments}
    assert {(a, b, data["edge"]) for a, b, data in rag.edges(data=True)} == waiting | held


@given(pictures())
def test_the_wait_for_graph_is_the_resource_allocation_graph_without_resources(picture):
    wfg = graph.wait_for_graph(picture)

    names = {one.serial: one.id for one in picture.actors}
    expected = {
        (names[e.actor], names[h.holder], f"r{e.resource}")
        for e in picture.requests
        for h in picture.assignments
        if h.resource == e.resource
    }
    assert set(wfg.nodes) == set(names.values())
    assert {(a, b, data["resource"]) for a, b, data in wfg.edges(data=True)} == expected


def test_edges_of_the_graphs_say_what_they_are():
    picture = snapshot(waits(1, 10, site=None), holds(2, 10, site=None, depth=3), waits(2, 20), holds(1, 20))

    rag = graph.resource_allocation_graph(picture)
    wfg = graph.wait_for_graph(picture)

    assert rag.edges["4711/t1", "r10"] == {"edge": "waits", "timed": False, "since_ns": 1_000, "site": None}
    assert rag.edges["r10", "4711/t2"] == {"edge": "held-by", "depth": 3, "site": None}
    assert rag.edges["4711/t2", "r20"]["site"] == "/srv/shop/bank.py:202 in work"
    assert rag.edges["r20", "4711/t1"]["site"] == "/srv/shop/bank.py:301 in work"
    assert rag.nodes["r10"] == {"node": "resource", "name": None, "kind": "lock"}
    assert rag.nodes["4711/t1"] == {"node": "actor", "name": "worker-1", "state": "blocked", "type": "thread"}
    assert wfg.edges["4711/t1", "4711/t2"] == {"resource": "r10", "timed": False}


# ---------------------------------------------------------------- cost


def large_pictures() -> dict[str, Snapshot]:
    """5,000 blocked actors and 100,000 resources, in the shapes that punish whoever scans or recurses."""
    count, step = 5_000, 20
    kinds = dict.fromkeys(range(100_000, 200_000), "lock")

    def lock(number: int) -> int:
        return 100_000 + step * number

    chain = [edge for n in range(count) for edge in (waits(n, lock(n + 1)), holds(n, lock(n)))]
    many = [holds(n, lock(n) + other) for n in range(count) for other in range(1, step)]
    semaphore = [edge for n in range(count) for edge in (waits(n, 99_999), holds(n, 99_999))]
    queue = [waits(n, lock(0)) for n in range(1, count)]
    return {
        "chain with a live end": snapshot(*chain, holds(count, lock(count)), *many, kinds=kinds),
        "ring of all": snapshot(*chain, waits(count, lock(0)), holds(count, lock(count)), *many, kinds=kinds),
        "chain behind a self ring": snapshot(*chain, waits(count, lock(count)), holds(count, lock(count)), kinds=kinds),
        "one semaphore": snapshot(*semaphore, holds(count, 99_999), kinds={**kinds, 99_999: "semaphore"}),
        "all behind one": snapshot(*queue, waits(0, lock(0)), holds(0, lock(0)), kinds=kinds),
    }


if __name__ == "__main__":
    from concagent.detectors import deadlock

    for name, picture in large_pictures().items():
        began = time.perf_counter()
        left = graph.reduce(picture)
        reduced = time.perf_counter()
        rings = graph.find_rings(picture)
        found = time.perf_counter()
        deadlock.residue_findings(picture, left, frozenset())
        told = time.perf_counter()
        print(
            f"{name:25} residue {len(left):5}, {len(rings)} rings: reduce {(reduced - began) * 1e3:6.1f} ms, "
            f"rings {(found - reduced) * 1e3:6.1f} ms, findings {(told - found) * 1e3:6.1f} ms"
        )
