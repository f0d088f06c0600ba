"""The wait-for picture, drawn without any library, so that a browser, a README and a server without Graphviz can show it.

A ring of a deadlock is drawn as one: its actors (rounded) and resources (square) alternate on a circle, red, so that the
eye sees at once that no arrow leads out.  Whoever is stuck behind it hangs outside, on the resource it waits for.  What is
no ring is a tree of waits and is drawn from left to right, ending at whoever everybody waits for.

Every actor waits for at most one resource, so following "waits for" and "first holder" gives every node at most one way
on, and each connected part has exactly one end: a ring, or a node without a way on.  The layout rests on this; further
holders (of a semaphore) are drawn as further arrows and do not move anything.

Colours are set twice, for light and for dark surroundings, on a card with a ground of its own; text is escaped.

Limits     beyond ``LARGE`` nodes only actors that wait or that hold something waited for are drawn; of many waiters of
           one resource only the first are.  The caption counts the rest.
Cost       O(nodes + edges).
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final
from xml.sax.saxutils import escape, quoteattr

from concagent.exporters._scene import (
    LIVING_KINDS,
    Scene,
    clean,
    duration,
    in_function,
    scene_of_finding,
    scene_of_snapshot,
    short_path,
)
from concagent.model import CallSite, Finding, Snapshot

LARGE: Final = 40
# How many waiters of one resource are drawn one by one, in a small and in a large picture.
_FANNED: Final = 8
_FANNED_LARGE: Final = 4
_CHARACTER: Final = 6.7
_LONGEST: Final = 40
_TITLE_CHARACTER: Final = 8.4
_TITLE_WIDTH: Final = 620
_LINE_HEIGHT: Final = 16
_MARGIN: Final = 28
_COLUMN: Final = 330
_ROW_GAP: Final = 34
_STEP: Final = 40
# Neighbours are placed one after the other: comparing with the last few hundred keeps the cost of huge pictures linear.
_COMPARED: Final = 300

_STYLE: Final = """
.card{fill:#ffffff;stroke:#d0d7de}
text{font-family:ui-sans-serif,system-ui,"Segoe UI",Helvetica,Arial,sans-serif;font-size:12px;fill:#57606a}
.title{font-size:16px;font-weight:600;fill:#1f2328}
.name{font-weight:600;font-size:13px;fill:#1f2328}
.actor{fill:#eaf2fd;stroke:#4a83c9;stroke-width:1.4}
.resource{fill:#fbf6e6;stroke:#b08a2e;stroke-width:1.4}
.red{stroke:#cf222e;stroke-width:2.2}
.edge{fill:none;stroke:#7d8590;stroke-width:1.5}
.edge.red{stroke:#cf222e;stroke-width:2.2}
.timed,.behind{stroke-dasharray:6 4}
.head{fill:#7d8590}
.head.red{fill:#cf222e;stroke:none}
.label{font-size:11px;paint-order:stroke;stroke:#ffffff;stroke-width:6px;stroke-linejoin:round}
@media (prefers-color-scheme:dark){
.card{fill:#0d1117;stroke:#30363d}
text{fill:#9198a1}
.title,.name{fill:#f0f6fc}
.actor{fill:#12233b;stroke:#4a83c9}
.resource{fill:#2a2413;stroke:#b08a2e}
.red,.edge.red{stroke:#ff6a69}
.head.red{fill:#ff6a69}
.label{stroke:#0d1117}
}
"""


@dataclass(slots=True)
class _Node:
    """A box with lines of text; ``x`` and ``y`` are its middle."""

    key: str
    lines: list[str]
    shape: str
    classes: list[str] = field(default_factory=list)
    x: float = 0.0
    y: float = 0.0

    @property
    def width(self) -> float:
        return max(110.0, 26 + _CHARACTER * max(len(line) for line in self.lines))

    @property
    def height(self) -> float:
        return 18.0 + _LINE_HEIGHT * len(self.lines)


@dataclass(frozen=True, slots=True)
class _Edge:
    source: str
    target: str
    label: tuple[str, ...]
    classes: str = ""


def finding_svg(finding: Finding) -> str:
    """Return the picture of a finding as an SVG document; the ring through its first member is red."""
    scene = scene_of_finding(finding)
    members = [actor.id for actor in finding.actors if actor.role in ("member", "victim")]
    ring = next((r for actor in members if (r := scene.ring_from(actor))), ())
    behind = {actor.id for actor in finding.actors if actor.role in ("behind", "bystander")}
    title = f"{finding.title} ({finding.confidence})" if finding.confidence else finding.title
    return _Picture(scene, [ring] if ring else [], behind).document(title)


def snapshot_svg(snapshot: Snapshot, *, rings: Iterable[Sequence[int]] = ()) -> str:
    """Return the picture of a snapshot as an SVG document.

    Args:
        snapshot: What to draw.
        rings: Actor serials of each deadlock, in waiting order, as in ``Report.rings``; these are red.
    """
    scene = scene_of_snapshot(snapshot)
    ids = {actor.serial: actor.id for actor in snapshot.actors}
    ring_ids = [tuple(ids[serial] for serial in ring if serial in ids) for ring in rings]
    title = f"pid {snapshot.pid} {snapshot.process_name}".strip()
    return _Picture(scene, [ring for ring in ring_ids if ring], set()).document(title)


class _Picture:
    """One drawing: chooses the nodes, places them, writes them."""

    def __init__(self, scene: Scene, rings: Sequence[tuple[str, ...]], behind: set[str]) -> None:
        self.scene = scene
        self.behind = behind
        self.red = {actor for ring in rings for actor in ring}
        self.red |= {scene.waits[actor] for actor in self.red if actor in scene.waits}
        self.nodes: dict[str, _Node] = {}
        self.edges: list[_Edge] = []
        self.caption = ""
        self._choose()
        self._connect()
        self._pairs = {(edge.source, edge.target) for edge in self.edges}
        self._place()

    def document(self, title: str) -> str:
        """Return the whole SVG document."""
        left, top, right, bottom = self._bounds()
        title = clean(title)
        room = max(right - left, _TITLE_WIDTH)
        titles = textwrap.wrap(title, int(room / _TITLE_CHARACTER), max_lines=3, placeholder=" ...")
        head = 18 + 22 * len(titles)
        width = room + 2 * _MARGIN
        height = bottom - top + 2 * _MARGIN + head + (24 if self.caption else 0)
        shift_x = _MARGIN - left + (room - (right - left)) / 2
        shift_y = _MARGIN + head - top
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label={quoteattr(title)}>',
            f"<style>{_STYLE}</style>",
            f'<rect class="card" x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="12"/>',
            *(_text(_MARGIN, 38 + 22 * i, t, "title", "start") for i, t in enumerate(titles)),
            f'<g transform="translate({shift_x:.1f} {shift_y:.1f})">',
        ]
        labels: list[str] = []
        parts.extend(self._edge(edge, labels) for edge in self.edges)
        parts.extend(self._box(node) for node in self.nodes.values())
        parts += [*labels, "</g>"]
        if self.caption:
            parts.append(_text(_MARGIN, height - 18, self.caption, "caption", "start"))
        return "\n".join([*parts, "</svg>"]) + "\n"

    # What is drawn

    def _choose(self) -> None:
        scene = self.scene
        actors = list(scene.actor_name)
        resources = list(scene.resource_name)
        notes = []
        large = len(actors) + len(resources) > LARGE
        folded = self._fold_waiters(_FANNED_LARGE if large else _FANNED)
        if large:
            wanted = set(scene.waits)
            wanted.update(h for r in scene.waiters for h in scene.holders.get(r, ()))
            left_out = sum(actor not in wanted for actor in actors)
            if left_out:
                notes.append(f"{left_out} more that neither wait nor are waited for")
            actors = [actor for actor in actors if actor in wanted]
            resources = [resource for resource in resources if resource in scene.waiters]
        hidden = {actor for members in folded.values() for actor in members}
        for actor in actors:
            if actor not in hidden:
                self._add_actor(actor)
        for resource in resources:
            self._add_resource(resource)
            if folded.get(resource):
                key = f"{resource} more"
                lines = [f"{len(folded[resource])} more wait here"]
                self.nodes[key] = _Node(key, lines, "actor", ["behind"])
                self.edges.append(_Edge(key, resource, ()))
        if hidden:
            notes.append(f"{len(hidden)} waiters drawn together")
        self.caption = f"Not drawn: {'; '.join(notes)}." if notes else ""

    def _fold_waiters(self, limit: int) -> dict[str, list[str]]:
        """Return, for each resource, the waiters beyond the first few that nobody waits for in turn."""
        scene = self.scene
        waited_for = {h for r in scene.waiters for h in scene.holders.get(r, ())}
        folded = {}
        for resource, waiters in scene.waiters.items():
            leaves = [a for a in waiters if a not in waited_for and a not in self.red]
            if len(leaves) > limit:
                folded[resource] = leaves[limit - 1 :]
        return folded

    def _add_actor(self, actor: str) -> None:
        found = self.scene.actors.get(actor)
        lines = [self.scene.actor_name[actor]]
        if found is not None:
            native = "" if found.native_id is None else f"/{found.native_id}"
            lines.append(f"{found.type} {found.pid}{native}")
        site = self.scene.wait_sites.get(actor)
        if site is not None:
            lines.append(f"at {_place(site)}")
        node = _Node(actor, [_cut(line) for line in lines], "actor")
        node.classes += ["red"] if actor in self.red else []
        node.classes += ["behind"] if actor in self.behind else []
        self.nodes[actor] = node

    def _add_resource(self, resource: str) -> None:
        found = self.scene.resources.get(resource)
        lines = [self.scene.resource_name[resource]]
        if found is not None and found.created is not None:
            lines.append(f"made at {_place(found.created)}")
        node = _Node(resource, [_cut(line) for line in lines], "resource")
        node.classes += ["red"] if resource in self.red else []
        self.nodes[resource] = node

    def _connect(self) -> None:
        scene = self.scene
        for actor, resource in scene.waits.items():
            if actor not in self.nodes:
                continue
            waited = scene.waited(actor)
            found = scene.actors.get(actor)
            timed = found is not None and found.timed
            label = "waits" if waited is None else f"waits {duration(waited)}"
            classes = ["red"] if actor in self.red else []
            classes += ["timed"] if timed else []
            text = f"{label}, timed" if timed else label
            self.edges.append(_Edge(actor, resource, (text,), " ".join(classes)))
        for resource, holders in scene.holders.items():
            for actor in holders:
                if actor not in self.nodes or resource not in self.nodes:
                    continue
                red = "red" if actor in self.red and resource in self.red else ""
                self.edges.append(_Edge(resource, actor, self._hold_label(resource, actor), red))

    def _hold_label(self, resource: str, actor: str) -> tuple[str, ...]:
        if self.scene.kind(resource) in LIVING_KINDS:
            return ()
        holding = self.scene.holding(resource, actor)
        if holding is None or holding.acquired is None:
            return ("held by",)
        return ("held, taken at", _cut(_place(holding.acquired)))

    # Where it is drawn

    def _place(self) -> None:
        following: dict[str, str] = {}
        for edge in self.edges:
            following.setdefault(edge.source, edge.target)
        ends = _ends(self.nodes, following)
        leading: dict[str, list[str]] = {}
        for source, target in following.items():
            leading.setdefault(target, []).append(source)
        parts = []
        for end in ends:
            inside = set(end)
            children = {
                node: [c for c in leading.get(node, ()) if c not in inside] for node in _tree_nodes(end, leading)
            }
            if len(end) > 1:
                parts.append(self._place_ring(end, children))
            else:
                parts.append(self._place_tree(end[0], children))
        self._pack(parts)

    def _place_ring(self, ring: list[str], children: dict[str, list[str]]) -> list[str]:
        """Put a ring on an ellipse and what hangs on it outside, each branch in its own sector."""
        # An actor stands on the left: reading starts there.
        start = next(i for i, key in enumerate(ring) if self.nodes[key].shape == "actor")
        ring = ring[start:] + ring[:start]
        leaves: dict[str, int] = {}
        for key in reversed(_preorder(ring, children)):
            leaves[key] = sum(leaves[child] for child in children[key]) or 1
        total = sum(leaves[key] for key in ring)
        step = math.tau / len(ring)
        radius = max(140.0, 225 * len(ring) / math.tau)
        if total > len(ring):
            radius = max(radius, 150 * total / math.tau - 190)
        stretch = 1.75 if len(ring) <= 4 else 1.35

        placed: list[str] = []

        def put(key: str, angle: float, outside: float) -> float:
            """Place a node, further out while it would cover another; return how far outside it came to lie."""
            node = self.nodes[key]
            while True:
                node.x = (radius + outside) * stretch * math.cos(angle)
                node.y = (radius + outside * 0.8) * math.sin(angle)
                if not outside or not any(_touch(node, self.nodes[other]) for other in placed[-_COMPARED:]):
                    placed.append(key)
                    return outside
                outside += _STEP

        pending: list[tuple[str, float, float, float]] = []
        for index, key in enumerate(ring):
            angle = math.pi + index * step
            put(key, angle, 0)
            # The spread of a branch: what its leaves need at its distance, at most a sector and a half.
            spread = min(step * 1.5, leaves[key] * 150 / (radius + 150))
            pending.append((key, angle, spread, 0.0))
        while pending:
            key, angle, spread, outside = pending.pop()
            at = angle - spread / 2
            for child in children[key]:
                share = spread * leaves[child] / leaves[key]
                reached = put(child, at + share / 2, outside + 190)
                pending.append((child, at + share / 2, share, reached))
                at += share
        return placed

    def _place_tree(self, root: str, children: dict[str, list[str]]) -> list[str]:
        """Put the root on the right and what waits for it, directly or not, in columns to its left."""
        size: dict[str, int] = {}
        for key in reversed(_preorder([root], children)):
            size[key] = 1 + sum(size[child] for child in children[key])
            # Small branches together, or a lone waiter ends up beyond a long one, far from what it waits for.
            children[key].sort(key=lambda child: size[child])
        depth = {root: 0}
        order = _preorder([root], children)
        for key in order:
            for child in children[key]:
                depth[child] = depth[key] + 1
        below = 0.0
        for key in reversed(order):
            node = self.nodes[key]
            node.x = -depth[key] * _COLUMN
            if children[key]:
                node.y = sum(self.nodes[child].y for child in children[key]) / len(children[key])
            else:
                node.y = below + node.height / 2
                below += node.height + _ROW_GAP
        return order

    def _pack(self, parts: list[list[str]]) -> None:
        """Move the parts apart: those with waits below each other, single nodes in rows at the bottom."""
        top = 0.0
        single = [keys[0] for keys in parts if len(keys) == 1]
        for keys in sorted((k for k in parts if len(k) > 1), key=lambda k: k[0] not in self.red):
            left, upper, _, lower = _bounds_of(self.nodes[key] for key in keys)
            for key in keys:
                self.nodes[key].x -= left
                self.nodes[key].y += top - upper
            top += lower - upper + 60
        columns = max(1, min(5, math.ceil(math.sqrt(len(single)))))
        for index, key in enumerate(single):
            node = self.nodes[key]
            node.x = 130 + (index % columns) * 270
            node.y = top + 40 + (index // columns) * 90

    def _bounds(self) -> tuple[float, float, float, float]:
        left, top, right, bottom = _bounds_of(self.nodes.values())
        for edge in self.edges:
            x, y = self._middle(edge)
            half = _CHARACTER * max((len(line) for line in edge.label), default=0) / 2
            left, right = min(left, x - half), max(right, x + half)
            top, bottom = min(top, y - 14), max(bottom, y + 14)
        return left, top, right, bottom

    # How it is drawn

    def _bend(self, edge: _Edge) -> tuple[float, float]:
        """Return the control point of an edge: edges there and back bend apart, arcs of a ring outwards."""
        a, b = self.nodes[edge.source], self.nodes[edge.target]
        dx, dy = b.x - a.x, b.y - a.y
        length = math.hypot(dx, dy) or 1.0
        bow = 0.0
        if (edge.target, edge.source) in self._pairs:
            bow = 0.34 * length
        elif edge.source in self.red and edge.target in self.red:
            bow = 0.16 * length
        return (a.x + b.x) / 2 + bow * dy / length, (a.y + b.y) / 2 - bow * dx / length

    def _middle(self, edge: _Edge) -> tuple[float, float]:
        a, b = self.nodes[edge.source], self.nodes[edge.target]
        bend = self._bend(edge)
        start, end = _on_border(a, bend), _on_border(b, bend)
        return (start[0] + 2 * bend[0] + end[0]) / 4, (start[1] + 2 * bend[1] + end[1]) / 4

    def _edge(self, edge: _Edge, labels: list[str]) -> str:
        bend = self._bend(edge)
        start = _on_border(self.nodes[edge.source], bend)
        end = _on_border(self.nodes[edge.target], bend)
        angle = math.atan2(end[1] - bend[1], end[0] - bend[0])
        base = (end[0] - 9 * math.cos(angle), end[1] - 9 * math.sin(angle))
        wing = (4.5 * math.sin(angle), -4.5 * math.cos(angle))
        head = f"{end[0]:.1f},{end[1]:.1f} {base[0] + wing[0]:.1f},{base[1] + wing[1]:.1f} "
        head += f"{base[0] - wing[0]:.1f},{base[1] - wing[1]:.1f}"
        x, y = self._middle(edge)
        first = y + 4 - 7 * (len(edge.label) - 1)
        labels.extend(_text(x, first + 14 * i, line, "label") for i, line in enumerate(edge.label))
        red = " red" if "red" in edge.classes else ""
        return (
            f'<path class="edge {edge.classes}" d="M{start[0]:.1f} {start[1]:.1f} '
            f'Q{bend[0]:.1f} {bend[1]:.1f} {base[0]:.1f} {base[1]:.1f}"/>'
            f'<polygon class="head{red}" points="{head}"/>'
        )

    def _box(self, node: _Node) -> str:
        classes = " ".join([node.shape, *node.classes])
        corner = 18 if node.shape == "actor" else 3
        x, y = node.x - node.width / 2, node.y - node.height / 2
        parts = [
            f'<rect class="{classes}" x="{x:.1f}" y="{y:.1f}" width="{node.width:.1f}" '
            f'height="{node.height:.1f}" rx="{corner}"/>'
        ]
        for index, line in enumerate(node.lines):
            at = y + 21 + index * _LINE_HEIGHT
            parts.append(_text(node.x, at, line, "detail" if index else "name"))
        return "".join(parts)


def _ends(nodes: Iterable[str], following: dict[str, str]) -> list[list[str]]:
    """Return the end of each part: a ring in waiting order, or the one node that has no way on."""
    seen: set[str] = set()
    ends = []
    for node in nodes:
        path: dict[str, None] = {}
        at = node
        while at not in seen and at not in path:
            path[at] = None
            if at not in following:
                ends.append([at])
                break
            at = following[at]
        else:
            if at in path:
                ring = list(path)
                ends.append(ring[ring.index(at) :])
        seen.update(path)
    return ends


def _tree_nodes(roots: Iterable[str], leading: dict[str, list[str]]) -> list[str]:
    """Return the nodes from which a way leads to the roots, and the roots."""
    found = dict.fromkeys(roots)
    pending = list(found)
    while pending:
        for node in leading.get(pending.pop(), ()):
            if node not in found:
                found[node] = None
                pending.append(node)
    return list(found)


def _preorder(roots: Sequence[str], children: dict[str, list[str]]) -> list[str]:
    order = []
    pending = list(reversed(roots))
    while pending:
        key = pending.pop()
        order.append(key)
        pending.extend(reversed(children[key]))
    return order


def _bounds_of(nodes: Iterable[_Node]) -> tuple[float, float, float, float]:
    left, top, right, bottom = [], [], [], []
    for node in nodes:
        left.append(node.x - node.width / 2)
        right.append(node.x + node.width / 2)
        top.append(node.y - node.height / 2)
        bottom.append(node.y + node.height / 2)
    return min(left, default=0), min(top, default=0), max(right, default=0), max(bottom, default=0)


def _touch(a: _Node, b: _Node) -> bool:
    """Return whether two boxes overlap or nearly do."""
    return abs(a.x - b.x) < (a.width + b.width) / 2 + 16 and abs(a.y - b.y) < (a.height + b.height) / 2 + 12


def _on_border(node: _Node, towards: tuple[float, float]) -> tuple[float, float]:
    """Return where the line from the middle of a box to a point leaves the box, a little outside."""
    dx, dy = towards[0] - node.x, towards[1] - node.y
    if not dx and not dy:
        return node.x, node.y
    scale = min(
        (node.width / 2 + 3) / abs(dx) if dx else math.inf,
        (node.height / 2 + 3) / abs(dy) if dy else math.inf,
    )
    return node.x + dx * scale, node.y + dy * scale


def _place(site: CallSite) -> str:
    """Return a site for a small box: the file's name, not its path."""
    name = short_path(site.file).replace("\\", "/").rsplit("/", 1)[-1]
    return f"{name}:{site.line}{in_function(site.function)}"


def _cut(text: str, longest: int = _LONGEST) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _text(x: float, y: float, text: str, kind: str, anchor: str = "middle") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
