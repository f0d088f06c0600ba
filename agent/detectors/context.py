"""Locks that an interruption may want while what it interrupted holds them: predictions, from runs in which it did not happen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from concagent.detectors.evidence import short
from concagent.detectors.fingerprint import fingerprint
from concagent.model import Finding, FindingResource

if TYPE_CHECKING:
    from concagent.model import CallSite, Resource, StackFrame

ADVICE: Final = (
    "Take no lock there that ordinary code takes: put the work into a queue.SimpleQueue or a deque, or set a flag, and let "
    "ordinary code do it. Where that cannot be, acquire(blocking=False) and come back later."
)


class Side(NamedTuple):
    """A class of locks as one of its locks was used: the lock, where it was taken, and the stack that led there."""

    resource: Resource
    site: CallSite | None
    stack: tuple[StackFrame, ...]


class Step(NamedTuple):
    """On the way from one class to the next: ``inner`` was taken at ``site`` while ``outer`` was held."""

    outer: str
    inner: str
    site: CallSite | None


def context_finding(
    interruption: Side, what: str, ordinary: Side, path: tuple[Step, ...], pid: int, wall_seconds: float
) -> Finding:
    """Return the finding.

    Args:
        interruption: The use by code that the interpreter called.
        what: What that was, in words.
        ordinary: The use by code that this can interrupt, of the same class or of the last of ``path``.
        path: How the one leads to the other, () for the same.
        pid: The process.
        wall_seconds: Now.
    """
    wanted, held = _label(interruption.resource), _label(ordinary.resource)
    if path:
        title = (
            f"{what} takes {wanted}{_at(interruption)}, can interrupt who holds {held}{_at(ordinary)}, and {wanted} may be "
            "held by who waits for that"
        )
    else:
        title = f"{wanted} is taken in {what}{_at(interruption)}, and in code that this can interrupt{_at(ordinary)}"
    sites = [interruption.site, ordinary.site, *(step.site for step in path)]
    resources = {side.resource.serial: side.resource for side in (interruption, ordinary)}
    mark = fingerprint("context-hazard", interruption.resource.kind, what, sites)
    order: list[dict[str, Any]] = [
        {"circumstance": what, "lock": wanted, "site": _site(interruption.site), "stack": _stack(interruption)},
        {"circumstance": "ordinary code", "lock": held, "site": _site(ordinary.site), "stack": _stack(ordinary)},
    ]
    order += [{"outer": step.outer, "inner": step.inner, "site": _site(step.site)} for step in path]
    return Finding(
        kind="context-hazard",
        resource_kind=interruption.resource.kind,
        confidence="potential",
        id=f"{pid}-{mark[:8]}",
        fingerprint=mark,
        time=wall_seconds,
        pid=pid,
        title=title,
        resources=tuple(FindingResource(r.id, r.kind, r.name, r.created) for r in resources.values()),
        order=tuple(order),
        detail=what.partition(" ")[2],
        advice=ADVICE,
    )


def _label(resource: Resource) -> str:
    if resource.name:
        return f'{resource.kind} "{resource.name}"'
    return f"{resource.kind} made at {short(resource.created)}" if resource.created else resource.kind


def _at(side: Side) -> str:
    return f" ({short(side.site)})" if side.site else ""


def _site(site: CallSite | None) -> dict[str, Any] | None:
    return site.to_dict() if site else None


def _stack(side: Side) -> list[dict[str, Any]]:
    return [frame.to_dict() for frame in side.stack]
