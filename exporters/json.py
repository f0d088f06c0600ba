"""The forms for machines: a finding as one line, and back; a picture and a report as objects.

The line of a finding is a contract (schema 1): it is appended by several processes at once and read years later, so it
is one line of ASCII whatever the program called its threads, and the reader takes what it knows, gives defaults to what
is missing and ignores what is new.  What it does not do is guess: another schema is an error with both numbers in it.

Pictures and reports are not indented: that takes the encoder written in Python, and ten times as long.

Not kept   ``suppressed`` of a finding: a suppressed finding is never written.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Final

from concagent.errors import ConfigError
from concagent.exporters._scene import Scene, scene_of_snapshot
from concagent.model import (
    SCHEMA,
    AgentStats,
    CallSite,
    ClassStatistics,
    Finding,
    FindingActor,
    FindingResource,
    Holder,
    Report,
    Snapshot,
    StackFrame,
)

_REQUIRED: Final = ("kind", "resource_kind", "confidence", "fingerprint", "title")


def finding_line(finding: Finding) -> str:
    """Return the finding as one line of ASCII JSON, without the newline at its end."""
    return json.dumps(finding.to_dict(), ensure_ascii=True, default=str)


def finding_from_dict(data: Mapping[str, Any]) -> Finding:
    """Return the finding that a line of schema 1, parsed, stands for.

    Raises:
        ConfigError: It is not a finding, is of another schema, or a part of it has the wrong shape.
    """
    if not isinstance(data, Mapping):
        raise _not_a_finding("it is not a JSON object", data)
    if data.get("schema") != SCHEMA:
        raise _not_a_finding(f"its schema is {data.get('schema')!r}; this version reads {SCHEMA}", data)
    missing = [name for name in _REQUIRED if not isinstance(data.get(name), str)]
    if missing:
        raise _not_a_finding(f"no text in {', '.join(missing)}", data)
    try:
        return Finding(
            kind=data["kind"],
            resource_kind=data["resource_kind"],
            confidence=data["confidence"],
            id=str(data.get("id", "")),
            fingerprint=data["fingerprint"],
            time=float(data.get("time", 0.0)),
            pid=int(data.get("pid", 0)),
            title=data["title"],
            actors=tuple(_actor(actor) for actor in data.get("actors", ())),
            resources=tuple(_resource(resource) for resource in data.get("resources", ())),
            edges=tuple((str(a), str(b), str(c)) for a, b, c in data.get("edges", ())),
            order=tuple(dict(entry) for entry in data.get("order", ())),
            detail=_text(data.get("detail")),
            reason=_text(data.get("reason")),
            count=int(data.get("count", 1)),
            advice=str(data.get("advice", "")),
            suppress=str(data.get("suppress", "")),
        )
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise _not_a_finding(f"a part of it has the wrong shape ({error!r})", data) from error


def snapshot_to_dict(snapshot: Snapshot) -> dict[str, Any]:
    """Return the snapshot as a JSON object; names, edges and times as in a finding."""
    scene = scene_of_snapshot(snapshot)
    signal_mode = {r.id: r.signal_mode for r in snapshot.resources}
    permits = {r.id: r.permits for r in snapshot.resources}
    return {
        "schema": SCHEMA,
        "pid": snapshot.pid,
        "process_name": snapshot.process_name,
        "time": snapshot.wall_seconds,
        "actors": [_actor_to_dict(scene, actor) for actor in scene.actors.values()],
        "resources": [
            {**r.to_dict(), "signal_mode": signal_mode[r.id], "permits": permits[r.id]}
            for r in scene.resources.values()
        ],
        "edges": [
            *([actor, "waits", resource] for actor, resource in scene.waits.items()),
            *([r, "held-by", actor] for r, actors in scene.holders.items() for actor in actors),
        ],
        "untracked_locks": snapshot.untracked_locks,
        "foreign_threads": snapshot.foreign_threads,
    }


def snapshot_to_json(snapshot: Snapshot) -> str:
    """Return the snapshot as one line of ASCII JSON, with a newline at its end."""
    return json.dumps(snapshot_to_dict(snapshot), ensure_ascii=True) + "\n"


def report_to_json(report: Report) -> str:
    """Return the whole live picture as one line of ASCII JSON, with a newline at its end."""
    stats = report.stats
    ids = {actor.serial: actor.id for actor in report.snapshot.actors}
    data = {
        "schema": SCHEMA,
        "trigger": report.trigger,
        "python": report.python,
        "command": report.command,
        "version": report.version,
        "snapshot": snapshot_to_dict(report.snapshot),
        "rings": [[ids.get(s, f"{report.snapshot.pid}/t{s}") for s in r] for r in report.rings],
        "findings": [finding.to_dict() for finding in report.findings],
        "statistics": {
            "core": stats.core,
            "locks_created": stats.locks_created,
            "locks_alive": stats.locks_alive,
            "threads_seen": stats.threads_seen,
            "blocked_threads": stats.blocked_threads,
            "deadlocked_threads": stats.deadlocked_threads,
            "deadlocks_open": stats.deadlocks_open,
            "longest_wait_seconds": stats.longest_wait_seconds,
            "findings": [
                {"kind": kind, "resource_kind": resource, "confidence": sure, "count": count}
                for (kind, resource, sure), count in stats.findings
            ],
            "open_findings": stats.open_findings,
            "suppressed_findings": stats.suppressed_findings,
            "classes": [_class_to_dict(entry) for entry in stats.classes],
            "open_resources": dict(stats.open_resources),
            "leaked_resources": dict(stats.leaked_resources),
            "order_edges": stats.order_edges,
            "agent_errors": dict(stats.agent_errors),
            "dropped_events": dict(stats.dropped_events),
            "agent_cpu_seconds": stats.agent_cpu_seconds,
            "untracked_locks": stats.untracked_locks,
        },
    }
    return json.dumps(data, ensure_ascii=True, default=str) + "\n"


def statistics_to_json(statistics: AgentStats) -> str:
    """Return all counters, for another process of the program: see `statistics_from_json`."""
    return json.dumps(dataclasses.asdict(statistics), ensure_ascii=True)


def statistics_from_json(text: bytes) -> AgentStats:
    """Return the counters that another process wrote.

    Raises:
        ValueError: It is of another version.
    """
    try:
        values = {name: _frozen(value) for name, value in json.loads(text).items()}
        values["classes"] = tuple(ClassStatistics(**entry) for entry in values["classes"])
        return AgentStats(**values)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError("not the counters of this version") from error


def _frozen(value: Any) -> Any:
    """Return a value of JSON with tuples for lists."""
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, dict):
        return {name: _frozen(item) for name, item in value.items()}
    return value


def _actor_to_dict(scene: Scene, actor: FindingActor) -> dict[str, Any]:
    """Return an actor of a snapshot: as in a finding, with a state and a place in place of a role."""
    data = actor.to_dict()
    del data["role"]
    site = scene.wait_sites.get(actor.id)
    data["state"] = scene.states[actor.id]
    data["waits_at"] = site.to_dict() if site is not None else None
    return data


def _class_to_dict(entry: ClassStatistics) -> dict[str, Any]:
    return {
        "lock_class": entry.lock_class,
        "kind": entry.kind,
        "acquisitions": entry.acquisitions,
        "contentions": entry.contentions,
        "wait_seconds": entry.wait_seconds,
        "wait_buckets": list(entry.wait_buckets),
        "hold_seconds": entry.hold_seconds,
        "hold_samples": entry.hold_samples,
        "hold_buckets": list(entry.hold_buckets),
    }


def _not_a_finding(why: str, data: object) -> ConfigError:
    return ConfigError(
        f"cannot read a finding: {why}",
        option="findings",
        value=repr(data)[:200],
        allowed=f"JSON objects of schema {SCHEMA}, as written by concagent, one a line",
    )


def _actor(data: Mapping[str, Any]) -> FindingActor:
    return FindingActor(
        id=str(data["id"]),
        type=str(data.get("type", "thread")),
        pid=int(data.get("pid", 0)),
        native_id=_number(data.get("native_id")),
        name=str(data.get("name", "")),
        daemon=bool(data.get("daemon", False)),
        waits_for=_text(data.get("waits_for")),
        waiting_since=_seconds(data.get("waiting_since")),
        timed=bool(data.get("timed", False)),
        holds=tuple(str(held) for held in data.get("holds", ())),
        role=str(data.get("role", "member")),
        stack=tuple(_frame(frame) for frame in data.get("stack", ())),
    )


def _resource(data: Mapping[str, Any]) -> FindingResource:
    return FindingResource(
        id=str(data["id"]),
        kind=str(data["kind"]),
        name=_text(data.get("name")),
        created=_site(data.get("created")),
        holders=tuple(
            Holder(str(h["actor"]), _site(h.get("acquired")), _seconds(h.get("since"))) for h in data.get("holders", ())
        ),
        detail=_text(data.get("detail")),
    )


def _frame(data: Mapping[str, Any]) -> StackFrame:
    return StackFrame(
        str(data["file"]),
        int(data["line"]),
        str(data["function"]),
        str(data.get("source", "")),
        str(data.get("interrupts", "")),
    )


def _site(data: Mapping[str, Any] | None) -> CallSite | None:
    if data is None:
        return None
    return CallSite(str(data["file"]), int(data["line"]), str(data["function"]))


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _number(value: Any) -> int | None:
    return None if value is None else int(value)


def _seconds(value: Any) -> float | None:
    return None if value is None else float(value)
