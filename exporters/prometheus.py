"""The agent's counters as Prometheus metrics, read when somebody scrapes and at no other time.

A custom collector asks ``statistics()`` once per scrape and turns the frozen answer into metric families.  Nothing is
counted here on a user's thread: there are no ``Counter`` objects to increment, so a program that nobody scrapes pays
nothing, and one that is scraped pays on the scraper's thread.

The label ``lock_class`` is the difficulty.  A program has as many lock classes as it has places that make locks, and
names may be made up at run time, so only the busiest classes get a label and the rest are added up as ``other``.  But
the busiest change.  If a class simply moved out of ``other``, that series would fall by everything the class ever
counted; Prometheus reads a fall as a restart and reports the whole remaining value as new.  So a series here is not a
class's lifetime total: it is the sum of the *increases* seen while the class was counted under that label.  Each scrape
adds each class's growth since the scrape before to exactly one series, the class's own or ``other``.  What was once
added stays; a label once given is never taken back.

A scrape must also never break what it is part of: ``register`` puts us into the program's own registry, where an
exception of ours would take the program's metrics down with it.  An error in ``statistics()`` is therefore counted in
``concagent_agent_errors_total{border="scrape"}`` and the last good figures are shown again.

Assumes    ``AgentStats`` of one process come in the order in which they are asked for (we ask under a lock).
Invariants M1 every metric of ``METRICS`` is in every scrape, and nothing else is.
           M2 no series of a lock class ever falls, whatever ``statistics()`` returns.
           M3 over all labels, the series of one lock metric add up to the total over all classes.
           M4 there are at most ``limit`` labels beside ``other``.
           M5 what a process below this one counts has the label ``pid`` and goes with the process; what this one counts has
              none.  Their histograms are left out, and so are processes beyond the first `PROCESSES`.
Limits     a class promoted late begins near 0: its earlier events stay in ``other``.  A class that came to be after
           ``limit`` labels were given stays in ``other`` for good.
Cost       O(classes) per scrape.  ``prometheus_client`` is imported by the first call, not by this module.
Sources    Prometheus documentation, "Writing exporters" (custom collectors, absent series, cardinality).
"""

from __future__ import annotations

import heapq
import platform
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from concagent import _real
from concagent.model import WAIT_BUCKETS_SECONDS, AgentStats, ClassStatistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric as Family

# What ``Collector.render`` returns.  The text format 0.0.4 is understood by every server; ``prometheus_client`` names a
# different one from release to release, for features that we do not use.
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

OTHER: Final = "other"
# Processes that get series of their own, and lock classes of each: a server's workers, not a build's compilers.
PROCESSES: Final = 64
_TOP_OF_CHILD: Final = 5

# Closed sets: where an error of the agent can be caught, and what can be full.  Anything else is counted as ``other``, so
# a name made up at run time (a URL, say, which can hold a password) never becomes a label.
BORDERS: Final = (
    "alertmanager",
    "callback",
    "core",
    "fork",
    "hook",
    "listener",
    "log",
    "monitor",
    "report",
    "scrape",
    "sink",
    "webhook",
    OTHER,
)
QUEUES: Final = ("alertmanager", "callback", "events", "log", "order", "webhook", OTHER)

# Series that exist with the value 0 before anything was found.  ``increase()`` sees no step in a series that is born
# with the value 1, so the first finding of each kind would otherwise be invisible to a rule that asks for increases.
FINDING_SERIES: Final = (
    ("deadlock", "lock", "proven"),
    ("deadlock", "lock", "suspected"),
    ("deadlock", "rlock", "proven"),
    ("deadlock", "thread", "proven"),
    ("stall", "lock", "proven"),
    ("stall", "condition", "suspected"),
    ("lock-order-inversion", "lock", "potential"),
    ("order-violation", "lock", "proven"),
    ("context-hazard", "lock", "potential"),
    ("fork-hazard", "lock", "potential"),
    ("orphaned-lock", "lock", "proven"),
    ("misuse", "lock", "proven"),
    ("long-wait", "lock", "proven"),
    ("long-hold", "lock", "proven"),
    ("loop-blocked", "lock", "proven"),
    ("leak", "file", "proven"),
    ("leak", "file", "suspected"),
    ("data-race", "memory", "proven"),
    ("atomicity-violation", "memory", "hint"),
)

_BUCKETS: Final = len(WAIT_BUCKETS_SECONDS) + 1
_BOUNDS: Final = (*(repr(float(bound)) for bound in WAIT_BUCKETS_SECONDS), "+Inf")
_LONGEST_LABEL: Final = 200


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of the table: the name as scraped, its Prometheus type, its labels and its help text."""

    name: str
    type: str
    labels: tuple[str, ...]
    help: str


METRICS: Final = (
    Metric(
        "concagent_findings_total",
        "counter",
        ("kind", "resource_kind", "confidence"),
        "Findings delivered, repeats included.",
    ),
    Metric(
        "concagent_open_findings",
        "gauge",
        (),
        "Findings whose condition still holds.",
    ),
    Metric(
        "concagent_suppressed_findings_total",
        "counter",
        (),
        "Findings that matched an entry of the suppressions file.",
    ),
    Metric(
        "concagent_open_deadlocks",
        "gauge",
        (),
        "Deadlocks that exist now, each ring or knot counted once.",
    ),
    Metric(
        "concagent_deadlocked_threads",
        "gauge",
        (),
        "Threads that are members of a deadlock now.",
    ),
    Metric(
        "concagent_blocked_threads",
        "gauge",
        (),
        "Threads that wait for a tracked resource now, deadlocked or not.",
    ),
    Metric(
        "concagent_longest_wait_seconds",
        "gauge",
        (),
        "Age of the oldest wait that goes on now, 0 if nobody waits.",
    ),
    Metric(
        "concagent_lock_acquisitions_total",
        "counter",
        ("lock_class",),
        "Acquisitions of tracked locks.",
    ),
    Metric(
        "concagent_lock_contentions_total",
        "counter",
        ("lock_class",),
        "Acquisitions of tracked locks that had to wait.",
    ),
    Metric(
        "concagent_lock_wait_seconds",
        "histogram",
        ("lock_class",),
        "Time that ended waits for tracked locks took.",
    ),
    Metric(
        "concagent_lock_hold_seconds",
        "histogram",
        ("lock_class",),
        "Time that tracked locks were held, of the holds that were sampled.",
    ),
    Metric(
        "concagent_locks_alive",
        "gauge",
        (),
        "Tracked locks that exist now.",
    ),
    Metric(
        "concagent_locks_created_total",
        "counter",
        (),
        "Tracked locks created.",
    ),
    Metric(
        "concagent_untracked_locks",
        "gauge",
        (),
        "Locks known to exist that were made before the agent and could not be adopted.",
    ),
    Metric(
        "concagent_threads_seen_total",
        "counter",
        (),
        "Threads that used a tracked resource.",
    ),
    Metric(
        "concagent_order_edges",
        "gauge",
        (),
        "Edges of the lock-order graph.",
    ),
    Metric(
        "concagent_open_resources",
        "gauge",
        ("resource_kind",),
        "Watched resources that are open now.",
    ),
    Metric(
        "concagent_leaked_resources",
        "gauge",
        ("resource_kind",),
        "Watched resources that were found to be leaked.",
    ),
    Metric(
        "concagent_agent_errors_total",
        "counter",
        ("border",),
        "Errors of the agent itself, by the border where they were caught.",
    ),
    Metric(
        "concagent_dropped_events_total",
        "counter",
        ("queue",),
        "Events dropped because a bounded queue of the agent was full.",
    ),
    Metric(
        "concagent_agent_cpu_seconds_total",
        "counter",
        (),
        "Processor time used by the threads of the agent.",
    ),
    Metric(
        "concagent_child_processes",
        "gauge",
        ("state",),
        "Processes below this one that have the agent, by whether they answered this scrape.",
    ),
    Metric(
        "concagent_build_info",
        "info",
        ("version", "core", "python"),
        "Always 1; the labels say what runs.",
    ),
)


@dataclass(slots=True)
class _Totals:
    """What one label has counted; ``waits`` and ``holds`` are counts per bucket, not cumulative."""

    acquisitions: int = 0
    contentions: int = 0
    wait_seconds: float = 0.0
    waits: list[int] = field(default_factory=lambda: [0] * _BUCKETS)
    hold_seconds: float = 0.0
    holds: list[int] = field(default_factory=lambda: [0] * _BUCKETS)

    def add(self, counted: ClassStatistics) -> None:
        """Add a class's counters."""
        self.acquisitions += counted.acquisitions
        self.contentions += counted.contentions
        self.wait_seconds += counted.wait_seconds
        self.hold_seconds += counted.hold_seconds
        for position, count in enumerate(counted.wait_buckets):
            self.waits[min(position, _BUCKETS - 1)] += count
        for position, count in enumerate(counted.hold_buckets):
            self.holds[min(position, _BUCKETS - 1)] += count
        if not counted.hold_buckets:
            # Holds that were timed but not sorted are only known to be shorter than infinity.
            self.holds[-1] += counted.hold_samples

    def grow(self, before: _Totals, now: _Totals) -> None:
        """Add what was counted between two readings; a counter that fell has begun again from 0."""
        self.acquisitions += int(_increase(before.acquisitions, now.acquisitions))
        self.contentions += int(_increase(before.contentions, now.contentions))
        self.wait_seconds += _increase(before.wait_seconds, now.wait_seconds)
        self.hold_seconds += _increase(before.hold_seconds, now.hold_seconds)
        for position in range(_BUCKETS):
            self.waits[position] += int(_increase(before.waits[position], now.waits[position]))
            self.holds[position] += int(_increase(before.holds[position], now.holds[position]))


class _LockClasses:
    """Gives labels to lock classes and adds each class's growth to one series (M2, M3, M4)."""

    def __init__(self, top: int, limit: int) -> None:
        """Begin with the one label ``other``.

        Args:
            top: The classes that are among this many busiest at some scrape get a label.
            limit: No more labels than this are ever given.
        """
        self._top = top
        self._limit = limit
        self._own: dict[str, _Totals] = {}
        self._other = _Totals()
        self._before: dict[str, _Totals] = {}

    def absorb(self, classes: Iterable[ClassStatistics]) -> dict[str, _Totals]:
        """Return the totals by label after one more reading, ``other`` last."""
        now: dict[str, _Totals] = {}
        for counted in classes:
            # A Lock and an RLock made at one site are two classes with one label.
            now.setdefault(_label(counted.lock_class), _Totals()).add(counted)
        self._give_labels(now)
        nothing = _Totals()
        for label, totals in now.items():
            series = self._own.get(label, self._other)
            series.grow(self._before.get(label, nothing), totals)
        self._before = now
        return {**self._own, OTHER: self._other}

    def _give_labels(self, now: Mapping[str, _Totals]) -> None:
        """Give a label to each class that is among the busiest and has none.

        The first ``top`` labels go to whoever is busiest.  Those beyond are kept for classes that somebody had to wait
        for: the ranking of uncontended classes changes while a program starts up, and would use all labels up.
        """
        ranked = heapq.nsmallest(
            self._top,
            ((-totals.contentions, -totals.acquisitions, label) for label, totals in now.items()),
        )
        for contentions, acquisitions, label in ranked:
            used = len(self._own)
            if label in self._own or label == OTHER or not (contentions or acquisitions):
                continue
            if used < min(self._top, self._limit) or (contentions and used < self._limit):
                self._own[label] = _Totals()


class Collector:
    """A ``prometheus_client`` collector over the agent's statistics.

    Any thread may scrape; scrapes wait for each other.
    """

    def __init__(
        self,
        statistics: Callable[[], AgentStats],
        version: str,
        *,
        top: int = 20,
        limit: int | None = None,
        on_error: Callable[[Exception], None] | None = None,
        children: Callable[[], Mapping[int, AgentStats | None]] | None = None,
    ) -> None:
        """Keep the source; nothing is read until the first scrape.

        Args:
            statistics: Called once per scrape, on the scraper's thread.
            version: Version of concagent, for ``concagent_build_info``.
            top: Lock classes that are among this many busiest (contentions, then acquisitions) get a label.
            limit: Labels given in the life of this collector; None for three times ``top``.
            on_error: Told about an error of ``statistics``, which the scrape itself survives.  May count it as an error
                of the border ``scrape``: it appears once all the same.
            children: Returns the statistics of the processes below this one by pid, None for one that did not answer.
        """
        self._statistics = statistics
        self._children = children
        self._classes_of: dict[int, _LockClasses] = {}
        self._version = version
        self._on_error = on_error
        self._top = top
        self._limit = 3 * top if limit is None else limit
        self._classes = _LockClasses(self._top, self._limit)
        self._last = AgentStats()
        self._errors = 0
        self._lock = _real.allocate_lock()
        self._registry: CollectorRegistry | None = None

    def describe(self) -> Iterable[Family]:
        """Return the families without samples, so that registering us reads no statistics."""
        return [_family(metric) for metric in METRICS]

    def collect(self) -> Iterable[Family]:
        """Return all families with their present values.  Never raises because of ``statistics``."""
        # Statistics are read under the lock: an older reading absorbed after a newer one would look like a restart.
        with self._lock:
            error = self._read()
            below = self._read_children()
            values = self._values()
            values["concagent_child_processes"] = {
                ("answered",): sum(stats is not None for stats in below.values()),
                ("silent",): sum(stats is None for stats in below.values()),
            }
            values_of = {
                pid: self._values_of_child(pid, stats)
                for pid, stats in list(below.items())[:PROCESSES]
                if stats is not None
            }
            self._classes_of = {pid: self._classes_of[pid] for pid in values_of}
        if error is not None and self._on_error is not None:
            self._on_error(error)
        families = []
        for metric in METRICS:
            family: Any = _family(metric)
            for labels, value in values[metric.name].items():
                if metric.type == "histogram":
                    family.add_metric(list(labels), buckets=value[0], sum_value=value[1])
                elif metric.type == "info":
                    family.add_metric([], dict(zip(metric.labels, labels, strict=True)))
                else:
                    family.add_metric(list(labels), value)
            if metric.type in {"counter", "gauge"}:
                for pid, of_child in values_of.items():
                    for labels, value in of_child.get(metric.name, {}).items():
                        named = dict(zip(metric.labels, labels, strict=True))
                        family.add_sample(metric.name, {**named, "pid": str(pid)}, value)
            families.append(family)
        return families

    def render(self) -> bytes:
        """Return one scrape of our metrics alone, as text of ``CONTENT_TYPE``."""
        from prometheus_client import CollectorRegistry, generate_latest

        if self._registry is None:
            registry = CollectorRegistry()
            registry.register(self)
            self._registry = registry
        return generate_latest(self._registry)

    def after_fork_in_child(self) -> None:
        """Count from 0 as the child's agent does; another thread may have been scraping while the parent forked."""
        self._lock = _real.allocate_lock()
        self._registry = None
        self._classes = _LockClasses(self._top, self._limit)
        self._last = AgentStats()
        self._errors = 0
        self._classes_of = {}

    def _read_children(self) -> Mapping[int, AgentStats | None]:
        """Return the statistics of the processes below; none if that fails, which is counted."""
        try:
            return self._children() if self._children is not None else {}
        except Exception:  # noqa: BLE001  # a border, as `_read`
            self._errors += 1
            return {}

    def _values_of_child(self, pid: int, stats: AgentStats) -> dict[str, dict[tuple[str, ...], Any]]:
        classes = self._classes_of.setdefault(pid, _LockClasses(_TOP_OF_CHILD, 3 * _TOP_OF_CHILD))
        return _values_of(stats, classes.absorb(stats.classes))

    def _read(self) -> Exception | None:
        """Read the statistics; return the error if that failed, in which case the last ones stay."""
        try:
            self._last = self._statistics()
        except Exception as error:  # noqa: BLE001  # a border: we may be in the program's own registry
            self._errors += 1
            return error
        return None

    def _values(self) -> dict[str, dict[tuple[str, ...], Any]]:
        """Return the values of all metrics by name and label values.

        Who was told by ``on_error`` may have counted errors of ``statistics``, too; but as long as it fails, only we can show
        them.  Both counts are of the same errors, so the greater one is right, and it never falls.
        """
        stats = self._last
        values = _values_of(stats, self._classes.absorb(stats.classes))
        values["concagent_agent_errors_total"]["scrape",] = max(
            values["concagent_agent_errors_total"]["scrape",], self._errors
        )
        values["concagent_build_info"] = {(self._version, stats.core, platform.python_version()): 1}
        return values


def register(
    registry: CollectorRegistry,
    statistics: Callable[[], AgentStats],
    version: str = "",
    *,
    top: int = 20,
    limit: int | None = None,
    on_error: Callable[[Exception], None] | None = None,
) -> Collector:
    """Return a new collector that was added to the program's own registry.

    Args:
        registry: Usually ``prometheus_client.REGISTRY``; ``registry.unregister`` takes the result out again.
        statistics: As for `Collector`, and so are the others.
        version: Version of concagent.
        top: Lock classes with a label of their own.
        limit: Labels given in the life of the collector.
        on_error: Told about errors of ``statistics``.

    Raises:
        ValueError: The registry has metrics of these names, of another agent for instance.
    """
    collector = Collector(statistics, version, top=top, limit=limit, on_error=on_error)
    registry.register(collector)
    return collector


def render(statistics: Callable[[], AgentStats], version: str = "") -> bytes:
    """Return one scrape as text, for a person or a file.

    A server that is scraped again and again must keep one `Collector` and call its ``render``: what makes the counters
    of lock classes never fall is remembered there.
    """
    return Collector(statistics, version).render()


def _values_of(stats: AgentStats, classes: Mapping[str, _Totals]) -> dict[str, dict[tuple[str, ...], Any]]:
    """Return the values of one process by name and label values."""
    return {
        "concagent_findings_total": _added(stats.findings, FINDING_SERIES),
        "concagent_open_findings": {(): stats.open_findings},
        "concagent_suppressed_findings_total": {(): stats.suppressed_findings},
        "concagent_open_deadlocks": {(): stats.deadlocks_open},
        "concagent_deadlocked_threads": {(): stats.deadlocked_threads},
        "concagent_blocked_threads": {(): stats.blocked_threads},
        "concagent_longest_wait_seconds": {(): stats.longest_wait_seconds},
        "concagent_lock_acquisitions_total": {(label,): totals.acquisitions for label, totals in classes.items()},
        "concagent_lock_contentions_total": {(label,): totals.contentions for label, totals in classes.items()},
        "concagent_lock_wait_seconds": {
            (label,): (_cumulative(totals.waits), totals.wait_seconds) for label, totals in classes.items()
        },
        "concagent_lock_hold_seconds": {
            (label,): (_cumulative(totals.holds), totals.hold_seconds) for label, totals in classes.items()
        },
        "concagent_locks_alive": {(): stats.locks_alive},
        "concagent_locks_created_total": {(): stats.locks_created},
        "concagent_untracked_locks": {(): stats.untracked_locks},
        "concagent_threads_seen_total": {(): stats.threads_seen},
        "concagent_order_edges": {(): stats.order_edges},
        "concagent_open_resources": _added(_singles(stats.open_resources), [("file",)]),
        "concagent_leaked_resources": _added(_singles(stats.leaked_resources), [("file",)]),
        "concagent_agent_errors_total": _added(
            [((_closed(border, BORDERS),), count) for border, count in stats.agent_errors],
            [(border,) for border in BORDERS],
        ),
        "concagent_dropped_events_total": _added(
            [((_closed(queue, QUEUES),), count) for queue, count in stats.dropped_events],
            [(queue,) for queue in QUEUES],
        ),
        "concagent_agent_cpu_seconds_total": {(): stats.agent_cpu_seconds},
    }


def _family(metric: Metric) -> Family:
    """Return an empty ``prometheus_client`` family for a line of the table."""
    from prometheus_client import core

    if metric.type == "counter":
        return core.CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
    if metric.type == "histogram":
        return core.HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    if metric.type == "info":
        return core.InfoMetricFamily(metric.name.removesuffix("_info"), metric.help, labels=())
    return core.GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)


def _increase(before: float, now: float) -> float:
    return now - before if now >= before else now


def _cumulative(counts: Iterable[int]) -> list[tuple[str, float]]:
    """Return pairs of upper bound and number of events up to it."""
    total = 0
    pairs: list[tuple[str, float]] = []
    for bound, count in zip(_BOUNDS, counts, strict=True):
        total += count
        pairs.append((bound, total))
    return pairs


def _label(lock_class: str) -> str:
    """Return a label value that can be encoded and is not endless.

    A path can hold bytes that are no text (surrogates), which the exposition format could not encode; of a long path
    the end says more than the beginning.
    """
    text = lock_class.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= _LONGEST_LABEL else "..." + text[3 - _LONGEST_LABEL :]


def _closed(name: str, allowed: tuple[str, ...]) -> str:
    """Return the member of a closed set for the name that was recorded, such as ``hook`` for ``hook:files``."""
    head = name.replace(".", ":").partition(":")[0]
    return head if head in allowed else OTHER


def _singles(pairs: Iterable[tuple[str, int]]) -> list[tuple[tuple[str, ...], int]]:
    return [((value,), count) for value, count in pairs]


def _added(
    pairs: Iterable[tuple[tuple[str, ...], int]], always: Iterable[tuple[str, ...]]
) -> dict[tuple[str, ...], int]:
    """Return sums by label values, with 0 for those that must always be there."""
    sums = dict.fromkeys(always, 0)
    for labels, count in pairs:
        sums[labels] = sums.get(labels, 0) + count
    return sums
