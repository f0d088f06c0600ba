"""The agent's counters, read when somebody asks and never on a program's thread of its own accord.

The program's threads only count in cells of their own; adding up is the reader's work.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from concagent import _real, core, snapshots, state
from concagent.model import WAIT_BUCKETS_SECONDS, AgentStats, ClassStatistics

if TYPE_CHECKING:
    from concagent.monitor import Monitor
    from concagent.openings import Openings


class Statistics:
    """Reads everything that is counted."""

    def __init__(self, monitor: Monitor, openings: Openings) -> None:
        """Keep the sources."""
        self._monitor = monitor
        self._openings = openings

    def read(self) -> AgentStats:
        """Return all counters as of now."""
        records = [record for record in core.records() if not record.agent]
        waits = [wait for wait in (record.waiting() for record in records if not record.ended) if wait is not None]
        now_ns = _real.monotonic_ns()
        classes = self._classes()
        deadlocked, deadlocks = self._monitor.deadlocked()
        findings = self._monitor.ledger.findings()
        leaked: dict[str, int] = dict(self._openings.collected_counts())
        return AgentStats(
            core=core.NAME,
            locks_alive=sum(cls.alive for cls in core.classes()),
            threads_seen=len(records),
            blocked_threads=len(waits),
            deadlocked_threads=deadlocked,
            deadlocks_open=deadlocks,
            longest_wait_seconds=max((now_ns - wait.since_ns for wait in waits), default=0) / 1e9,
            findings=self._monitor.ledger.counts(),
            open_findings=len(findings),
            suppressed_findings=self._monitor.ledger.suppressed,
            classes=classes,
            open_resources=self._openings.open_counts(),
            leaked_resources=tuple(sorted(leaked.items())),
            order_edges=self._monitor.order_edges,
            agent_errors=state.errors(),
            dropped_events=state.dropped(),
            agent_cpu_seconds=self._monitor_cpu_seconds(),
            untracked_locks=state.untracked_locks,
        )

    def _classes(self) -> tuple[ClassStatistics, ...]:
        waits = core.wait_statistics()
        holds = core.hold_statistics()
        rows = []
        for cls in core.classes():
            acquired = core.acquisitions(cls)
            row = waits.get(cls.serial)
            held = holds.get(cls.serial)
            if not acquired and row is None:
                continue
            site = snapshots.call_site(cls.code, cls.lasti)
            label = cls.name or (f"{_short(site.file)}:{site.line}" if site else "other")
            counts = tuple(row[2:]) if row is not None else (0,) * (len(WAIT_BUCKETS_SECONDS) + 1)
            rows.append(
                ClassStatistics(
                    lock_class=label,
                    kind=cls.kind,
                    acquisitions=acquired,
                    contentions=row[0] if row is not None else 0,
                    wait_seconds=row[1] / 1e9 if row is not None else 0.0,
                    wait_buckets=counts,
                    hold_seconds=held[1] / 1e9 if held is not None else 0.0,
                    hold_samples=held[0] if held is not None else 0,
                    hold_buckets=tuple(held[2:]) if held is not None else (0,) * (len(WAIT_BUCKETS_SECONDS) + 1),
                )
            )
        return tuple(rows)

    def _monitor_cpu_seconds(self) -> float:
        """Return the CPU time of the monitor's thread, 0 where the system does not tell."""
        native_id = self._monitor.native_id
        try:
            with _real.open_file(f"/proc/self/task/{native_id}/stat", encoding="ascii", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, IndexError, ValueError):
            return 0.0


def _short(file: str) -> str:
    return "/".join(file.replace("\\", "/").rsplit("/", 2)[-2:])
