"""Wrong uses of a lock, seen at the moment they happen: the evidence is one thread, one lock and its holder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from concagent.detectors.evidence import Scene, short
from concagent.model import CallSite

if TYPE_CHECKING:
    from concagent.model import Finding, Snapshot

_TEXTS: Final = {
    "double-release": (
        "{actor} releases {lock}, which nobody holds",
        "Release a lock once for each acquire: use `with`, and check paths that release in an except and again in a finally.",
    ),
    "over-release": (
        "{actor} gives back a permit of {lock} more than were taken",
        "Release a semaphore once for each acquire: use `with`; one that counts signals and not permits is a plain Semaphore.",
    ),
    "without-lock": (
        "{actor} calls wait() or notify() of {lock} without having its lock, which Python refuses",
        "Take the condition's lock in the same thread: `with condition:` around the change and the notify, and around the wait.",
    ),
    "foreign-release": (
        "{actor} releases {lock}, which {holder} owns",
        "An RLock belongs to the thread that took it; if another thread must signal, use a Semaphore or an Event.",
    ),
    "exit-held": (
        "{holder} ended while it still held {lock}{acquired}",
        "Take the lock with `with`, or release it in `finally`: a lock is not released when its thread ends.",
    ),
    "destroy-held": (
        "{lock} was collected while {holder} held it{acquired}",
        "Keep a lock alive as long as it is held: a new lock in the same attribute protects nothing from who holds the old one.",
    ),
}


def misuse_finding(snapshot: Snapshot, detail: str, resource: int, actor: int) -> Finding:
    """Return the finding; the snapshot lists the lock ``resource``, the ``actor`` to blame and, if held, the holder."""
    scene = Scene(snapshot)
    held = next((edge for edge in snapshot.assignments if edge.resource == resource), None)
    holder = scene.actors[held.holder].name if held else "nobody"
    acquired = f" (acquired at {short(held.site)})" if held and held.site else ""
    title, advice = _TEXTS[detail]
    roles = {actor: "member"}
    if held is not None and held.holder != actor:
        roles[held.holder] = "bystander"
    created = scene.resources[resource].created
    stack = scene.actors[actor].stack
    sites = [site for site in (created, held.site if held else None) if site is not None]
    if stack:
        sites.append(CallSite(stack[-1].file, stack[-1].line, stack[-1].function))
    return scene.finding(
        "misuse",
        "proven",
        roles,
        title=title.format(
            actor=scene.actors[actor].name, lock=scene.label(resource), holder=holder, acquired=acquired
        ),
        advice=advice,
        resource_kind=scene.resources[resource].kind,
        detail=detail,
        extra_sites=sites,
        resource=resource,
    )
