"""What was written earlier is read again: findings of a JSON-lines file, a report or a snapshot in JSON, their graphs.

The file may be of another version, or of another program: what is not understood is said with its line.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from concagent._real import open_file
from concagent.errors import ConfigError
from concagent.model import (
    Actor,
    AssignmentEdge,
    CallSite,
    Finding,
    RequestEdge,
    Resource,
    Snapshot,
    StackFrame,
)


def read_findings(path: str) -> list[Finding]:
    """Return the findings of a JSON-lines file, in its order.

    Raises:
        ConfigError: A line is not a finding; the message has its number.
        OSError: The file cannot be read.
    """
    from concagent.exporters.json import finding_from_dict

    findings = []
    with open_file(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                findings.append(finding_from_dict(json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{path}:{number}: {error}", option="findings") from error
    return findings


def merged(findings: Sequence[Finding]) -> list[Finding]:
    """Return each finding once: several runs and processes may have appended the same one."""
    times: Counter[tuple[str, int]] = Counter()
    latest: dict[str, Finding] = {}
    for finding in findings:
        # Within a process a repeated line carries the count so far.
        key = (finding.fingerprint, finding.pid)
        times[key] = max(times[key], finding.count)
        latest.setdefault(finding.fingerprint, finding)
    return [
        finding.with_changes(count=sum(n for (print_, _), n in times.items() if print_ == finding.fingerprint))
        for finding in latest.values()
    ]


def graph_of_file(path: str, form: str, number: int | None) -> bytes:
    """Return the graph of a report in JSON, or of one finding of a JSON-lines file."""
    from concagent.exporters import dot, svg
    from concagent.exporters.json import finding_line, snapshot_to_json

    picture = _read_report(path)
    if picture is not None:
        snapshot, rings = picture
        if form == "json":
            return snapshot_to_json(snapshot).encode()
        draw = svg.snapshot_svg if form == "svg" else dot.snapshot_dot
        return draw(snapshot, rings=rings).encode("utf-8", "backslashreplace")
    findings = read_findings(path)
    if not findings:
        raise ConfigError(f"{path}: no findings to draw", option="findings")
    if number is None:
        deadlocks = [finding for finding in findings if finding.kind == "deadlock"]
        finding = (deadlocks or findings)[-1]
    elif number > len(findings):
        raise ConfigError(f"{path}: there is no finding {number}; it has {len(findings)}", option="findings")
    else:
        finding = findings[number - 1]
    if form == "json":
        return finding_line(finding).encode()
    return (svg.finding_svg if form == "svg" else dot.finding_dot)(finding).encode("utf-8", "backslashreplace")


def _read_report(path: str) -> tuple[Snapshot, tuple[tuple[int, ...], ...]] | None:
    """Return snapshot and rings of a report or snapshot in JSON; None if the file is something else."""
    with open_file(path, encoding="utf-8", errors="replace") as file:
        try:
            data = json.load(file)
        except (ValueError, RecursionError):
            return None
    if not isinstance(data, dict) or not ("snapshot" in data or "actors" in data) or "fingerprint" in data:
        return None
    try:
        snapshot = snapshot_from_dict(data.get("snapshot", data))
        rings = tuple(tuple(serial_of(actor) for actor in ring) for ring in data.get("rings", ()))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: not a report of this version ({error!r})", option="findings") from error
    return snapshot, rings


def serial_of(identity: str) -> int:
    """Return the serial in an actor's ``PID/tSERIAL`` or a resource's ``rSERIAL``."""
    return int(identity.rpartition("/")[2][1:])


def _site(data: Mapping[str, Any] | None) -> CallSite | None:
    return None if data is None else CallSite(str(data["file"]), int(data["line"]), str(data["function"]))


def snapshot_from_dict(data: Mapping[str, Any]) -> Snapshot:
    """Return the snapshot that a JSON object stands for; its clock starts at the time of the picture."""
    now = float(data["time"])

    def since_ns(seconds: float | None) -> int:
        return 0 if seconds is None else int((seconds - now) * 1e9)

    actors, requests, assignments, resources = [], [], [], []
    for entry in data["actors"]:
        serial = serial_of(entry["id"])
        stack = tuple(
            StackFrame(
                str(f["file"]),
                int(f["line"]),
                str(f["function"]),
                str(f.get("source", "")),
                str(f.get("interrupts", "")),
            )
            for f in entry["stack"]
        )
        actors.append(
            Actor(serial, entry["type"], entry["pid"], entry["native_id"], entry["name"], entry["daemon"],
                  entry.get("state", "live"), stack)
        )  # fmt: skip
        if entry["waits_for"] is not None:
            requests.append(
                RequestEdge(serial, serial_of(entry["waits_for"]), since_ns(entry["waiting_since"]), 0,
                            bool(entry["timed"]), _site(entry.get("waits_at")))
            )  # fmt: skip
    for entry in data["resources"]:
        serial = serial_of(entry["id"])
        resources.append(
            Resource(serial, entry["kind"], entry["name"], _site(entry["created"]),
                     bool(entry.get("signal_mode")), entry.get("permits"))
        )  # fmt: skip
        for holder in entry["holders"]:
            since = None if holder["since"] is None else since_ns(holder["since"])
            assignments.append(AssignmentEdge(serial, serial_of(holder["actor"]), since, 1, _site(holder["acquired"])))
    return Snapshot(
        pid=int(data["pid"]),
        monotonic_ns=0,
        wall_seconds=now,
        actors=tuple(sorted(actors, key=lambda actor: actor.serial)),
        resources=tuple(sorted(resources, key=lambda resource: resource.serial)),
        requests=tuple(sorted(requests, key=lambda edge: edge.actor)),
        assignments=tuple(sorted(assignments, key=lambda edge: (edge.resource, edge.holder))),
        untracked_locks=int(data.get("untracked_locks", 0)),
        foreign_threads=int(data.get("foreign_threads", 0)),
        process_name=str(data.get("process_name", "")),
    )
