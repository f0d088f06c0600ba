"""The threads of a report as a table, for ``concagent top``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from concagent.saved import serial_of

if TYPE_CHECKING:
    from rich.console import RenderableType


def threads_table(report: Mapping[str, Any]) -> RenderableType:
    """Return the threads of a report as a table: those in a ring first, then the longest waits, then the others."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    snapshot, statistics = report["snapshot"], report["statistics"]
    now = snapshot["time"]
    in_ring = {actor for ring in report["rings"] for actor in ring}
    names = {r["id"]: f"{r['kind']} {_resource_name(r)}" for r in snapshot["resources"]}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, right in (("id", False), ("thread", False), ("state", False), ("waits for", False), ("since", True)):
        table.add_column(column, justify="right" if right else "left", no_wrap=True, overflow="ellipsis")
    table.add_column("holds", overflow="ellipsis", no_wrap=True)
    table.add_column("where", overflow="ellipsis", no_wrap=True)

    def order(actor: Mapping[str, Any]) -> tuple[bool, bool, float]:
        return actor["id"] not in in_ring, actor["waits_for"] is None, actor["waiting_since"] or now

    actors = [actor for actor in snapshot["actors"] if actor["state"] != "agent"]
    for actor in sorted(actors, key=order):
        waits = actor["waits_for"]
        since = f"{max(0.0, now - actor['waiting_since']):.1f} s" if waits and actor["waiting_since"] else ""
        where = actor.get("waits_at") or (actor["stack"][-1] if actor["stack"] else None)
        # Text, not markup: a lock may be called "[red]".
        cells = [
            str(serial_of(actor["id"])),
            actor["name"],
            "deadlock" if actor["id"] in in_ring else actor["state"],
            names.get(waits, waits) if waits else "",
            since,
            ", ".join(names.get(held, held) for held in actor["holds"]),
            f"{os.path.basename(where['file'])}:{where['line']} {where['function']}" if where else "",
        ]
        table.add_row(*(Text(cell) for cell in cells), style="red" if actor["id"] in in_ring else None)
    head = (
        f"pid {snapshot['pid']} {snapshot['process_name']}  {len(actors)} threads, "
        f"{statistics['blocked_threads']} blocked, {len(in_ring)} deadlocked; "
        f"{statistics['locks_alive']} locks; {statistics['open_findings']} open findings"
    )
    return Group(Text(head, style="bold"), Text(""), table)


def _resource_name(resource: Mapping[str, Any]) -> str:
    if resource["name"]:
        return str(resource["name"])
    created = resource["created"]
    place = f" {os.path.basename(created['file'])}:{created['line']}" if created else ""
    return f"{resource['id']}{place}"
