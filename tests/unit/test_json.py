from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concagent.errors import ConfigError
from concagent.exporters.json import (
    finding_from_dict,
    finding_line,
    report_to_json,
    snapshot_to_dict,
    snapshot_to_json,
)
from concagent.model import (
    CONFIDENCES,
    KINDS,
    Actor,
    AgentStats,
    AssignmentEdge,
    CallSite,
    ClassStatistics,
    Finding,
    FindingActor,
    FindingResource,
    Holder,
    Report,
    RequestEdge,
    Resource,
    Snapshot,
    StackFrame,
)

# All of Unicode with lone surrogates: names of threads and files may hold them.
text = st.text(st.characters(codec=None, categories=None), max_size=8)
numbers = st.integers(0, 2**31)
seconds = st.floats(0, 4e9)
sites = st.builds(CallSite, text, numbers, text)
frames = st.builds(StackFrame, text, numbers, text, text)
actors = st.builds(
    FindingActor,
    id=text,
    type=text,
    pid=numbers,
    native_id=st.none() | numbers,
    name=text,
    daemon=st.booleans(),
    waits_for=st.none() | text,
    waiting_since=st.none() | seconds,
    timed=st.booleans(),
    holds=st.lists(text, max_size=2).map(tuple),
    role=text,
    stack=st.lists(frames, max_size=2).map(tuple),
)
holders = st.builds(Holder, text, st.none() | sites, st.none() | seconds)
resources = st.builds(
    FindingResource, text, text, st.none() | text, st.none() | sites, st.lists(holders, max_size=2).map(tuple)
)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=2),
    max_leaves=4,
)
findings = st.builds(
    Finding,
    kind=st.sampled_from(KINDS),
    resource_kind=text,
    confidence=st.sampled_from(CONFIDENCES),
    id=text,
    fingerprint=text,
    time=seconds,
    pid=numbers,
    title=text,
    actors=st.lists(actors, max_size=2).map(tuple),
    resources=st.lists(resources, max_size=2).map(tuple),
    edges=st.lists(st.tuples(text, text, text), max_size=2).map(tuple),
    order=st.lists(st.dictionaries(text, values, max_size=2), max_size=2).map(tuple),
    detail=st.none() | text,
    reason=st.none() | text,
    count=numbers,
    advice=text,
    suppress=text,
)
MINIMAL = {
    "schema": 1, "kind": "deadlock", "resource_kind": "lock", "confidence": "proven", "fingerprint": "f", "title": "t",
}  # fmt: skip


@given(findings)
def test_finding_survives_the_way_through_its_line(finding: Finding) -> None:
    line = finding_line(finding)

    assert finding_from_dict(json.loads(line)) == finding


@given(findings)
def test_line_of_a_finding_is_one_line_of_ascii(finding: Finding) -> None:
    line = finding_line(finding)

    assert line.isascii()
    assert len(line.splitlines()) == 1


def test_value_that_json_does_not_know_becomes_its_text() -> None:
    finding = finding_from_dict(MINIMAL).with_changes(order=({"at": CallSite("f", 1, "g")},))

    assert '"at": "f:1 in g"' in finding_line(finding)


def test_missing_parts_get_defaults_and_unknown_ones_are_ignored() -> None:
    finding = finding_from_dict({**MINIMAL, "from_the_future": 1, "actors": [{"id": "a"}]})

    assert finding.actors == (FindingActor("a", "thread", 0, None, "", False),)
    assert finding.count == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "not a JSON object"),
        ({}, "its schema is None; this version reads 1"),
        ({**MINIMAL, "schema": 2}, "its schema is 2"),
        ({**MINIMAL, "kind": 3, "title": None}, "no text in kind, title"),
        ({**MINIMAL, "actors": 7}, "wrong shape"),
        ({**MINIMAL, "actors": [7]}, "wrong shape"),
        ({**MINIMAL, "actors": [{}]}, "wrong shape"),
        ({**MINIMAL, "resources": [{"id": "r1"}]}, "wrong shape"),
        ({**MINIMAL, "edges": [["a"]]}, "wrong shape"),
        ({**MINIMAL, "time": "yesterday"}, "wrong shape"),
        ({**MINIMAL, "time": [1]}, "wrong shape"),
        ({**MINIMAL, "order": [3]}, "wrong shape"),
    ],
)
def test_what_is_no_finding_is_refused_with_the_reason(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        finding_from_dict(data)

    assert caught.value.option == "findings"


def a_snapshot() -> Snapshot:
    second = 10**9
    return Snapshot(
        pid=7,
        monotonic_ns=100 * second,
        wall_seconds=1000.0,
        actors=(
            Actor(1, "thread", 7, 71, "\udcff", False, "blocked", (StackFrame("a.py", 3, "f", "with b:"),)),
            Actor(2, "thread", 7, None, "free", True, "live"),
        ),
        resources=(Resource(5, "semaphore", "s", CallSite("a.py", 1, "g"), True, 2),),
        requests=(RequestEdge(1, 5, 90 * second, 4, True, CallSite("a.py", 3, "f")),),
        assignments=(
            AssignmentEdge(5, 2, 80 * second, 1, CallSite("a.py", 9, "h")),
            AssignmentEdge(5, 99, None, 1, None),
        ),
        untracked_locks=3,
        foreign_threads=1,
        process_name="p",
    )


def test_snapshot_is_written_with_the_names_and_clocks_of_findings() -> None:
    site = {"file": "a.py", "line": 3, "function": "f"}

    data = snapshot_to_dict(a_snapshot())

    assert data == {
        "schema": 1,
        "pid": 7,
        "process_name": "p",
        "time": 1000.0,
        "actors": [
            {"id": "7/t1", "type": "thread", "pid": 7, "native_id": 71, "name": "\udcff", "daemon": False,
             "waits_for": "r5", "waiting_since": 990.0, "timed": True, "holds": [], "state": "blocked",
             "waits_at": site, "stack": [{**site, "source": "with b:"}]},
            {"id": "7/t2", "type": "thread", "pid": 7, "native_id": None, "name": "free", "daemon": True,
             "waits_for": None, "waiting_since": None, "timed": False, "holds": ["r5"], "state": "live",
             "waits_at": None, "stack": []},
        ],
        "resources": [
            {"id": "r5", "kind": "semaphore", "name": "s", "created": {"file": "a.py", "line": 1, "function": "g"},
             "signal_mode": True, "permits": 2,
             "holders": [
                 {"actor": "7/t2", "acquired": {"file": "a.py", "line": 9, "function": "h"}, "since": 980.0},
                 {"actor": "7/t99", "acquired": None, "since": None},
             ],
             "detail": None},
        ],
        "edges": [["7/t1", "waits", "r5"], ["r5", "held-by", "7/t2"], ["r5", "held-by", "7/t99"]],
        "untracked_locks": 3,
        "foreign_threads": 1,
    }  # fmt: skip


def test_json_of_a_snapshot_is_its_object_in_ascii() -> None:
    written = snapshot_to_json(a_snapshot())

    assert written.isascii()
    assert json.loads(written) == snapshot_to_dict(a_snapshot())


def test_json_of_a_report_holds_rings_findings_and_statistics() -> None:
    stats = AgentStats(
        findings=((("deadlock", "lock", "proven"), 2),),
        classes=(ClassStatistics("orders", "lock", 5, 1, 0.5, (1,), 0.1, 2, (0, 2)),),
        agent_errors=(("hook", 1),),
    )
    report = Report(
        a_snapshot(), ((1, 3),), (finding_from_dict(MINIMAL),), stats, "SIGUSR1", "3.11", "python a.py", "0.1"
    )

    data = json.loads(report_to_json(report))

    assert data["rings"] == [["7/t1", "7/t3"]]
    assert finding_from_dict(data["findings"][0]) == finding_from_dict(MINIMAL)
    assert data["snapshot"] == snapshot_to_dict(a_snapshot())
    assert data["statistics"]["findings"] == [
        {"kind": "deadlock", "resource_kind": "lock", "confidence": "proven", "count": 2}
    ]
    assert data["statistics"]["classes"][0]["hold_buckets"] == [0, 2]
    assert data["statistics"]["agent_errors"] == {"hook": 1}
    assert (data["trigger"], data["python"], data["command"], data["version"]) == (
        "SIGUSR1", "3.11", "python a.py", "0.1",
    )  # fmt: skip


def test_every_statistic_is_in_the_json_of_a_report() -> None:
    report = Report(Snapshot(1, 0, 0.0), (), (), AgentStats())

    data = json.loads(report_to_json(report))

    assert list(data["statistics"]) == list(AgentStats.__dataclass_fields__)
