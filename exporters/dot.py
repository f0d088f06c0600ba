"""The resource-allocation graph in Graphviz's language.

Actors are ellipses and resources boxes, as in the textbooks; an arrow from an actor to a resource is a wait, one from a
resource to an actor says who holds it, so that a deadlock is a ring of arrows.  Rings are red.  Actors behind a ring are
drawn dashed.  All text is a quoted string: names come from the program, and a lock may be called ``"]; evil [``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from concagent.exporters._scene import (
    LIVING_KINDS,
    Scene,
    clean,
    duration,
    scene_of_finding,
    scene_of_snapshot,
    short_site,
)
from concagent.model import Finding, Snapshot

_RED = 'color="#c62828" fontcolor="#c62828" penwidth=2'


def finding_dot(finding: Finding) -> str:
    """Return the graph of a finding; the ring through its first member is red."""
    scene = scene_of_finding(finding)
    members = [actor.id for actor in finding.actors if actor.role in ("member", "victim")]
    ring = next((r for actor in members if (r := scene.ring_from(actor))), ())
    behind = {actor.id for actor in finding.actors if actor.role in ("behind", "bystander")}
    return _dot(scene, [ring], behind, finding.title, drawn=None)


def snapshot_dot(snapshot: Snapshot, *, only_blocked: bool = False, rings: Iterable[Sequence[int]] = ()) -> str:
    """Return the graph of a snapshot.

    Args:
        snapshot: What to draw.
        only_blocked: Leave out actors that neither wait nor hold something that is waited for.
        rings: Actor serials of each deadlock, in waiting order, as in ``Report.rings``.
    """
    scene = scene_of_snapshot(snapshot)
    ids = {actor.serial: actor.id for actor in snapshot.actors}
    ring_ids = [tuple(ids[s] for s in ring if s in ids) for ring in rings]
    title = f"pid {snapshot.pid} {snapshot.process_name}".strip()
    drawn = None
    if only_blocked:
        drawn = set(scene.waits)
        drawn.update(h for r in scene.waiters for h in scene.holders.get(r, ()))
    return _dot(scene, ring_ids, set(), title, drawn=drawn)


def _dot(
    scene: Scene,
    rings: Iterable[Sequence[str]],
    behind: set[str],
    title: str,
    *,
    drawn: set[str] | None,
) -> str:
    red_actors = {actor for ring in rings for actor in ring}
    red_resources = {scene.waits[actor] for actor in red_actors if actor in scene.waits}
    lines = [
        "digraph concagent {",
        f"  label={_quoted(title)};",
        '  labelloc="t"; rankdir="LR"; fontname="Helvetica"; bgcolor="white";',
        '  node [fontname="Helvetica" fontsize=11]; edge [fontname="Helvetica" fontsize=9];',
    ]
    lines.extend(
        _actor_node(scene, actor, red=actor in red_actors, dashed=actor in behind)
        for actor in scene.actor_name
        if drawn is None or actor in drawn
    )
    lines.extend(
        _resource_node(scene, resource, red=resource in red_resources)
        for resource in scene.resource_name
        if drawn is None or resource in scene.waiters
    )
    for actor, resource in scene.waits.items():
        waited = scene.waited(actor)
        found = scene.actors.get(actor)
        label = "waits" if waited is None else f"waits {duration(waited)}"
        style = ' style="dashed"' if found is not None and found.timed else ""
        label += " (timed)" if style else ""
        red = f" {_RED}" if actor in red_actors else ""
        lines.append(f"  {_quoted(actor)} -> {_quoted(resource)} [label={_quoted(label)}{style}{red}];")
    for resource, holders in scene.holders.items():
        for actor in holders:
            if drawn is not None and not (actor in drawn and resource in scene.waiters):
                continue
            red = f" {_RED}" if actor in red_actors and resource in red_resources else ""
            label = _hold_label(scene, resource, actor)
            lines.append(f"  {_quoted(resource)} -> {_quoted(actor)} [label={_quoted(label)}{red}];")
    lines.append("}")
    return "\n".join(lines) + "\n"


def _actor_node(scene: Scene, actor: str, *, red: bool, dashed: bool) -> str:
    found = scene.actors.get(actor)
    parts = [scene.actor_name[actor]]
    if found is not None:
        parts.append(f"{found.type}, {actor}")
    site = scene.wait_sites.get(actor)
    if site is not None:
        parts.append(short_site(site))
    style = ' style="dashed"' if dashed else ""
    label = _quoted("\n".join(parts))
    return f"  {_quoted(actor)} [shape=ellipse label={label}{style}{f' {_RED}' if red else ''}];"


def _resource_node(scene: Scene, resource: str, *, red: bool) -> str:
    found = scene.resources.get(resource)
    parts = [scene.resource_name[resource]]
    if found is not None and found.created is not None:
        parts.append(short_site(found.created))
    label = _quoted("\n".join(parts))
    return f"  {_quoted(resource)} [shape=box label={label}{f' {_RED}' if red else ''}];"


def _hold_label(scene: Scene, resource: str, actor: str) -> str:
    if scene.kind(resource) in LIVING_KINDS:
        return "is"
    holding = scene.holding(resource, actor)
    if holding is None or holding.acquired is None:
        return "held by"
    return f"held by, taken at {short_site(holding.acquired)}"


def _quoted(text: str) -> str:
    r"""Return a quoted string of DOT; a newline is a line break, a backslash stands for itself."""
    lines = (clean(line).replace("\\", "\\\\").replace('"', '\\"') for line in text.split("\n"))
    return '"' + "\\n".join(lines) + '"'
