"""Presents what a reduction leaves over: deadlocks through more than locks, and stalls.

Everybody in a residue is stuck for good, or seems to be; what remains to say is how.  Where the waits close a cycle it is
a deadlock, and the cycle's members are its actors.  A wait for a permit or a future leads to those who hold it.  A wait
that a signal ends leads to whoever has given such signals before; where nobody has, to those who are stuck on a lock and
whose running functions call what would end it (``put`` for who waits at an empty queue): they might have come to that call.
Without a cycle it is a stall: nobody is left who could notify, set or put.

A join is no step of a cycle by itself: who joins a stuck thread is behind it.  Only a cycle with a lock, a permit or a full
queue in it is called a deadlock.  Whoever else would have to go on for a member is one, too: the other holder of a permit.
So is who waits for an event or a future that nobody but he himself would set, later, in a function that is waiting now.

Source     Tarjan, Depth-First Search and Linear Graph Algorithms, SIAM J. Comput. 1(2), 1972.
Cost       linear in actors + edges of the residue, but for a lock that n signals are said to need: n edges each.
"""

from __future__ import annotations

from collections import defaultdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from concagent import graph
from concagent.detectors.deadlock import ring_finding
from concagent.detectors.evidence import Scene, common_kind, names, short

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from concagent.model import CallSite, Finding, Resource, Snapshot

BEHIND_LIMIT: Final = 50
_FOLLOWED: Final = frozenset({"thread", "task", "process"})  # waited for by those who are behind
_DEADLOCK_ADVICE: Final = (
    "Do not wait for a signal, a queue, a permit or a future while holding a lock that its giver needs: release the lock "
    "first, or let the giver do without it. To break it at run time give the wait a time-out."
)
_FUTURE_ADVICE: Final = (
    "A task must not wait for a task of its own pool that has no free worker, nor for one that waits for it: return the future "
    "and let the caller wait, or give the inner tasks a pool of their own. More workers only put it off."
)
_PIPE_ADVICE: Final = (
    "Nobody drains the pipe that the child writes to: read its output before or while you wait for it, with communicate() or "
    "run(capture_output=True), or send it to a file or to DEVNULL."
)
_SELF_ADVICE: Final = (
    "The wait is for something that the same thread would do only after it: a `close()` that is called from the very thread "
    "whose end it waits for. Leave it out there (`threading.current_thread() is self._thread`), or let another thread close."
)
_STALL_ADVICE: Final = (
    "Somebody must notify, set or release, and nobody is left who can: check the order of wait and notify (wait in a loop on "
    "the condition, notify after the change), exceptions that skip the release, and threads that ended early."
)
_HELD_DOUBT: Final = (
    "every permit is held by a thread that is stuck here, but a live thread could release one it does not hold"
)
_PIPE_DOUBT: Final = "a live thread could still read what is in the pipe, though none has"
_KNOWN_DOUBT: Final = "whoever has ended such waits so far is stuck here, but a live thread that never has could"
# Calls that end a wait, by the kind of what is waited for; a queue's depends on whether it is full or empty.
_VERBS: Final = {
    "event": {"set"},
    "condition": {"notify", "notify_all"},
    "semaphore": {"release"},
    "future": {"set_result", "set_exception", "cancel"},
    "barrier": {"wait"},
}


def verbs(resource: Resource) -> frozenset[str]:
    """Return the names of the methods that end a wait for this resource; empty where none is known."""
    kind = resource.kind.removeprefix("asyncio-")
    if kind == "queue":
        detail = resource.detail or ""
        if detail.startswith("full"):
            return frozenset({"get", "get_nowait"})
        if detail.startswith("empty"):
            return frozenset({"put", "put_nowait"})
        if detail.endswith("not done"):
            return frozenset({"task_done"})
        return frozenset({"get", "get_nowait", "put", "put_nowait"})
    return frozenset(_VERBS.get(kind, ()))


def residue_findings(
    snapshot: Snapshot,
    residue: frozenset[int],
    known: frozenset[int],
    *,
    doubt: str | None = None,
    suspected: bool = False,
    evidence: str | None = None,
    own: Mapping[int, CallSite] = MappingProxyType({}),
) -> list[Finding]:
    """Return the findings for a residue: one for each cycle of waits, and one for all that is asleep without any.

    Args:
        snapshot: The picture that was reduced, with stacks of the residue.
        residue: What ``graph.reduce`` left.
        known: Actors that a finding already names (rings and those behind them): no cycle of only such, and nobody of them
            in a stall.
        doubt: Why nobody left in this process is not nobody at all; None makes the finding proven.
        suspected: The residue is of the sharper question (``signals=False``); only cycles count then.
        evidence: How a proof was found where it is not plain to see, for ``reason``.
        own: Actor -> where a function on its stack would go on to end its wait itself.
    """
    scene = Scene(snapshot)
    waits = _waits_for(scene, residue)
    selfish = {serial: site for serial, site in own.items() if _waits_for_itself(scene, waits, serial)}
    waits.update({serial: {serial} for serial in selfish})
    rings = graph.find_rings(snapshot)
    findings = []
    rest = set(residue)
    cycles = _cycles(scene, waits, selfish)
    in_cycles = frozenset(serial for cycle in cycles for serial in cycle)
    for core in cycles:
        cycle = core | (_closure(waits, core) - in_cycles)  # who holds another permit of the same kind is stuck, too
        behind = _behind(waits, core) - cycle
        rest -= cycle | behind
        ring = next((ring for ring in rings if cycle == set(ring)), None)
        if cycle <= known or (suspected and ring is not None):
            continue  # whether a ring of locks can be broken from outside is judged where rings are
        if ring is not None:
            findings.append(ring_finding(snapshot, ring, doubt=doubt, evidence=evidence))
        else:
            site = selfish.get(min(cycle)) if len(cycle) == 1 else None
            findings.append(_finding(scene, "deadlock", cycle, behind, doubt, suspected, evidence, site))
    rest -= known
    if rest and not suspected:  # each of them might have woken the others, so it is one stall
        findings.append(_stall(scene, frozenset(rest), doubt, evidence))
    return findings


def _stall(scene: Scene, asleep: frozenset[int], doubt: str | None, evidence: str | None) -> Finding:
    awaited = {serial: scene.resources[scene.requests[serial].resource] for serial in asleep}
    signalled = frozenset(
        serial
        for serial, resource in awaited.items()
        if resource.ends != "holder" and resource.kind not in _FOLLOWED and resource.kind != "event-loop"
    )
    members = signalled or asleep
    return _finding(scene, "stall", members, asleep - members, doubt, False, evidence)


def _finding(
    scene: Scene,
    kind: str,
    cycle: frozenset[int],
    behind: frozenset[int],
    doubt: str | None,
    suspected: bool,
    evidence: str | None,
    own: CallSite | None = None,
) -> Finding:
    members = sorted(cycle)
    awaited = {serial: scene.resources[scene.requests[serial].resource] for serial in members}
    roles = dict.fromkeys(members, "member")
    roles.update(dict.fromkeys(sorted(behind)[:BEHIND_LIMIT], "behind"))
    waits = [f"{scene.actors[s].name} waits for {_label(scene, awaited[s])}" for s in members]
    number = f"{len(members)} {_noun(scene, members)}"
    held = all(scene.holders.get(resource.serial) for resource in awaited.values())
    why = (
        "and nobody is left who could end it"
        if kind == "stall"
        else f"which only itself would do later ({short(own)})"
        if own
        else "held among themselves"
        if held
        else "and each could go on only after another"
    )
    if suspected:
        piped = any(resource.kind == "pipe" for resource in awaited.values())
        doubt = _PIPE_DOUBT if piped else _HELD_DOUBT if held else _KNOWN_DOUBT
    return scene.finding(
        kind,
        "suspected" if suspected or doubt else "proven",
        roles,
        title=f"{kind} of {number}: {names(waits, 2)}, {why}",
        advice=_SELF_ADVICE if own else _advice(kind, {resource.kind for resource in awaited.values()}),
        resource_kind=common_kind([awaited[serial].kind for serial in members]),
        reason=doubt or evidence,
    )


def _advice(kind: str, awaited: set[str]) -> str:
    if kind == "stall":
        return _STALL_ADVICE
    if "pipe" in awaited:
        return _PIPE_ADVICE
    return _FUTURE_ADVICE if awaited == {"future"} else _DEADLOCK_ADVICE


def _noun(scene: Scene, members: Iterable[int]) -> str:
    types = {scene.actors[serial].type for serial in members}
    word = types.pop() if len(types) == 1 else "actor"
    several = len(list(members)) > 1
    return {"process": "processes" if several else "process"}.get(word, word + "s" * several)


def _label(scene: Scene, resource: Resource) -> str:
    label = scene.label(resource.serial)
    return f"{label} ({resource.detail})" if resource.detail else label


def _waits_for(scene: Scene, residue: frozenset[int]) -> dict[int, set[int]]:
    """Return actor -> those of the residue that would have to go on first."""
    signallers: dict[int, set[int]] = defaultdict(set)
    for edge in scene.snapshot.signals:
        signallers[edge.resource].add(edge.actor)
    lock_waiters = [s for s in sorted(residue) if _is_lock_like(scene.resources[scene.requests[s].resource])]
    tasks = {serial for serial in residue if scene.actors[serial].type == "task"}
    waits: dict[int, set[int]] = {}
    for serial in sorted(residue):
        resource = scene.resources[scene.requests[serial].resource]
        found = {edge.holder for edge in scene.holders.get(resource.serial, ())} & residue
        if resource.signal_mode:
            found = set()  # who took it is not who gives it back
        if resource.kind == "event-loop" and not found:
            found = tasks - {serial}  # a loop's thread goes on when one of its tasks does
        elif resource.ends != "holder" and not found:
            wanted = verbs(resource)
            might = {one for one in lock_waiters if wanted & set(scene.actors[one].calls)}
            found = (signallers[resource.serial] & residue or might) - {serial}
        waits[serial] = found
    return waits


def _waits_for_itself(scene: Scene, waits: dict[int, set[int]], serial: int) -> bool:
    """Return whether nobody else who is stuck, but those who wait for this one, looks as if he would end its wait."""
    if waits.get(serial, {serial}):
        return False
    resource = scene.resources[scene.requests[serial].resource]
    wanted = verbs(resource)
    others = waits.keys() - _behind(waits, frozenset({serial}))
    return not any(wanted & set(scene.actors[other].calls) for other in others)


def _is_lock_like(resource: Resource) -> bool:
    """Return whether there is something to be had and given back; room in a queue is, too."""
    if resource.kind == "queue":
        return (resource.detail or "").startswith("full")
    if resource.kind == "asyncio-semaphore":  # also where not all of its holders are known
        return True
    return resource.ends in {"holder", "any-holder", "all-holders"} and resource.kind not in _FOLLOWED


def _cycles(scene: Scene, waits: dict[int, set[int]], selfish: Iterable[int]) -> list[frozenset[int]]:
    """Return the strongly connected sets of actors with a lock or permit among what they wait for, smallest first."""
    return [
        group
        for group in sorted(_components(waits), key=min)
        if not group.isdisjoint(selfish)
        or any(
            _is_lock_like(scene.resources[scene.requests[serial].resource])
            and not scene.resources[scene.requests[serial].resource].signal_mode
            and waits[serial] & group
            for serial in group
        )
    ]


def _components(following: dict[int, set[int]]) -> list[frozenset[int]]:
    """Return the strongly connected components that hold a cycle (Tarjan, without recursion)."""
    order: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    components = []
    for root in following:
        work = [] if root in order else [(root, iter(sorted(following[root])))]
        while work:
            at, others = work[-1]
            if at not in order:
                order[at] = low[at] = len(order)
                stack.append(at)
                on_stack.add(at)
            other = next(others, None)
            if other is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[at])
                if low[at] == order[at]:
                    members = [stack.pop()]
                    while members[-1] != at:
                        members.append(stack.pop())
                    group = frozenset(members)
                    on_stack -= group
                    if len(group) > 1 or at in following[at]:
                        components.append(group)
            elif other not in order:
                work.append((other, iter(sorted(following[other]))))
            elif other in on_stack:
                low[at] = min(low[at], order[other])
    return components


def _behind(waits: dict[int, set[int]], cycle: frozenset[int]) -> frozenset[int]:
    """Return who waits, directly or through others, for a member; the members, too."""
    awaited_by: dict[int, set[int]] = defaultdict(set)
    for actor, others in waits.items():
        for other in others:
            awaited_by[other].add(actor)
    return _closure(awaited_by, cycle)


def _closure(following: dict[int, set[int]], start: frozenset[int]) -> frozenset[int]:
    found = set(start)
    work = list(start)
    while work:
        for one in following.get(work.pop(), set()) - found:
            found.add(one)
            work.append(one)
    return frozenset(found)
