"""Locks whose holder has ended: nobody who took such a lock is left to release it.

A thread ends with a lock only where the release was skipped (an exception between ``acquire`` and ``try``, a ``return``)
or where it was meant for another thread to release.  The second is legal for a plain Lock, so a bare hold is given a
moment before anything is said; see ``monitor``.

In a fork's child the parent's threads have ended, too: a lock of theirs is a deadlock with the fork as its cause.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from concagent.detectors import forked
from concagent.detectors.evidence import Scene, short

if TYPE_CHECKING:
    from concagent.model import Finding, Snapshot

_ADVICE = (
    "Take the lock with `with`, or release it in `finally`: the thread that took it ended without releasing, and a lock is "
    "not released when its thread ends."
)


def orphan_findings(snapshot: Snapshot, waiting: frozenset[int]) -> list[Finding]:
    """Return one finding a lock with an ended holder for which one of the ``waiting`` actors waits untimed."""
    scene = Scene(snapshot)
    ended = {actor.serial for actor in snapshot.actors if actor.state == "ended"}
    findings = []
    for edge in snapshot.assignments:
        resource = scene.resources[edge.resource]
        if edge.holder not in ended or resource.kind not in {"lock", "rlock"} or resource.signal_mode:
            continue
        waiters = [r.actor for r in scene.waiters.get(edge.resource, ()) if not r.timed and r.actor in waiting]
        if not waiters:
            continue
        if scene.actors[edge.holder].pid != snapshot.pid:
            findings.append(forked.deadlock_finding(scene, edge, waiters))
            continue
        roles = dict.fromkeys(waiters, "member")
        roles[edge.holder] = "bystander"
        dead = scene.actors[edge.holder].name
        where = f" (acquired at {short(edge.site)})" if edge.site else ""
        who = scene.actors[waiters[0]].name + (f" and {len(waiters) - 1} more" if len(waiters) > 1 else "")
        verb = "waits" if len(waiters) == 1 else "wait"
        findings.append(
            scene.finding(
                "orphaned-lock",
                "proven",
                roles,
                title=f"{who} {verb} for {scene.label(edge.resource)}, whose holder {dead} has ended{where}",
                advice=_ADVICE,
                resource_kind=resource.kind,
                detail="owner terminated",
            )
        )
    return findings
