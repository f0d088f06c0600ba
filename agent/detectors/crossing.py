"""Defects in which several processes have a part: rings through shared locks, and locks of processes that are dead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from concagent.detectors import deadlock
from concagent.detectors.evidence import Scene, short

if TYPE_CHECKING:
    from collections.abc import Sequence

    from concagent.model import Finding, Snapshot

_RING_ADVICE = (
    "Take these locks in one order in every process, and join a process while holding nothing that it may still need."
)
_FILE_ADVICE = (
    "Take several files in one order in every process, wait for no process while holding a file that it may need, and give the "
    "wait a time limit. A lock of flock() belongs to the opening, so a forked child has it, too; one of lockf() to the process."
)
_ORPHAN_ADVICE = (
    "A lock of multiprocessing is not given back when its process is killed, and nobody else can know in what state it left what "
    "the lock protects. Do not terminate() or kill() a process that shares a lock or a queue; ask it to end. "
    "concurrent.futures.ProcessPoolExecutor notices that a worker has died, multiprocessing.Pool does not."
)
_UNSIGNED = "the process ended when it was about to take the lock or to give it back; nobody else who lives can have it"
_DOUBT = "the code does not show that the process that took the lock was to give it back; another one may do so"


def ring_finding(snapshot: Snapshot, ring: Sequence[int], *, doubt: str | None = None) -> Finding:
    """Return the finding of a ring whose members are of several processes; ``doubt`` says why it is only suspected."""
    finding = deadlock.ring_finding(snapshot, ring, doubt=doubt)
    advice = _FILE_ADVICE if any(r.kind == "file-lock" for r in finding.resources) else _RING_ADVICE
    return finding.with_changes(advice=advice)


def orphan_finding(
    snapshot: Snapshot, resource: int, waiters: Sequence[int], start: int, *, firm: bool, signed: bool = True
) -> Finding:
    """Return the finding of a lock whose holder's process has ended.

    Args:
        snapshot: The picture of all processes, in which the holder is an ended actor.
        resource: The lock.
        waiters: Serials of those who wait for it.
        start: When the holder's process was started, in clock ticks since boot; 1 if nobody knows.
        firm: Whether the code shows that the holder was to give the lock back.
        signed: Whether the board had it as the holder; else it ended in the midst of taking the lock or giving it back.
    """
    scene = Scene(snapshot)
    edge = scene.holders[resource][0]
    dead = scene.actors[edge.holder]
    roles = dict.fromkeys(waiters, "member")
    roles[edge.holder] = "bystander"
    where = f", acquired at {short(edge.site)}" if edge.site else ""
    who = scene.actors[waiters[0]].name + (f" and {len(waiters) - 1} more" if len(waiters) > 1 else "")
    verb = "waits" if len(waiters) == 1 else "wait"
    label = scene.label(resource)
    began = f", started at tick {start}," if start > 1 else ""
    return scene.finding(
        "orphaned-lock",
        "proven" if firm else "suspected",
        roles,
        title=f"{who} {verb} for {label}, whose holder {dead.name}{began} is dead{where}",
        advice=_ORPHAN_ADVICE,
        resource_kind=scene.resources[resource].kind,
        detail="owner process died",
        reason=None if firm else _DOUBT if signed else _UNSIGNED,
    )
