"""Asks the table of openings, now and then, what has leaked; runs on the monitor's thread.

Collected unclosed is told at once (the table wakes the monitor).  Growth compares two looks that are far enough apart for
the older one to mean something, and never more often than once in ten seconds: it walks all that is open.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from concagent import _real
from concagent.detectors import leak

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from concagent.config import Config
    from concagent.model import Finding
    from concagent.openings import Openings, OpeningStatistics

LOOK_NS: Final = 10_000_000_000


class LeakWatch:
    """Turns openings into findings."""

    def __init__(self, openings: Openings, config: Config, publish: Callable[[Finding], None]) -> None:
        """Look at ``openings``; ``publish`` is the monitor's."""
        self._openings = openings
        self._config = config
        self._publish = publish
        self._earlier: Sequence[OpeningStatistics] = ()
        self._next_look = 0

    def look(self, now_ns: int) -> None:
        """Report what was collected unclosed, and from time to time what grows."""
        self.look_at_unclosed()
        every = max(LOOK_NS, int(self._config.leak_age * 1e9) // 4)
        if now_ns < self._next_look:
            return
        self._next_look = now_ns + every
        now = self._openings.statistics(int(self._config.leak_age * 1e9))
        found = leak.detect_growth(
            now,
            self._earlier,
            self._config.leak_age,
            self._config.leak_growth,
            pid=os.getpid(),
            wall_seconds=_real.wall_seconds(),
        )
        self._earlier = now
        for finding in found:
            self._publish(finding)

    def look_at_unclosed(self) -> None:
        """Report what was collected unclosed since the last look."""
        events = self._openings.take_unclosed()
        if events:
            for finding in leak.detect_unclosed(events, pid=os.getpid(), wall_seconds=_real.wall_seconds()):
                self._publish(finding)

    def look_at_exit(self) -> None:
        """Report what the program left open in numbers."""
        self.look_at_unclosed()
        statistics = self._openings.statistics()
        for finding in leak.detect_open_at_exit(statistics, pid=os.getpid(), wall_seconds=_real.wall_seconds()):
            self._publish(finding)
