"""Findings as log records: the full text report, in the program's own logs.

The logger is ``concagent``; the program's handlers, filters and formats apply to it as to any other.  A finding that
something is broken now is an error; one that something may break, or is slow, is a warning.  The finding itself is in
the record as ``record.finding``, so that a handler that writes JSON need not parse the report.

Assumes    called from a delivery thread only: a handler may block for ever, for its lock may be part of the deadlock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from concagent.model import KINDS, Finding

LOGGER: Final = "concagent"

# Slow, or growing, or only possible: nothing is broken yet.
WARNING_KINDS: Final = frozenset(
    {
        "lock-order-inversion",
        "context-hazard",
        "fork-hazard",
        "long-wait",
        "long-hold",
        "loop-blocked",
        "leak",
        "atomicity-violation",
    }
)
ERROR_KINDS: Final = frozenset(KINDS) - WARNING_KINDS


class LogSink:
    """Logs each finding as a text report."""

    def __init__(self, render: Callable[[Finding], str], logger_name: str = LOGGER) -> None:
        """Keep the renderer: it turns a finding into the text report, and is called only if that will be logged."""
        self._render = render
        self._logger = logging.getLogger(logger_name)

    def __call__(self, finding: Finding) -> None:
        """Log the finding, at ERROR or WARNING as its kind demands."""
        level = logging.WARNING if finding.kind in WARNING_KINDS else logging.ERROR
        if self._logger.isEnabledFor(level):
            # The report is an argument, not the format: it quotes source lines, and those have percent signs.
            self._logger.log(level, "%s", self._render(finding), extra={"finding": finding})
