"""One view of a finding and of a snapshot, so that all formats say the same words about both.

A finding names its parts by strings, a snapshot by serials; a text report, a graph and a picture want neither, they
want "who waits for what, who holds it, and what do people call it".  A ``Scene`` is that: dictionaries made once, in
linear time, from either.  Everything here is total: a finding that was read from a file of another version may lack
names, sites, holders, or speak of an actor that it does not list, and a report with gaps is better than none.

Invariants V1 every id in ``waits``, ``holders`` and ``holds`` has a name in ``actor_name`` or ``resource_name``.
           V2 names are unique within a scene: where two would be the same, the id is added.
Cost       O(actors + resources + edges); no clock, no lock, no file.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from concagent.model import (
    CallSite,
    Finding,
    FindingActor,
    FindingResource,
    Holder,
    Snapshot,
    StackFrame,
)

# Modules that only carry out a wait.  Their frames say how one waits, not why: the caller's line is shown first.
_WAITING_MODULES: Final = (
    "/threading.py",
    "/queue.py",
    "/concurrent/futures/_base.py",
    "/concurrent/futures/thread.py",
    "/multiprocessing/synchronize.py",
    "/multiprocessing/connection.py",
    "/multiprocessing/popen_fork.py",
    "/selectors.py",
    "/subprocess.py",
    "<frozen importlib._bootstrap>",
    "<frozen importlib._bootstrap_external>",
    "/importlib/_bootstrap.py",
    "/asyncio/locks.py",
    "/asyncio/queues.py",
    "/asyncio/tasks.py",
    "/asyncio/taskgroups.py",
    "/asyncio/timeouts.py",
)

KIND_WORDS: Final[Mapping[str, str]] = {
    "rlock": "RLock",
    "import-lock": "import lock",
    "file-lock": "file lock",
    "mp-lock": "multiprocessing lock",
    "mp-rlock": "multiprocessing RLock",
    "mp-semaphore": "multiprocessing semaphore",
    "mp-condition": "multiprocessing condition",
    "mp-event": "multiprocessing event",
    "mp-barrier": "multiprocessing barrier",
    "mp-queue": "multiprocessing queue",
    "mp-manager": "multiprocessing manager",
    "asyncio-lock": "asyncio lock",
    "asyncio-semaphore": "asyncio semaphore",
    "asyncio-condition": "asyncio condition",
    "asyncio-event": "asyncio event",
    "asyncio-barrier": "asyncio barrier",
    "asyncio-queue": "asyncio queue",
    "event-loop": "event loop",
}
# Things that somebody *is* rather than holds.
LIVING_KINDS: Final = frozenset({"thread", "process", "task"})
_LONG_PATH: Final = 44


@dataclass(frozen=True, slots=True)
class Scene:
    """Who waits for what and who holds it; ``now`` is the wall-clock time at which this was true."""

    now: float
    actors: dict[str, FindingActor]
    resources: dict[str, FindingResource]
    waits: dict[str, str]
    holders: dict[str, tuple[str, ...]]
    holds: dict[str, tuple[str, ...]]
    waiters: dict[str, tuple[str, ...]]
    wait_sites: dict[str, CallSite]
    states: dict[str, str]
    actor_name: dict[str, str]
    resource_name: dict[str, str]

    def holding(self, resource: str, actor: str) -> Holder | None:
        """Return the record of this hold, None where only an edge speaks of it."""
        found = self.resources.get(resource)
        for holder in found.holders if found else ():
            if holder.actor == actor:
                return holder
        return None

    def kind(self, resource: str) -> str:
        """Return the kind of a resource, ``resource`` where it is not listed."""
        found = self.resources.get(resource)
        return found.kind if found else "resource"

    def ring_from(self, actor: str) -> tuple[str, ...]:
        """Return the actors of the ring through ``actor`` in waiting order, empty where there is none."""
        path = [actor]
        seen = {actor}
        while True:
            holders = self.holders.get(self.waits.get(path[-1], ""), ())
            if actor in holders:
                return tuple(path)
            following = [h for h in holders if h not in seen and h in self.waits]
            if not following:
                return ()
            path.append(following[0])
            seen.add(following[0])

    def waited(self, actor: str) -> float | None:
        """Return for how many seconds the actor has waited, None where it does not or nobody knows."""
        found = self.actors.get(actor)
        if found is None or found.waiting_since is None:
            return None
        return max(0.0, self.now - found.waiting_since)


def scene_of_finding(finding: Finding) -> Scene:
    """Return the scene that a finding speaks of."""
    waits = {a.id: a.waits_for for a in finding.actors if a.waits_for is not None}
    pairs = [(h.actor, r.id) for r in finding.resources for h in r.holders]
    pairs += [(actor.id, held) for actor in finding.actors for held in actor.holds]
    for source, relation, target in finding.edges:
        if relation == "waits":
            waits.setdefault(source, target)
        elif relation == "held-by":
            pairs.append((target, source))
    sites = {a.id: site for a in finding.actors if (site := wait_site(a.stack)) is not None}
    return _scene(finding.time, finding.actors, finding.resources, waits, pairs, sites, {})


def scene_of_snapshot(snapshot: Snapshot) -> Scene:
    """Return the scene of a snapshot; actors have the role ``member``."""
    actor_ids = {actor.serial: actor.id for actor in snapshot.actors}
    requests = {edge.actor: edge for edge in snapshot.requests}
    held: dict[int, list[str]] = {}
    held_by: dict[int, list[Holder]] = {}
    pairs = []
    for edge in snapshot.assignments:
        holder = actor_ids.get(edge.holder, f"{snapshot.pid}/t{edge.holder}")
        since = None if edge.since_ns is None else snapshot.wall(edge.since_ns)
        held_by.setdefault(edge.resource, []).append(Holder(holder, edge.site, since))
        held.setdefault(edge.holder, []).append(f"r{edge.resource}")
        pairs.append((holder, f"r{edge.resource}"))
    actors = []
    waits = {}
    sites = {}
    for actor in snapshot.actors:
        request = requests.get(actor.serial)
        if request is not None:
            waits[actor.id] = f"r{request.resource}"
            site = request.site or wait_site(actor.stack)
            if site is not None:
                sites[actor.id] = site
        actors.append(
            FindingActor(
                id=actor.id,
                type=actor.type,
                pid=actor.pid,
                native_id=actor.native_id,
                name=actor.name,
                daemon=actor.daemon,
                waits_for=waits.get(actor.id),
                waiting_since=snapshot.wall(request.since_ns) if request else None,
                timed=request.timed if request else False,
                holds=tuple(held.get(actor.serial, ())),
                stack=actor.stack,
            )
        )
    resources = [
        FindingResource(r.id, r.kind, r.name, r.created, tuple(held_by.get(r.serial, ())), r.detail)
        for r in snapshot.resources
    ]
    states = {actor.id: actor.state for actor in snapshot.actors}
    return _scene(snapshot.wall_seconds, actors, resources, waits, pairs, sites, states)


def _scene(
    now: float,
    actors: Iterable[FindingActor],
    resources: Iterable[FindingResource],
    waits: dict[str, str],
    pairs: Iterable[tuple[str, str]],
    wait_sites: dict[str, CallSite],
    states: dict[str, str],
) -> Scene:
    actor_of = {actor.id: actor for actor in actors}
    resource_of = {resource.id: resource for resource in resources}
    holders: dict[str, dict[str, None]] = {}
    holds: dict[str, dict[str, None]] = {}
    for actor_id, resource_id in pairs:
        holders.setdefault(resource_id, {})[actor_id] = None
        holds.setdefault(actor_id, {})[resource_id] = None
    waiters: dict[str, list[str]] = {}
    for actor_id, resource_id in waits.items():
        waiters.setdefault(resource_id, []).append(actor_id)

    actor_name = {i: i for i in (*waits, *holds)}
    actor_name.update((i, clean(a.name) if a.name else f"{a.type} {i}") for i, a in actor_of.items())
    _make_unique(actor_name)
    resource_name = {i: f"resource {i}" for i in (*waiters, *holders)}
    for resource_id, resource in resource_of.items():
        resource_name[resource_id] = _resource_name(resource, actor_name)
    _make_unique(resource_name)
    return Scene(
        now=now,
        actors=actor_of,
        resources=resource_of,
        waits=waits,
        holders={i: tuple(ids) for i, ids in holders.items()},
        holds={i: tuple(ids) for i, ids in holds.items()},
        waiters={i: tuple(ids) for i, ids in waiters.items()},
        wait_sites=wait_sites,
        states=states,
        actor_name=actor_name,
        resource_name=resource_name,
    )


def _resource_name(resource: FindingResource, actor_name: Mapping[str, str]) -> str:
    kind = KIND_WORDS.get(resource.kind, resource.kind)
    if resource.name:
        return f'{kind} "{clean(resource.name)}"'
    if resource.kind in LIVING_KINDS and resource.holders:
        return f'{kind} "{actor_name.get(resource.holders[0].actor, resource.holders[0].actor)}"'
    return f"unnamed {kind} {resource.id}"


def _make_unique(names: dict[str, str]) -> None:
    times = Counter(names.values())
    for key, name in names.items():
        if times[name] > 1:
            names[key] = f"{name} [{key}]"


def wait_site(stack: tuple[StackFrame, ...]) -> CallSite | None:
    """Return the innermost place of a stack that is not merely the machinery of waiting."""
    for frame in reversed(stack):
        if not frame.file.replace("\\", "/").endswith(_WAITING_MODULES):
            return CallSite(frame.file, frame.line, frame.function)
    return CallSite(stack[-1].file, stack[-1].line, stack[-1].function) if stack else None


def clean(text: str) -> str:
    """Return the text with control characters and lone surrogates escaped.

    Thread names and file names come from the program, and through it perhaps from its users: they must not move the
    cursor of the terminal that shows a report, nor break a line of it.
    """
    if text.isprintable():
        return text
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return "".join(escaped)


def short_path(path: str) -> str:
    """Return a path for prose: long ones are cut at the front, after whole components, never at the name."""
    text = clean(path)
    if len(text) <= _LONG_PATH:
        return text
    parts = text.replace("\\", "/").split("/")
    kept = parts[-1]
    for part in reversed(parts[:-1]):
        if len(kept) + len(part) + 5 > _LONG_PATH:
            break
        kept = f"{part}/{kept}"
    return f".../{kept}"


def short_site(site: CallSite | None) -> str:
    """Return ``file:line in function`` with a short path, ``an unknown place`` for None."""
    if site is None:
        return "an unknown place"
    return f"{short_path(site.file)}:{site.line}{in_function(site.function)}"


def full_site(site: CallSite | StackFrame) -> str:
    """Return ``file:line in function`` with the whole path, as editors and terminals can follow it."""
    return f"{clean(site.file)}:{site.line}{in_function(site.function)}"


def in_function(function: str) -> str:
    """Return `` in NAME``; nothing for an unknown name, ``at module level`` for code outside functions."""
    if function == "<module>":
        return " at module level"
    return f" in {clean(function)}" if function else ""


def duration(seconds: float) -> str:
    """Return a length of time for people, with two digits that matter."""
    if seconds < 0.001:
        return "under 1 ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def timestamp(seconds: float) -> str:
    """Return wall-clock seconds as UTC with milliseconds: logs of several machines must compare."""
    try:
        milliseconds = round(seconds * 1000)
        moment = time.gmtime(milliseconds // 1000)
    except (OverflowError, ValueError, OSError):
        return f"time {seconds}"
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', moment)}.{milliseconds % 1000:03d} UTC"


def enumerate_words(words: Iterable[str], limit: int = 20) -> str:
    """Return ``a, b and c``; beyond ``limit`` the rest is counted."""
    listed = list(words)
    if len(listed) > limit:
        return f"{', '.join(listed[:limit])} and {len(listed) - limit} more"
    return " and ".join([", ".join(listed[:-1]), listed[-1]] if len(listed) > 1 else listed)
