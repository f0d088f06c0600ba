from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concagent.exporters.svg import _Node, _on_border, finding_svg, snapshot_svg
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

SVG = "{http://www.w3.org/2000/svg}"
SECOND = 10**9
Box = tuple[float, float, float, float]


def site(line: int) -> CallSite:
    return CallSite("/srv/bank.py", line, "transfer")


def member(number: int, size: int) -> FindingActor:
    waits = f"r{(number + 1) % size}"
    return FindingActor(f"7/t{number}", "thread", 7, 70, f"w{number}", False, waits, 990.0, holds=(f"r{number}",))


def ring(size: int, *behind: FindingActor, extra: tuple[FindingResource, ...] = (), name: str = "lock") -> Finding:
    held = tuple(
        FindingResource(f"r{i}", "lock", f"{name} {i}", site(i), (Holder(f"7/t{i}", site(30), 980.0),))
        for i in range(size)
    )
    members = tuple(member(i, size) for i in range(size))
    return Finding(
        "deadlock", "lock", "proven", "1", "f", 1000.0, 7, f"{size} wait", (*members, *behind), (*held, *extra)
    )


def behind(name: str, waits: str, *holds: str, timed: bool = False) -> FindingActor:
    return FindingActor(name, "thread", 7, None, name, False, waits, 999.0, timed, holds, "behind")


def snapshot(actors: int, waits: dict[int, int], holds: dict[int, int], resources: int, kind: str = "lock") -> Snapshot:
    return Snapshot(
        pid=7,
        monotonic_ns=100 * SECOND,
        wall_seconds=1000.0,
        actors=tuple(Actor(i, "thread", 7, 70 + i, f"t{i}", False, "live") for i in range(actors)),
        resources=tuple(Resource(i, kind, f"l{i}", None) for i in range(resources)),
        requests=tuple(RequestEdge(a, r, 90 * SECOND, 1, a % 3 == 0, site(31)) for a, r in waits.items()),
        assignments=tuple(AssignmentEdge(r, a, 80 * SECOND, 1, None) for r, a in holds.items()),
        process_name="shop",
    )


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(svg)


def boxes(root: ET.Element, kind: str = "") -> list[Box]:
    found = []
    for rect in root.iter(f"{SVG}rect"):
        classes = rect.get("class", "").split()
        if "card" not in classes and (not kind or kind in classes):
            x, y, w, h = (float(rect.get(key, "nan")) for key in ("x", "y", "width", "height"))
            found.append((x, y, w, h))
    return found


def texts(root: ET.Element, kind: str) -> list[str]:
    return [text.text or "" for text in root.iter(f"{SVG}text") if text.get("class") == kind]


def overlap(boxes: list[Box]) -> list[tuple[Box, Box]]:
    return [
        (a, b)
        for i, a in enumerate(boxes)
        for b in boxes[:i]
        if a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 8, 12, 20, 64])
def test_ring_is_drawn_red_and_without_overlaps(size: int) -> None:
    root = parsed(finding_svg(ring(size)))

    assert len(boxes(root, "red")) == 2 * size
    assert len(boxes(root, "actor")) == size
    assert overlap(boxes(root)) == []
    assert sum("red" in path.get("class", "") for path in root.iter(f"{SVG}path")) == 2 * size


def test_picture_lies_within_its_frame() -> None:
    root = parsed(finding_svg(ring(3, behind("x", "r0"), behind("y", "r1"))))

    _, _, width, height = (float(part) for part in root.get("viewBox", "").split())
    shift = root.find(f"{SVG}g")
    assert shift is not None
    dx, dy = (float(part) for part in shift.get("transform", "")[10:-1].split())
    for x, y, w, h in boxes(root):
        assert 0 <= x + dx <= x + dx + w <= width
        assert 0 <= y + dy <= y + dy + h <= height


def test_actors_behind_a_ring_hang_outside_and_are_not_red() -> None:
    audit = FindingResource("r7", "rlock", "audit", None, (Holder("x", None, None),))
    found = ring(2, behind("x", "r0", "r7"), behind("y", "r0", timed=True), behind("z", "r7"), extra=(audit,))

    root = parsed(finding_svg(found))

    assert len(boxes(root, "red")) == 4
    assert len(boxes(root, "behind")) == 3
    assert overlap(boxes(root)) == []
    assert "waits 1.0 s, timed" in texts(root, "label")


def test_wait_for_a_thread_has_no_holding_label() -> None:
    thread = FindingResource("r1", "thread", None, None, (Holder("7/t1", None, None),))
    found = ring(2)
    found = found.with_changes(resources=(found.resources[0], thread))

    root = parsed(finding_svg(found))

    assert texts(root, "label") == ["waits 10.0 s", "waits 10.0 s", "held, taken at", "bank.py:30 in transfer"]


def test_actor_and_resource_known_only_from_edges_are_drawn() -> None:
    bare = Finding("stall", "lock", "proven", "1", "f", 0.0, 7, "", edges=(("x", "waits", "r9"),))

    root = parsed(finding_svg(bare))

    assert texts(root, "name") == ["x", "resource r9"]
    assert texts(root, "label") == ["waits"]


def test_finding_without_a_word_of_confidence_has_none_in_its_title() -> None:
    root = parsed(finding_svg(ring(2).with_changes(confidence="")))

    assert texts(root, "title") == ["2 wait"]


def test_finding_without_actors_is_an_empty_card() -> None:
    root = parsed(finding_svg(Finding("leak", "file", "proven", "1", "f", 0.0, 7, "a file")))

    assert boxes(root) == []
    assert texts(root, "title") == ["a file (proven)"]


def test_long_title_is_wrapped_and_long_names_are_cut() -> None:
    found = ring(1, name="n" * 60).with_changes(title="word " * 200)

    root = parsed(finding_svg(found))

    assert len(texts(root, "title")) == 3
    assert texts(root, "name")[1] == f'lock "{"n" * 31}...'


def test_chain_of_waits_reads_from_left_to_right() -> None:
    root = parsed(snapshot_svg(snapshot(3, {0: 0, 1: 1}, {0: 1, 1: 2}, 2)))

    names = texts(root, "name")
    left = dict(zip(names, (x + w / 2 for x, _, w, _ in boxes(root)), strict=True))
    order = ["t0", 'lock "l0"', "t1", 'lock "l1"', "t2"]
    assert sorted(order, key=lambda name: left[name]) == order


def test_snapshot_shows_the_given_rings_in_red_and_idle_threads_beside() -> None:
    both = snapshot(5, {0: 1, 1: 0, 2: 3, 3: 2}, {0: 0, 1: 1, 2: 2, 3: 3}, 4)

    root = parsed(snapshot_svg(both, rings=[(0, 1), (99,)]))

    assert len(boxes(root, "red")) == 4
    assert len(boxes(root)) == 9
    assert overlap(boxes(root)) == []


def test_large_snapshot_draws_only_what_matters_and_counts_the_rest() -> None:
    waits = dict.fromkeys(range(1, 12), 0) | {12: 1}

    root = parsed(snapshot_svg(snapshot(60, waits, {0: 0, 1: 50, 5: 55}, 8)))

    assert texts(root, "caption") == [
        "Not drawn: 46 more that neither wait nor are waited for; 8 waiters drawn together."
    ]
    assert "8 more wait here" in texts(root, "name")
    assert len(boxes(root)) == 9
    assert overlap(boxes(root)) == []


def test_large_snapshot_in_which_everybody_waits_has_no_word_of_idle_ones() -> None:
    root = parsed(snapshot_svg(snapshot(40, {i: i for i in range(40)}, {}, 40)))

    assert texts(root, "caption") == []
    assert len(boxes(root)) == 80


def test_members_of_a_ring_are_never_folded() -> None:
    waits = {0: 1, 1: 0} | dict.fromkeys(range(2, 60), 0)

    root = parsed(snapshot_svg(snapshot(60, waits, {0: 0, 1: 1}, 2), rings=[(0, 1)]))

    assert len(boxes(root, "red")) == 4
    assert "55 more wait here" in texts(root, "name")


def test_border_towards_the_middle_itself_is_the_middle() -> None:
    assert _on_border(_Node("a", ["a"], "actor", x=3.0, y=4.0), (3.0, 4.0)) == (3.0, 4.0)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 12, 20, 30])
def test_boxes_of_many_actors_behind_a_ring_do_not_overlap(count: int, size: int) -> None:
    root = parsed(finding_svg(ring(size, *(behind(f"x{i}", "r0") for i in range(count)))))

    assert overlap(boxes(root)) == []


@given(st.text(st.characters(codec=None, categories=None), max_size=20))
def test_text_is_escaped(name: str) -> None:
    root = parsed(finding_svg(ring(2, name=name).with_changes(title=name)))

    assert len(boxes(root)) == 4


@given(
    st.dictionaries(st.integers(0, 7), st.integers(0, 5), max_size=8),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), max_size=8, unique=True),
)
def test_any_graph_has_a_layout_with_every_node_and_edge(waits: dict[int, int], holds: list[tuple[int, int]]) -> None:
    base = snapshot(8, waits, {}, 6)
    held = tuple(AssignmentEdge(r, a, None, 1, None) for r, a in sorted(holds))
    graph = Snapshot(7, base.monotonic_ns, base.wall_seconds, base.actors, base.resources, base.requests, held)

    root = parsed(snapshot_svg(graph))

    assert len(boxes(root)) == 14
    assert len(list(root.iter(f"{SVG}path"))) == len(waits) + len(holds)
    assert all(math.isfinite(part) for box in boxes(root) for part in box)
