"""Present deadlocks: rings of resources with one holder each.

A ring is judged by who could release from outside (see ARCHITECTURE, "what counts as proof"), or by who is left: if nobody
is alive, nobody can; with native threads that Python does not know, or signal handlers of the program, somebody may yet come.

Never     a timed wait is part of neither; a finding names only actors whose waits were equal in two readings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from concagent import graph
from concagent.detectors.evidence import Scene, common_kind, headcount, short

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
_INTERRUPTED_ADVICE: Final = (
    "Finalizers, weakref and gc callbacks and signal handlers run in the middle of whatever the thread is doing, so they must "
    "take no lock that ordinary code takes: have them append to a deque or set a flag that ordinary code looks at. "
    "threading.RLock only hides it: the handler then sees data that is half changed."
)
_JOIN_ADVICE: Final = (
    "Release the lock before join(), or let the thread finish without it; a thread must not join its joiner."
)
_LOOP_ADVICE: Final = (
    "A call that waits stops the whole event loop, with the task that would end the wait: release a thread's lock before "
    "await, or use asyncio.Lock; await in the loop instead of result(), and hand blocking calls to asyncio.to_thread()."
)
_TASK_ADVICE: Final = (
    "Take these locks in one order in every task, or take them under one common lock; a task must not await one that awaits "
    "it. A time limit (asyncio.timeout) makes such a deadlock end."
)
_FILE_ADVICE: Final = (
    "flock() belongs to the open file: a second opening of the same file waits for the first one, in the same thread, too. "
    "Share one lock object for each file (filelock: is_singleton=True) or lock in one layer only, take several files in one "
    "order, and give the wait a time-out."
)
# What it is called to wait for somebody, and not for something.
_VERBS: Final = {"thread": "joins", "task": "awaits", "event-loop": "waits for the event loop of"}


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
    snapshot: Snapshot,
    ring: Sequence[int],
    *,
    victim: int | None = None,
    doubt: str | None = None,
    evidence: str | None = None,
) -> Finding:
    """Return the finding of a ring.

    Args:
        snapshot: The picture, with stacks of the members and of those behind them.
        ring: Serials of the members in waiting order.
        victim: The actor that is about to get ``DeadlockError``.
        doubt: Why the ring is only suspected; None for a proven one.
        evidence: How a proof was found where it is not plain to see, for ``reason``.
    """
    scene = Scene(snapshot)
    resources = [scene.requests[serial].resource for serial in ring]
    kinds = [scene.resources[serial].kind for serial in resources]
    stuck_behind = graph.behind(snapshot, ring)[:_BEHIND_LIMIT]
    roles = {serial: "victim" if serial == victim else "member" for serial in ring}
    roles.update(dict.fromkeys(stuck_behind, "behind"))
    interrupted = len(ring) == 1 and scene.requests[ring[0]].interruption
    advice = _SELF_ADVICE if len(ring) == 1 else _JOIN_ADVICE if "thread" in kinds else _RING_ADVICE
    advice = _INTERRUPTED_ADVICE if interrupted else advice
    if "event-loop" in kinds or (len(ring) == 1 and "future" in kinds):
        advice = _LOOP_ADVICE
    elif "file-lock" in kinds and not interrupted:
        advice = _FILE_ADVICE
    elif any(scene.actors[serial].type == "task" for serial in ring):
        advice = _TASK_ADVICE
    return scene.finding(
        "deadlock",
        "suspected" if doubt else "proven",
        roles,
        reason=doubt or evidence,
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
        if scene.resources[resources[0]].kind in {"thread", "task"}:
            return f"self-deadlock: {actors[0]} waits for its own end{where}"
        if request.interruption:
            ran = f"{request.interruption} while holding {labels[0]}"
            return f"self-deadlock: {actors[0]} interrupted itself: {ran}, and waits for it{where}"
        if scene.resources[resources[0]].kind == "future":
            detail = scene.resources[resources[0]].detail
            why = f" ({detail})" if detail else ", which only its own event loop can complete"
            return f"self-deadlock: {actors[0]} waits for {labels[0]}{why}{where}"
        return f"self-deadlock: {actors[0]} waits for {labels[0]}, which it holds itself{where}"
    steps = []
    for index, actor in enumerate(actors[:3]):
        following = actors[(index + 1) % len(actors)]
        verb = _VERBS.get(scene.resources[resources[index]].kind)
        steps.append(
            f"{actor} {verb} {following}" if verb else f"{actor} waits for {labels[index]} held by {following}"
        )
    more = f", ... and {len(ring) - 3} more" if len(ring) > 3 else ""
    return f"deadlock of {headcount(scene, ring)}: {', '.join(steps)}{more}"
