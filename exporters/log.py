"""Findings as log records: the full text report, in the program's own logs.

The logger is ``concagent``; the program's handlers, filters and formats apply to it as to any other.  A finding that
something is broken now is an error; one that something may break, or is slow, is a warning.  The finding itself is in
the record as ``record.finding``, so that a handler that writes JSON need not parse the report.

A program that has configured no logging has no handler that would take it; ``logging`` would then write to whatever
``sys.stderr`` is at the moment, and programs put objects there that take locks of their own (a progress bar's, say, which
may be the very lock that the finding is about).  So in that case the report goes to the process's standard error itself.

Assumes    called from a delivery thread only: a handler may block for ever, for its lock may be part of the deadlock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
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
# Somebody is stuck for good.  Of a child that was executed with a standard error of its own nothing else is written there: its
# parent reads that, and may compare it with what it expects.
STUCK_KINDS: Final = frozenset({"deadlock", "stall", "orphaned-lock"})


class LogSink:
    """Logs each finding as a text report."""

    def __init__(
        self,
        render: Callable[[Finding], str],
        logger_name: str = LOGGER,
        write_stderr: Callable[[str], object] | None = None,
        stderr_kinds: Collection[str] = frozenset(KINDS),
    ) -> None:
        """Keep what is needed; nothing is rendered unless somebody will read it.

        Args:
            render: Turns a finding into the text report.
            logger_name: Name of the logger.
            write_stderr: Writes to the process's standard error; used where no handler is configured.  None leaves that
                case to ``logging``.
            stderr_kinds: Kinds of findings that are written in that case.
        """
        self._render = render
        self._logger = logging.getLogger(logger_name)
        self._write_stderr = write_stderr
        self._stderr_kinds = stderr_kinds

    def __call__(self, finding: Finding) -> None:
        """Log the finding, at ERROR or WARNING as its kind demands."""
        level = logging.WARNING if finding.kind in WARNING_KINDS else logging.ERROR
        if not self._logger.isEnabledFor(level):
            return
        if self._write_stderr is not None and not self._logger.hasHandlers():
            if finding.kind in self._stderr_kinds:
                self._write_stderr(self._render(finding) + "\n")
        else:
            # The report is an argument, not the format: it quotes source lines, and those have percent signs.
            self._logger.log(level, "%s", self._render(finding), extra={"finding": finding})
