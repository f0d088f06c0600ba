"""Turns serials of a snapshot into the actors, resources and edges of a finding: what all detectors need.

A finding names everybody by id and lists every resource that one of its actors holds or waits for, with its holders, so
that it can be read, drawn and checked without the program.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from concagent.detectors.fingerprint import fingerprint
from concagent.model import Finding, FindingActor, FindingResource, Holder

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from concagent.model import Actor, AssignmentEdge, CallSite, RequestEdge, Resource, Snapshot


class Scene:
    """The part of a snapshot that a finding is about, indexed once."""

    def __init__(self, snapshot: Snapshot) -> None:
        """Index the edges of ``snapshot`` by actor and by resource; linear, and so is every method for its answer."""
        self.snapshot = snapshot
        self.actors: dict[int, Actor] = {actor.serial: actor for actor in snapshot.actors}
        self.resources: dict[int, Resource] = {resource.serial: resource for resource in snapshot.resources}
        self.requests: dict[int, RequestEdge] = {edge.actor: edge for edge in snapshot.requests}
        self.waiters: dict[int, list[RequestEdge]] = defaultdict(list)
        for request in snapshot.requests:
            self.waiters[request.resource].append(request)
        self.held_by: dict[int, list[AssignmentEdge]] = defaultdict(list)
        self.holders: dict[int, list[AssignmentEdge]] = defaultdict(list)
        for held in snapshot.assignments:
            self.held_by[held.holder].append(held)
            self.holders[held.resource].append(held)

    def finding_actor(self, serial: int, role: str) -> FindingActor:
        """Return one actor with what it holds and waits for."""
        actor = self.actors[serial]
        request = self.requests.get(serial)
        return FindingActor(
            id=actor.id,
            type=actor.type,
            pid=actor.pid,
            native_id=actor.native_id,
            name=actor.name,
            daemon=actor.daemon,
            waits_for=f"r{request.resource}" if request else None,
            waiting_since=self.snapshot.wall(request.since_ns) if request else None,
            timed=request.timed if request else False,
            holds=tuple(f"r{edge.resource}" for edge in self.held_by.get(serial, ())),
            role=role,
            stack=actor.stack,
        )

    def finding_resource(self, serial: int) -> FindingResource:
        """Return one resource with all its holders."""
        resource = self.resources[serial]
        holders = tuple(
            Holder(
                self.actors[edge.holder].id,
                edge.site,
                self.snapshot.wall(edge.since_ns) if edge.since_ns else None,
            )
            for edge in self.holders.get(serial, ())
        )
        return FindingResource(resource.id, resource.kind, resource.name, resource.created, holders, resource.detail)

    def finding(
        self,
        kind: str,
        confidence: str,
        roles: Mapping[int, str],
        *,
        title: str,
        advice: str,
        resource_kind: str,
        detail: str | None = None,
        reason: str | None = None,
        extra_sites: Iterable[CallSite] = (),
        resource: int | None = None,
    ) -> Finding:
        """Return a finding about the actors in ``roles`` (serial -> role, in the order to be shown).

        ``resource`` is listed too, though none of them holds it or waits for it.
        """
        touched = self.touched(roles, resource)
        sites = [*self.sites(serial for serial, role in roles.items() if role != "behind"), *extra_sites]
        mark = fingerprint(kind, resource_kind, detail, sites)
        edges = [
            (self.actors[s].id, "waits", f"r{self.requests[s].resource}") for s in sorted(roles) if s in self.requests
        ]
        edges += [(f"r{s}", "held-by", self.actors[e.holder].id) for s in touched for e in self.holders.get(s, ())]
        pid = self.snapshot.pid
        return Finding(
            kind=kind,
            resource_kind=resource_kind,
            confidence=confidence,
            id=f"{pid}-{mark[:8]}",
            fingerprint=mark,
            time=self.snapshot.wall_seconds,
            pid=pid,
            title=title,
            actors=tuple(self.finding_actor(serial, role) for serial, role in roles.items()),
            resources=tuple(self.finding_resource(serial) for serial in touched),
            edges=tuple(edges),
            detail=detail,
            reason=reason,
            advice=advice,
        )

    def touched(self, serials: Iterable[int], resource: int | None = None) -> tuple[int, ...]:
        """Return the resources that these actors hold or wait for, and ``resource``, sorted."""
        found = set() if resource is None else {resource}
        for serial in serials:
            found.update(edge.resource for edge in self.held_by.get(serial, ()))
            if serial in self.requests:
                found.add(self.requests[serial].resource)
        return tuple(sorted(found))

    def sites(self, members: Iterable[int]) -> list[CallSite]:
        """Return where the members wait, where what they wait for was acquired, and where it was created."""
        sites = []
        for serial in members:
            request = self.requests.get(serial)
            if request is None:
                continue
            created = self.resources[request.resource].created
            acquired = [edge.site for edge in self.holders.get(request.resource, ())]
            sites += [site for site in (request.site, created, *acquired) if site is not None]
        return sites

    def label(self, serial: int) -> str:
        """Return how a title calls a resource: ``lock "orders"``, else its kind and where it was made."""
        resource = self.resources[serial]
        if resource.name:
            return f'{resource.kind} "{resource.name}"'
        if resource.created is not None:
            return f"{resource.kind} made at {short(resource.created)}"
        return resource.kind


def short(site: CallSite) -> str:
    """Return ``file.py:12 in f`` without the folders: for one-line titles."""
    return f"{site.file.replace(chr(92), '/').rsplit('/', 1)[-1]}:{site.line} in {site.function}"


def common_kind(kinds: Sequence[str]) -> str:
    """Return the kind that all resources share, else the one that comes first and is not a thread."""
    if len(set(kinds)) == 1:
        return kinds[0]
    return next((kind for kind in kinds if kind not in {"thread", "event-loop"}), "lock")


def headcount(scene: Scene, serials: Iterable[int]) -> str:
    """Return ``2 threads``, ``1 thread and 2 tasks``."""
    types = [scene.actors[serial].type for serial in serials]
    plurals = {"thread": "threads", "task": "tasks", "process": "processes"}
    counts = [(types.count(one), one) for one in plurals]
    return names([f"{count} {one if count == 1 else plurals[one]}" for count, one in counts if count])


def names(values: Sequence[str], limit: int = 3) -> str:
    """Return ``a, b and c``, cut to ``a, b, c and 4 more``."""
    if len(values) > limit:
        return f"{', '.join(values[:limit])} and {len(values) - limit} more"
    return " and ".join(filter(None, [", ".join(values[:-1]), values[-1]])) if values else "nobody"
