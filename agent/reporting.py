"""Writes the full live picture when the signal asks for it, without keeping the monitor from its work.

Standard error can be a pipe that nobody reads.  So the report is written by a thread of its own, one at a time: a signal
that comes while a report is being written asks for one more afterwards, and a hundred signals ask for two.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from concagent import _real, core, state
from concagent.descriptors import LOST, SETTLE_NS

if TYPE_CHECKING:
    from collections.abc import Callable

    from concagent.exporters.report_file import ReportDirectory
    from concagent.lastresort import LastResort
    from concagent.reportsignal import ReportSignal


_WRITING_SECONDS: Final = 0.002


class SignalReports:
    """A service of the monitor's poll: the signal's pipe."""

    def __init__(
        self,
        listener: ReportSignal,
        make_text: Callable[[], str],
        directory: ReportDirectory | None,
        stderr: bool,
        last_resort: LastResort,
    ) -> None:
        """Write to ``directory`` if there is one, and to standard error if ``stderr``; tell ``last_resort`` of each answer."""
        self._listener = listener
        self._make_text = make_text
        self._directory = directory
        self._stderr = stderr
        self._last_resort = last_resort
        self._wanted = 0
        self._lost_ns = 0
        self._writing = _real.allocate_lock()

    def fileno(self) -> int:
        """Return the descriptor that becomes readable with the signal; -1 once closed, or while the program closed it."""
        if not self._listener.is_lost():
            return self._listener.fileno()
        now_ns = _real.monotonic_ns()
        if not self._lost_ns:
            self._lost_ns = now_ns
            state.count_error("report", OSError(errno.EBADF, LOST))
        elif now_ns - self._lost_ns >= SETTLE_NS:
            try:
                self._listener.reopen()
            except (OSError, ValueError, RuntimeError):  # no descriptor is left: once more at the next look
                return -1
            self._lost_ns = 0
        return self._listener.fileno()

    def handle(self) -> None:
        """Ask for a report."""
        if self._listener.drain():
            _real.sleep(_WRITING_SECONDS)  # the handler writes in several pieces, and each would be one more request
            self._listener.drain()
            self._wanted += 1
            if self._writing.acquire(False):
                _real.start_agent_thread(self._write_all, ())

    def _write_all(self) -> None:
        core.mark_agent_thread()
        try:
            written = -1
            while written != self._wanted:
                written = self._wanted
                self._write_one()
        except Exception as error:  # noqa: BLE001 - border: a sink
            state.count_error("report", error)
        finally:
            self._writing.release()

    def _write_one(self) -> None:
        asked = self._last_resort.requests()
        text = self._make_text()
        self._last_resort.answer(asked)
        if self._directory is not None:
            path = self._directory.write(text, "report")
            if not self._stderr:
                write_stderr(f"concagent: report written to {path}\n")
        if self._stderr:
            write_stderr(text if text.endswith("\n") else text + "\n")


def write_stderr(text: str) -> None:
    """Write to descriptor 2, whole; a program without standard error has nothing to read."""
    data = text.encode("utf-8", "backslashreplace")
    try:
        while data:
            data = data[os.write(2, data) :]
    except OSError:
        pass
