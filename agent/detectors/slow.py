"""Long waits and long holds: thresholds, told once each, and never called a deadlock.

A wait that is part of a deadlock or stall has its own finding; a long wait says only "still waiting", with the holder
and what he is doing, which is what a person asks next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from concagent.detectors.evidence import Scene, short

if TYPE_CHECKING:
    from collections.abc import Iterable

    from concagent.model import Finding, Snapshot

_WAIT_ADVICE = (
    "Look at what the holder is doing now (its stack is above): do slow work outside the lock, or wait with a timeout. If this "
    "is normal here, raise long_wait or suppress it."
)
_WORKERS = frozenset({"thread", "process", "task", "future"})  # whoever waits for these waits for work to be done
_SIGNALS = frozenset({"mp-condition", "mp-event", "mp-barrier", "mp-queue", "mp-manager", "pipe"})
_HOLD_ADVICE = "Keep the lock only for the few lines that need it; I/O and calls into other code belong outside."


def long_waits(
    snapshot: Snapshot, threshold_ns: int, skip: Iterable[tuple[int, int]]
) -> list[tuple[tuple[int, int], Finding]]:
    """Return ((actor, epoch), finding) for untimed waits longer than the threshold that are not in ``skip``.

    Waits for the end of a thread, a process or a task are left out: work takes its time.  So are those for a condition, an event
    or a queue unless somebody holds what they wait for: an idle worker waits for hours, and that is its work.
    """
    scene = Scene(snapshot)
    told = set(skip)
    result = []
    for edge in snapshot.requests:
        key = (edge.actor, edge.epoch)
        waited_ns = snapshot.monotonic_ns - edge.since_ns
        kind = scene.resources[edge.resource].kind
        held = scene.holders.get(edge.resource)
        if edge.timed or key in told or waited_ns < threshold_ns or kind in _WORKERS or not held:
            continue
        if kind in _SIGNALS and not scene.actors[held[0].holder].pid:
            continue  # nobody in particular
        actor = scene.actors[edge.actor]
        holder = scene.actors[held[0].holder].name
        where = f" at {short(edge.site)}" if edge.site else ""
        roles = {edge.actor: "member"}
        roles.update({e.holder: "bystander" for e in held if e.holder != edge.actor})
        finding = scene.finding(
            "long-wait",
            "hint",
            roles,
            title=f"{actor.name} has waited {waited_ns / 1e9:.1f} s for {scene.label(edge.resource)} held by {holder}{where}",
            advice=_WAIT_ADVICE,
            resource_kind=kind,
        )
        result.append((key, finding))
    return result


def long_holds(
    snapshot: Snapshot, threshold_ns: int, skip: Iterable[tuple[int, int]]
) -> list[tuple[tuple[int, int], Finding]]:
    """Return ((resource, since), finding) for locks held longer than the threshold while somebody waits for them."""
    scene = Scene(snapshot)
    told = set(skip)
    result = []
    for edge in snapshot.assignments:
        kind = scene.resources[edge.resource].kind
        if edge.since_ns is None or edge.since_ns == 0 or kind not in {"lock", "rlock"}:
            continue
        key = (edge.resource, edge.since_ns)
        held_ns = snapshot.monotonic_ns - edge.since_ns
        waiters = scene.waiters.get(edge.resource)
        if key in told or held_ns < threshold_ns or not waiters or scene.actors[edge.holder].state == "ended":
            continue
        waiter = waiters[-1].actor
        holder = scene.actors[edge.holder]
        where = f", taken at {short(edge.site)}" if edge.site else ""
        finding = scene.finding(
            "long-hold",
            "hint",
            {edge.holder: "member", waiter: "behind"},
            title=f"{holder.name} has held {scene.label(edge.resource)} for {held_ns / 1e9:.1f} s{where}",
            advice=_HOLD_ADVICE,
            resource_kind=kind,
            extra_sites=[edge.site] if edge.site else [],
        )
        result.append((key, finding))
    return result
