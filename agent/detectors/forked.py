"""Forks while other threads held locks: what the child cannot take any more, and who waits for it there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from concagent.detectors.evidence import Scene, common_kind, names, short
from concagent.model import CallSite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from concagent.model import AssignmentEdge, Finding, Snapshot

ADVICE: Final = (
    "A fork's child has one thread, and what the others held stays locked there for ever. Start processes by 'spawn' or "
    "'forkserver', or fork before the first thread is started, or exec at once; a lock that the child must have can be made "
    "anew there: os.register_at_fork(after_in_child=...)."
)


def hazard_finding(snapshot: Snapshot, forker: int) -> Finding:
    """Return the finding; the snapshot lists the thread that forked, the locks, and the parent's threads that hold them."""
    scene = Scene(snapshot)
    edges = sorted(snapshot.assignments, key=lambda edge: edge.resource)
    holders = dict.fromkeys(edge.holder for edge in edges)
    stack = scene.actors[forker].stack
    at = CallSite(stack[-1].file, stack[-1].line, stack[-1].function) if stack else None
    held = [f"{scene.actors[edge.holder].name} held {scene.label(edge.resource)}{_taken(edge)}" for edge in edges]
    sites = [site for edge in edges for site in (edge.site, scene.resources[edge.resource].created)]
    return scene.finding(
        "fork-hazard",
        "potential",
        {**dict.fromkeys(holders, "member"), forker: "bystander"},
        title=f"{scene.actors[forker].name} forked{f' at {short(at)}' if at else ''} while {names(held, 2)}",
        advice=ADVICE,
        resource_kind=common_kind([scene.resources[edge.resource].kind for edge in edges]),
        detail="held at fork",
        extra_sites=[site for site in (at, *sites) if site is not None],
    )


def deadlock_finding(scene: Scene, edge: AssignmentEdge, waiters: Sequence[int]) -> Finding:
    """Return the finding of those who wait, in a fork's child, for a lock that a thread of the parent held."""
    holder = scene.actors[edge.holder]
    roles = {**dict.fromkeys(waiters, "member"), edge.holder: "bystander"}
    more = f" and {len(waiters) - 1} more" if len(waiters) > 1 else ""
    verb = "waits" if len(waiters) == 1 else "wait"
    site = scene.requests[waiters[0]].site
    where = f" at {short(site)}" if site else ""
    return scene.finding(
        "deadlock",
        "proven",
        roles,
        title=(
            f"deadlock in a fork's child: {scene.actors[waiters[0]].name}{more} {verb} for {scene.label(edge.resource)}{where}; "
            f"{holder.name} of the parent process {holder.pid} held it at the fork{_taken(edge)}, and does not exist here"
        ),
        advice=ADVICE,
        resource_kind=scene.resources[edge.resource].kind,
        detail="held at fork",
        reason="The thread that was to release it exists in the parent only, and what it does there does not reach this process.",
    )


def _taken(edge: AssignmentEdge) -> str:
    return f" (acquired at {short(edge.site)})" if edge.site else ""
