"""The public snapshot: the frozen value, with the views that people ask of it.

``model`` is a leaf and knows neither graphs nor formats; so what ``concagent.snapshot()`` returns is this subclass.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from concagent import graph
from concagent.model import Snapshot


@dataclass(frozen=True, slots=True)
class Picture(Snapshot):
    """Who holds what and who waits for what in this process, at one moment."""

    @classmethod
    def of(cls, snapshot: Snapshot) -> Picture:
        """Return the same picture as this type."""
        return cls(**{field.name: getattr(snapshot, field.name) for field in fields(Snapshot)})

    def resource_allocation_graph(self) -> Any:
        """Return the RAG as ``networkx.DiGraph``; see `graph.resource_allocation_graph`."""
        return graph.resource_allocation_graph(self)

    def wait_for_graph(self) -> Any:
        """Return the WFG as ``networkx.DiGraph``; see `graph.wait_for_graph`."""
        return graph.wait_for_graph(self)

    def to_json(self) -> str:
        """Return the snapshot as JSON text."""
        from concagent.exporters import json

        return json.snapshot_to_json(self)

    def to_dot(self) -> str:
        """Return the RAG in Graphviz's language."""
        from concagent.exporters import dot

        return dot.snapshot_dot(self)
