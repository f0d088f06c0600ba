"""Present deadlocks and stalls: rings of single-holder resources, and what a reduction leaves over.

A ring is judged by who could release from outside (see ARCHITECTURE, "what counts as proof").  A residue is judged by
who is left: if nobody is alive, nobody can signal, and it is proven; with native threads that Python does not know, or
signal handlers of the program, somebody may yet come, and it is not.

Never     a timed wait is part of neither; a finding names only actors whose waits were equal in two readings.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from concagent import graph
from concagent.detectors.evidence import Scene, common_kind, names, short

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from concagent.model import Finding, Snapshot

_BEHIND_LIMIT: Final = 50
_RING_ADVICE: Final = (
    "Take these locks in one order everywhere, or take them under one common lock; do not call out (callbacks, logging, "
    "join) while holding one. To break it at run time use recover='raise'."
)
_SELF_ADVICE: Final = (
    "A plain Lock cannot be taken twice by one thread: split the function into a public part that locks and a private part "
    "that expects the lock to be held, or use threading.RLock. To break it at run time use recover='raise'."
)
_JOIN_ADVICE: Final = (
    "Release the lock before join(), or let the thread finish without it; a thread must not join its joiner."
)
_STALL_ADVICE: Final = (
    "Somebody must notify, set or release, and nobody is left who can: check the order of wait and notify (wait in a loop on "
    "the condition, notify after the change), exceptions that skip the release, and threads that ended early."
)


def is_proven(snapshot: Snapshot, ring: Sequence[int]) -> bool:
    """Return whether a ring (actor serials in waiting order) can be broken by none but its members.

    True also where the reduction leaves the whole ring over: then nobody outside is alive who could release.
    """
    return ring_is_closed(snapshot, ring) or nobody_is_left(snapshot, ring)


def nobody_is_left(snapshot: Snapshot, actors: Iterable[int]) -> bool:
    """Return whether these actors stay blocked whatever the others do, foreign native threads included."""
    return not snapshot.foreign_threads and set(actors) <= graph.reduce(snapshot)


def ring_is_closed(snapshot: Snapshot, ring: Sequence[int]) -> bool:
    """Return whether the holds alone say that only members release.

    They do if each is one that its holder gives back himself.  Also if all of them are bare, in a ring of several
    locks: each member holds what another one waits for, and all of it would have to be signals given by outsiders.  One such
    hold among others may be a signal: its waiter then keeps a real lock while it waits, which is slow and no deadlock.
    """
    scene = Scene(snapshot)
    edges = []
    for waiter in ring:
        resource = scene.requests[waiter].resource
        if resource not in scene.holders:
            return False
        edges.append((scene.requests[waiter], scene.resources[resource].kind, scene.holders[resource][0]))
    if not any(graph.may_be_signal(request, hold) for request, _, hold in edges):
        return True
    locks = all(kind in {"lock", "rlock"} for _, kind, _ in edges)
    return len(edges) > 1 and locks and all(hold.discipline == "bare" for _, _, hold in edges)


def ring_finding(
    snapshot: Snapshot, ring: Sequence[int], *, victim: int | None = None, doubt: str | None = None
) -> Finding:
    """Return the finding of a ring.

    Args:
        snapshot: The picture, with stacks of the members and of those behind them.
        ring: Serials of the members in waiting order.
        victim: The actor that is about to get ``DeadlockError``.
        doubt: Why the ring is only suspected; None for a proven one.
    """
    scene = Scene(snapshot)
    resources = [scene.requests[serial].resource for serial in ring]
    kinds = [scene.resources[serial].kind for serial in resources]
    stuck_behind = graph.behind(snapshot, ring)[:_BEHIND_LIMIT]
    roles = {serial: "victim" if serial == victim else "member" for serial in ring}
    roles.update(dict.fromkeys(stuck_behind, "behind"))
    advice = _SELF_ADVICE if len(ring) == 1 else _JOIN_ADVICE if "thread" in kinds else _RING_ADVICE
    return scene.finding(
        "deadlock",
        "suspected" if doubt else "proven",
        roles,
        reason=doubt,
        title=_ring_title(scene, ring, resources),
        advice=advice,
        resource_kind=common_kind(kinds),
    )


def _ring_title(scene: Scene, ring: Sequence[int], resources: Sequence[int]) -> str:
    actors = [scene.actors[serial].name for serial in ring]
    labels = [scene.label(serial) for serial in resources]
    if len(ring) == 1:
        request = scene.requests[ring[0]]
        where = f" at {short(request.site)}" if request.site else ""
        if scene.resources[resources[0]].kind == "thread":
            return f"self-deadlock: {actors[0]} waits for its own end{where}"
        return f"self-deadlock: {actors[0]} waits for {labels[0]}, which it holds itself{where}"
    steps = []
    for index, actor in enumerate(actors[:3]):
        following = actors[(index + 1) % len(actors)]
        joined = scene.resources[resources[index]].kind == "thread"
        steps.append(
            f"{actor} joins {following}" if joined else f"{actor} waits for {labels[index]} held by {following}"
        )
    more = f", ... and {len(ring) - 3} more" if len(ring) > 3 else ""
    return f"deadlock of {len(ring)} threads: {', '.join(steps)}{more}"


def residue_findings(
    snapshot: Snapshot,
    residue: frozenset[int],
    known: frozenset[int],
    *,
    doubt: str | None = None,
    suspected: bool = False,
) -> list[Finding]:
    """Return the findings for a residue, one a group of actors that wait for each other.

    Args:
        snapshot: The picture that was reduced, with stacks of the residue.
        residue: What ``graph.reduce`` left.
        known: Actors that a finding already names (rings and those behind them); groups of only such are left out.
        doubt: Why nobody left in this process is not nobody at all; None makes the finding proven.
        suspected: The residue is of the sharper question (``signals=False``); only groups with a real cycle count then.
    """
    scene = Scene(snapshot)
    findings = []
    asleep: frozenset[int] = frozenset()
    for group in _groups(snapshot, residue):
        members = _members(snapshot, group)
        if group <= known or (members and members <= known):
            continue
        if members:
            findings.append(_group_finding(scene, group, members, doubt, suspected))
        elif not suspected:
            asleep |= group
    if asleep:  # each of them might have woken the others, so it is one stall and not several
        findings.append(_group_finding(scene, asleep, frozenset(), doubt, suspected))
    return findings


def _group_finding(
    scene: Scene, group: frozenset[int], cycle: frozenset[int], doubt: str | None, suspected: bool
) -> Finding:
    kinds_of = {serial: scene.resources[scene.requests[serial].resource].kind for serial in group}
    only_events = frozenset(s for s in group if scene.resources[scene.requests[s].resource].ends != "holder")
    members = sorted(cycle or only_events or group)
    kind = "deadlock" if cycle else "stall"
    roles = dict.fromkeys(members, "member")
    roles.update(dict.fromkeys(sorted(group - set(members))[:_BEHIND_LIMIT], "behind"))
    actors = [scene.actors[serial].name for serial in members]
    waits = [f"{a} waits for {scene.label(scene.requests[s].resource)}" for a, s in zip(actors, members, strict=True)]
    number = f"{len(members)} thread" + ("s" if len(members) > 1 else "")
    why = "held among themselves" if kind == "deadlock" else "and nobody is left who could end it"
    confidence = "suspected" if suspected or doubt else "proven"
    if suspected:
        doubt = (
            "every permit is held by a thread that is stuck here, but a live thread could release one it does not hold"
        )
    return scene.finding(
        kind,
        confidence,
        roles,
        title=f"{kind} of {number}: {names(waits, 2)}, {why}",
        advice=_RING_ADVICE if kind == "deadlock" else _STALL_ADVICE,
        resource_kind=common_kind([kinds_of[serial] for serial in members]),
        reason=doubt,
    )


def _waits_for(snapshot: Snapshot, inside: frozenset[int]) -> dict[int, set[int]]:
    holders: dict[int, set[int]] = defaultdict(set)
    for edge in snapshot.assignments:
        holders[edge.resource].add(edge.holder)
    return {e.actor: holders[e.resource] & inside for e in snapshot.requests if e.actor in inside}


def _groups(snapshot: Snapshot, residue: frozenset[int]) -> list[frozenset[int]]:
    """Return the residue split where nobody waits for anybody across, smallest serial first.

    Waiters for the same resource belong together, too: two threads that wait for one event are one stall.
    """
    neighbours: dict[int, set[int]] = {serial: set() for serial in residue}
    for actor, others in _waits_for(snapshot, residue).items():
        for other in others:
            neighbours[actor].add(other)
            neighbours[other].add(actor)
    first_waiter: dict[int, int] = {}
    for edge in snapshot.requests:
        if edge.actor in residue:
            other = first_waiter.setdefault(edge.resource, edge.actor)
            neighbours[edge.actor].add(other)
            neighbours[other].add(edge.actor)
    groups = []
    seen: set[int] = set()
    for start in sorted(residue):
        group: set[int] = set()
        work = [] if start in seen else [start]
        while work:
            at = work.pop()
            if at not in group:
                group.add(at)
                work += neighbours[at] - group
        if group:
            seen |= group
            groups.append(frozenset(group))
    return groups


def _members(snapshot: Snapshot, group: frozenset[int]) -> frozenset[int]:
    """Return the actors of the group that lie on a cycle of waits: those that can reach themselves.

    Trims those that nobody in the group waits for and those that wait for nobody in it, repeatedly: what stays
    after both is on cycles or on paths between cycles, and the latter are as stuck as the former.
    """
    waits = _waits_for(snapshot, group)
    awaited_by: dict[int, set[int]] = {actor: set() for actor in group}
    for actor, others in waits.items():
        for other in others:
            awaited_by[other].add(actor)
    inside = set(group)
    work = list(group)
    while work:
        actor = work.pop()
        if actor in inside and not (waits.get(actor, set()) & inside and awaited_by[actor] & inside):
            inside.discard(actor)
            work += waits.get(actor, set()) | awaited_by[actor]
    return frozenset(inside)
