"""The pages of the metrics listener; loaded where a port is asked for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from concagent import core, state

if TYPE_CHECKING:
    from collections.abc import Callable

    from concagent.bootstrap import Agent
    from concagent.exporters.prometheus import Collector
    from concagent.model import AgentStats

SCRAPE_SECONDS: Final = 1.0  # a scrape waits no longer for the figures of child processes


def pages(agent: Agent) -> tuple[dict[str, Callable[[], tuple[str, bytes]]], Collector]:
    """Return path -> what makes the page, as (type, body), and the collector behind the metrics, which must know of forks."""
    from concagent import __version__
    from concagent.exporters.prometheus import CONTENT_TYPE, Collector

    collector = Collector(
        agent.statistics,
        __version__,
        on_error=lambda error: state.count_error("scrape", error),
        children=statistics_of_children,
    )

    def graph() -> tuple[str, bytes]:
        from concagent.exporters.svg import snapshot_svg

        picture, rings = agent.monitor.report()
        return "image/svg+xml; charset=utf-8", snapshot_svg(picture, rings=rings).encode("utf-8", "backslashreplace")

    routes = {
        "/metrics": lambda: (CONTENT_TYPE, collector.render()),
        "/healthz": lambda: ("text/plain; charset=utf-8", b"ok\n"),
        "/report": lambda: (
            "text/plain; charset=utf-8",
            agent.render("text", "GET /report").encode("utf-8", "backslashreplace"),
        ),
        "/graph": graph,
    }
    return routes, collector


def statistics_of_children() -> dict[int, AgentStats | None]:
    """Return the counters of the processes below this one; None for one that does not answer."""
    from concagent import family
    from concagent.exporters.json import statistics_from_json

    pids = family.descendants(os.getpid())
    answers = family.ask(pids, "statistics", SCRAPE_SECONDS, core.mark_agent_thread) if pids else {}
    return {pid: statistics_from_json(answers[pid]) if pid in answers else None for pid in pids}
