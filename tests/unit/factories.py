"""Short words for hand-made snapshots: actors and resources are numbers, an edge is a pair."""

from __future__ import annotations

from typing import Any

from concagent.model import Actor, AssignmentEdge, CallSite, RequestEdge, Resource, SignalEdge, Snapshot, StackFrame

PID = 4711


def site(line: int = 10, function: str = "work", file: str = "/srv/shop/bank.py") -> CallSite:
    return CallSite(file, line, function)


def actor(serial: int, state: str = "live", **fields: Any) -> Actor:
    stack = (StackFrame("/srv/shop/bank.py", 100 + serial, "run", "step()"),)
    known = {"pid": PID, "native_id": 5000 + serial, "name": f"worker-{serial}", "daemon": False, "stack": stack}
    return Actor(serial, "thread", state=state, **{**known, **fields})


def resource(serial: int, kind: str = "lock", **fields: Any) -> Resource:
    return Resource(serial, kind, **{"name": None, "created": site(serial, "__init__"), **fields})


def waits(waiter: int, wanted: int, *, timed: bool = False, **fields: Any) -> RequestEdge:
    known = {"since_ns": 1_000, "epoch": 1, "site": site(200 + waiter)}
    return RequestEdge(waiter, wanted, timed=timed, **{**known, **fields})


def holds(holder: int, held: int, discipline: str = "owned", **fields: Any) -> AssignmentEdge:
    known = {"since_ns": 500, "depth": 1, "site": site(300 + holder)}
    return AssignmentEdge(held, holder, discipline=discipline, **{**known, **fields})


def signals(actor: int, signalled: int, times: int = 1) -> SignalEdge:
    return SignalEdge(signalled, actor, times)


def snapshot(
    *edges: RequestEdge | AssignmentEdge | SignalEdge,
    states: dict[int, str] | None = None,
    kinds: dict[int, str] | None = None,
    actors: tuple[Actor, ...] = (),
    resources: tuple[Resource, ...] = (),
    **fields: Any,
) -> Snapshot:
    """Return a picture with these edges.

    Whoever an edge names is listed: an actor as ``blocked`` or ``timed`` if it waits, else ``live`` (``states`` knows
    better); a resource as a lock (``kinds`` knows better).  ``actors`` and ``resources`` are listed as they are.
    """
    requests = [edge for edge in edges if isinstance(edge, RequestEdge)]
    assignments = [edge for edge in edges if isinstance(edge, AssignmentEdge)]
    given = [edge for edge in edges if isinstance(edge, SignalEdge)]
    known_actors = {serial: actor(serial) for serial in (edge.holder for edge in assignments)}
    known_actors.update({edge.actor: actor(edge.actor) for edge in given})
    known_actors.update({e.actor: actor(e.actor, "timed" if e.timed else "blocked") for e in requests})
    known_actors.update({serial: actor(serial, state) for serial, state in (states or {}).items()})
    known_actors.update({one.serial: one for one in actors})
    known_resources = {edge.resource: resource(edge.resource) for edge in edges}
    known_resources.update({serial: resource(serial, kind) for serial, kind in (kinds or {}).items()})
    known_resources.update({one.serial: one for one in resources})
    return Snapshot(
        **{"pid": PID, "monotonic_ns": 10**9, "wall_seconds": 1_700_000_000.0, **fields},
        actors=tuple(sorted(known_actors.values(), key=lambda one: one.serial)),
        resources=tuple(sorted(known_resources.values(), key=lambda one: one.serial)),
        requests=tuple(sorted(requests, key=lambda edge: edge.actor)),
        assignments=tuple(sorted(assignments, key=lambda edge: (edge.resource, edge.holder))),
        signals=tuple(sorted(given, key=lambda edge: (edge.resource, edge.actor))),
    )


def ring_of(*members: int, discipline: str = "owned", **fields: Any) -> Snapshot:
    """Return a picture in which each member waits for lock ``10 * next``, which the next one holds."""
    following = [*members[1:], members[0]]
    edges = [waits(one, 10 * other) for one, other in zip(members, following, strict=True)]
    return snapshot(*edges, *(holds(one, 10 * one, discipline) for one in members), **fields)
