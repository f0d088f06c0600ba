from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concagent.exporters.dot import finding_dot, snapshot_dot
from concagent.model import (
    Actor,
    AssignmentEdge,
    CallSite,
    Finding,
    FindingActor,
    FindingResource,
    Holder,
    RequestEdge,
    Resource,
    Snapshot,
)

needs_graphviz = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz's dot is not installed")
SECOND = 10**9


def site(line: int) -> CallSite:
    return CallSite("/srv/bank.py", line, "transfer")


def ring(name: str = "orders") -> Finding:
    return Finding(
        "deadlock", "lock", "proven", "1", "f", 1000.0, 7, f"a and b wait for {name}",
        actors=(
            FindingActor("7/t1", "thread", 7, 71, "a", False, "r2", 990.0, holds=("r1",)),
            FindingActor("7/t2", "thread", 7, 72, "b", False, "r1", 999.0, holds=("r2",)),
            FindingActor("7/t3", "thread", 7, 73, "c", False, "r1", 999.0, timed=True, role="behind"),
        ),
        resources=(
            FindingResource("r1", "lock", name, site(1), (Holder("7/t1", site(30), 980.0),)),
            FindingResource("r2", "lock", "cache", None, (Holder("7/t2", None, None),)),
        ),
    )  # fmt: skip


def snapshot() -> Snapshot:
    return Snapshot(
        pid=7,
        monotonic_ns=100 * SECOND,
        wall_seconds=1000.0,
        actors=tuple(Actor(i, "thread", 7, 70 + i, f"t{i}", False, "live") for i in range(1, 6)),
        resources=(
            *(Resource(i, "lock", f"l{i}", site(i)) for i in range(1, 4)),
            Resource(4, "thread", None, None),
        ),
        requests=(
            RequestEdge(1, 2, 90 * SECOND, 1, False, site(31)),
            RequestEdge(2, 1, 99 * SECOND, 1, False, site(41)),
            RequestEdge(3, 4, 99 * SECOND, 1, True, None),
        ),
        assignments=(
            AssignmentEdge(1, 1, 80 * SECOND, 1, site(30)),
            AssignmentEdge(2, 2, 80 * SECOND, 1, None),
            AssignmentEdge(3, 5, 80 * SECOND, 1, site(50)),
            AssignmentEdge(4, 4, None, 1, None),
        ),
        process_name="shop",
    )


def edges(dot: str) -> list[str]:
    return [line.strip() for line in dot.splitlines() if "->" in line]


def test_finding_is_drawn_with_its_ring_in_red_and_the_rest_dashed() -> None:
    dot = finding_dot(ring())

    red = 'color="#c62828" fontcolor="#c62828" penwidth=2'
    assert edges(dot) == [
        f'"7/t1" -> "r2" [label="waits 10.0 s" {red}];',
        f'"7/t2" -> "r1" [label="waits 1.0 s" {red}];',
        '"7/t3" -> "r1" [label="waits 1.0 s (timed)" style="dashed"];',
        f'"r1" -> "7/t1" [label="held by, taken at /srv/bank.py:30 in transfer" {red}];',
        f'"r2" -> "7/t2" [label="held by" {red}];',
    ]
    assert '"7/t3" [shape=ellipse label="c\\nthread, 7/t3" style="dashed"];' in dot
    assert f'"r1" [shape=box label="lock \\"orders\\"\\n/srv/bank.py:1 in transfer" {red}];' in dot


def test_finding_without_a_ring_has_no_red() -> None:
    dot = finding_dot(ring().with_changes(actors=ring().actors[:1], resources=()))

    assert "c62828" not in dot
    assert '"7/t1" -> "r2" [label="waits 10.0 s"];' in dot


def test_actor_known_only_from_an_edge_is_drawn() -> None:
    bare = ring().with_changes(actors=(), resources=(), edges=(("x", "waits", "r9"),))

    dot = finding_dot(bare)

    assert '"x" [shape=ellipse label="x"];' in dot
    assert '"x" -> "r9" [label="waits"];' in dot


def test_snapshot_shows_everybody_and_given_rings_in_red() -> None:
    dot = snapshot_dot(snapshot(), rings=[(1, 2, 99)])

    assert [f'"7/t{i}" [' in dot for i in range(1, 6)] == [True] * 5
    assert sum("c62828" in edge for edge in edges(dot)) == 4
    assert '"r4" -> "7/t4" [label="is"];' in dot
    assert 'label="pid 7 shop"' in dot
    assert "t1\\nthread, 7/t1\\n/srv/bank.py:31 in transfer" in dot


def test_only_blocked_leaves_out_who_neither_waits_nor_is_waited_for() -> None:
    dot = snapshot_dot(snapshot(), only_blocked=True)

    assert '"7/t4"' in dot
    assert '"7/t5"' not in dot
    assert '"r3"' not in dot


@needs_graphviz
@pytest.mark.parametrize(
    "name", ["orders", '"]; evil [x="', "back\\slash\\", "new\nline", "\udcff \x00 <b>&amp;</b>", "ü"]
)
def test_graphviz_draws_it_whatever_the_names(name: str) -> None:
    dot = finding_dot(ring(name))

    done = subprocess.run(["dot", "-Tsvg"], input=dot.encode(), capture_output=True, check=True, timeout=60)

    assert done.stderr == b""
    assert done.stdout.count(b'class="node"') == 5
    assert done.stdout.count(b'class="edge"') == 5


@given(st.text(st.characters(codec=None, categories=None)))
def test_name_never_leaves_its_quotes(name: str) -> None:
    outside = re.sub(r'"(?:[^"\\]|\\.)*"', "", finding_dot(ring(name)))

    assert outside == re.sub(r'"(?:[^"\\]|\\.)*"', "", finding_dot(ring()))
