"""Promises of the Prometheus collector: what is in a scrape, and that counters never fall.

The labels of lock classes are tested against a naive oracle: random programs whose classes only ever count up are scraped
after every step, and what is scraped must add up to what was counted, never falling (M2, M3, M4).
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from concagent.exporters import prometheus
from concagent.exporters.json import statistics_from_json, statistics_to_json
from concagent.exporters.prometheus import METRICS, OTHER, Collector
from concagent.model import KINDS, WAIT_BUCKETS_SECONDS, AgentStats, ClassStatistics

ROOT = Path(__file__).parents[2]

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: bytes) -> Series:
    """Return every sample of a scrape by name and labels."""
    series: Series = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in series
            series[key] = sample.value
    return series


def value(series: Series, metric: str, **labels: str) -> float:
    return series[metric, frozenset(labels.items())]


def by_class(series: Series, metric: str) -> dict[str, float]:
    return {dict(labels)["lock_class"]: number for (name, labels), number in series.items() if name == metric}


class Source:
    """Statistics that a test sets."""

    def __init__(self, stats: AgentStats | None = None) -> None:
        self.stats = stats or AgentStats()
        self.calls = 0

    def __call__(self) -> AgentStats:
        self.calls += 1
        return self.stats


def lock_class(name: str, acquisitions: int = 0, contentions: int = 0, kind: str = "lock") -> ClassStatistics:
    return ClassStatistics(name, kind, acquisitions=acquisitions, contentions=contentions)


def test_an_empty_agent_shows_every_metric() -> None:
    families = {family.name: family for family in Collector(Source(), "1.0").collect()}

    for metric in METRICS:
        name = metric.name.removesuffix("_total").removesuffix("_info")
        assert families[name].samples, metric.name
    assert len(families) == len(METRICS)


def test_an_empty_agent_shows_zero_everywhere_but_in_build_info() -> None:
    series = parse(Collector(Source(), "1.0").render())

    assert {name for (name, _), number in series.items() if number} == {"concagent_build_info"}


def test_every_kind_of_finding_has_a_series_before_the_first_finding() -> None:
    series = parse(Collector(Source(), "1.0").render())

    kinds = {dict(labels)["kind"] for name, labels in series if name == "concagent_findings_total"}
    assert kinds == set(KINDS)


def test_values_of_the_statistics_arrive_under_their_names() -> None:
    stats = AgentStats(
        core="c",
        locks_created=90,
        locks_alive=50,
        threads_seen=12,
        blocked_threads=3,
        deadlocked_threads=2,
        deadlocks_open=1,
        longest_wait_seconds=4.5,
        findings=((("deadlock", "lock", "proven"), 7), (("leak", "socket", "suspected"), 2)),
        open_findings=6,
        suppressed_findings=8,
        open_resources=(("file", 11), ("socket", 13)),
        leaked_resources=(("file", 14),),
        order_edges=15,
        dropped_events=(("events", 16), ("https://user:secret@host/", 17)),
        agent_cpu_seconds=1.25,
        untracked_locks=18,
    )

    series = parse(Collector(Source(stats), "1.2.3").render())

    assert value(series, "concagent_locks_created_total") == 90
    assert value(series, "concagent_locks_alive") == 50
    assert value(series, "concagent_threads_seen_total") == 12
    assert value(series, "concagent_blocked_threads") == 3
    assert value(series, "concagent_deadlocked_threads") == 2
    assert value(series, "concagent_open_deadlocks") == 1
    assert value(series, "concagent_longest_wait_seconds") == 4.5
    findings = "concagent_findings_total"
    assert value(series, findings, kind="deadlock", resource_kind="lock", confidence="proven") == 7
    assert value(series, findings, kind="leak", resource_kind="socket", confidence="suspected") == 2
    assert value(series, "concagent_open_findings") == 6
    assert value(series, "concagent_suppressed_findings_total") == 8
    assert value(series, "concagent_open_resources", resource_kind="file") == 11
    assert value(series, "concagent_open_resources", resource_kind="socket") == 13
    assert value(series, "concagent_leaked_resources", resource_kind="file") == 14
    assert value(series, "concagent_order_edges") == 15
    assert value(series, "concagent_dropped_events_total", queue="events") == 16
    assert value(series, "concagent_dropped_events_total", queue="other") == 17
    assert value(series, "concagent_agent_cpu_seconds_total") == 1.25
    assert value(series, "concagent_untracked_locks") == 18
    build = {"version": "1.2.3", "core": "c", "python": platform.python_version()}
    assert value(series, "concagent_build_info", **build) == 1


def test_borders_are_a_closed_set_and_their_sum_is_exact() -> None:
    stats = AgentStats(agent_errors=(("hook:files", 1), ("hook.locks", 2), ("monitor", 4), ("made up", 8)))

    series = parse(Collector(Source(stats), "1").render())

    assert value(series, "concagent_agent_errors_total", border="hook") == 3
    assert value(series, "concagent_agent_errors_total", border="monitor") == 4
    assert value(series, "concagent_agent_errors_total", border="other") == 8
    borders = {dict(labels)["border"] for name, labels in series if name == "concagent_agent_errors_total"}
    assert borders == set(prometheus.BORDERS)


def test_buckets_become_cumulative() -> None:
    counted = ClassStatistics(
        "db",
        "lock",
        acquisitions=20,
        wait_seconds=2.5,
        wait_buckets=(1, 2, 0, 0, 0, 3, 0, 0, 4),
        hold_seconds=0.5,
        hold_samples=5,
        hold_buckets=(5, 0, 0, 0, 0, 0, 0, 0, 0),
    )

    series = parse(Collector(Source(AgentStats(classes=(counted,))), "1").render())

    bounds = [*(str(float(bound)) for bound in WAIT_BUCKETS_SECONDS), "+Inf"]
    waits = [value(series, "concagent_lock_wait_seconds_bucket", lock_class="db", le=bound) for bound in bounds]
    assert waits == [1, 3, 3, 3, 3, 6, 6, 6, 10]
    assert value(series, "concagent_lock_wait_seconds_count", lock_class="db") == 10
    assert value(series, "concagent_lock_wait_seconds_sum", lock_class="db") == 2.5
    assert value(series, "concagent_lock_hold_seconds_bucket", lock_class="db", le="1e-05") == 5
    assert value(series, "concagent_lock_hold_seconds_count", lock_class="db") == 5


def test_holds_without_buckets_are_counted_as_shorter_than_infinity() -> None:
    counted = ClassStatistics("db", "lock", acquisitions=9, hold_seconds=0.5, hold_samples=3)

    series = parse(Collector(Source(AgentStats(classes=(counted,))), "1").render())

    assert value(series, "concagent_lock_hold_seconds_bucket", lock_class="db", le="60.0") == 0
    assert value(series, "concagent_lock_hold_seconds_count", lock_class="db") == 3
    assert value(series, "concagent_lock_hold_seconds_sum", lock_class="db") == 0.5


def test_more_buckets_than_bounds_are_added_to_the_open_one() -> None:
    counted = ClassStatistics("db", "lock", acquisitions=1, wait_buckets=(0,) * 8 + (1, 2))

    series = parse(Collector(Source(AgentStats(classes=(counted,))), "1").render())

    assert value(series, "concagent_lock_wait_seconds_count", lock_class="db") == 3


def test_the_busiest_classes_get_a_label_and_the_rest_is_other() -> None:
    classes = tuple(lock_class(f"c{n}", acquisitions=100 - n, contentions=n // 2) for n in range(10))

    series = parse(Collector(Source(AgentStats(classes=classes)), "1", top=3).render())

    # contentions 4 4 3 3; of the two with three, c6 has more acquisitions
    assert by_class(series, "concagent_lock_contentions_total") == {"c8": 4, "c9": 4, "c6": 3, OTHER: 9}
    assert by_class(series, "concagent_lock_acquisitions_total")[OTHER] == sum(100 - n for n in (0, 1, 2, 3, 4, 5, 7))


def test_a_class_without_a_single_acquisition_takes_no_label() -> None:
    series = parse(Collector(Source(AgentStats(classes=(lock_class("idle"),))), "1").render())

    assert set(by_class(series, "concagent_lock_acquisitions_total")) == {OTHER}


def test_a_lock_and_an_rlock_of_one_name_share_a_series() -> None:
    classes = (lock_class("db", 3), lock_class("db", 4, kind="rlock"))

    series = parse(Collector(Source(AgentStats(classes=classes)), "1").render())

    assert by_class(series, "concagent_lock_acquisitions_total") == {"db": 7, OTHER: 0}


def test_a_class_that_is_really_called_other_is_part_of_other() -> None:
    classes = (lock_class(OTHER, 3), lock_class("db", 4))

    series = parse(Collector(Source(AgentStats(classes=classes)), "1").render())

    assert by_class(series, "concagent_lock_acquisitions_total") == {"db": 4, OTHER: 3}


def test_a_promoted_class_leaves_its_past_in_other() -> None:
    source = Source(AgentStats(classes=(lock_class("a", 10, 5), lock_class("b", 7, 1))))
    collector = Collector(source, "1", top=1, limit=2)
    before = by_class(parse(collector.render()), "concagent_lock_contentions_total")
    source.stats = AgentStats(classes=(lock_class("a", 10, 5), lock_class("b", 20, 9)))

    after = by_class(parse(collector.render()), "concagent_lock_contentions_total")

    assert before == {"a": 5, OTHER: 1}
    assert after == {"a": 5, "b": 8, OTHER: 1}


def test_labels_beyond_the_first_are_only_for_contended_classes() -> None:
    source = Source(AgentStats(classes=(lock_class("a", 10),)))
    collector = Collector(source, "1", top=1, limit=2)
    collector.render()
    source.stats = AgentStats(classes=(lock_class("a", 10), lock_class("b", 20)))

    after = by_class(parse(collector.render()), "concagent_lock_acquisitions_total")

    assert after == {"a": 10, OTHER: 20}


def test_no_more_labels_than_the_limit_are_ever_given() -> None:
    source = Source()
    collector = Collector(source, "1", top=2, limit=3)
    for busiest in range(10):
        source.stats = AgentStats(
            classes=tuple(lock_class(f"c{n}", 100, 100 + n) for n in range(busiest + 1)),
        )

        series = parse(collector.render())

        assert len(by_class(series, "concagent_lock_contentions_total")) <= 3 + 1


def test_without_a_top_everything_is_other() -> None:
    series = parse(Collector(Source(AgentStats(classes=(lock_class("a", 3, 1),))), "1", top=0).render())

    assert by_class(series, "concagent_lock_acquisitions_total") == {OTHER: 3}


def test_statistics_that_begin_again_from_zero_do_not_make_counters_fall() -> None:
    source = Source(AgentStats(classes=(lock_class("a", 10, 5),)))
    collector = Collector(source, "1")
    collector.render()
    source.stats = AgentStats(classes=(lock_class("a", 3, 1),))

    after = parse(collector.render())

    assert by_class(after, "concagent_lock_acquisitions_total")["a"] == 13


def test_a_class_that_is_gone_stays_at_what_it_counted() -> None:
    source = Source(AgentStats(classes=(lock_class("a", 10), lock_class("b", 4))))
    collector = Collector(source, "1", top=1, limit=1)
    collector.render()
    source.stats = AgentStats()

    after = by_class(parse(collector.render()), "concagent_lock_acquisitions_total")

    assert after == {"a": 10, OTHER: 4}


def test_counters_never_fall_and_always_add_up() -> None:
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies
    bucket_numbers = st.integers(0, len(WAIT_BUCKETS_SECONDS))
    growth = st.tuples(st.sampled_from("abcdefg"), st.integers(0, 20), st.integers(0, 20), bucket_numbers)
    programs = st.lists(st.lists(growth, max_size=5), min_size=1, max_size=12)

    def check(steps: list[list[tuple[str, int, int, int]]], top: int, limit: int) -> None:
        totals: dict[str, tuple[int, int, list[int]]] = {}
        source = Source()
        collector = Collector(source, "1", top=top, limit=limit)
        before: Series = {}
        for step in steps:
            for name, acquisitions, contentions, bucket in step:
                old = totals.get(name, (0, 0, [0] * 9))
                buckets = list(old[2])
                buckets[bucket] += contentions
                totals[name] = (old[0] + acquisitions, old[1] + contentions, buckets)
            source.stats = AgentStats(
                classes=tuple(
                    ClassStatistics(name, "lock", acquisitions=a, contentions=c, wait_buckets=tuple(b))
                    for name, (a, c, b) in totals.items()
                )
            )

            series = parse(collector.render())

            lock_series = {key: number for key, number in series.items() if "lock_class" in dict(key[1])}
            assert all(lock_series[key] >= number for key, number in before.items())
            before = lock_series
            acquired = by_class(series, "concagent_lock_acquisitions_total")
            contended = by_class(series, "concagent_lock_contentions_total")
            waited = by_class(series, "concagent_lock_wait_seconds_count")
            assert sum(acquired.values()) == sum(a for a, _, _ in totals.values())
            assert sum(contended.values()) == sum(c for _, c, _ in totals.values())
            assert sum(waited.values()) == sum(sum(b) for _, _, b in totals.values())
            assert len(acquired) <= limit + 1

    hypothesis.given(programs, st.integers(0, 3), st.integers(0, 4))(check)()


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ('say "a\\b"\n', 'say "a\\b"\n'),
        ("/srv/\udcff.py:3", "/srv/\\udcff.py:3"),
        ("x" * 300 + ".py:3", "..." + "x" * 192 + ".py:3"),
        ("", ""),
    ],
)
def test_any_name_of_a_lock_survives_the_text_format(name: str, label: str) -> None:
    series = parse(Collector(Source(AgentStats(classes=(lock_class(name, 1),))), "1").render())

    assert set(by_class(series, "concagent_lock_acquisitions_total")) == {label, OTHER}


def test_an_error_in_the_statistics_is_counted_and_the_last_figures_stay() -> None:
    told: list[Exception] = []
    source = Source(AgentStats(deadlocked_threads=2))

    def failing() -> AgentStats:
        if source.calls:
            raise RuntimeError("torn")
        return source()

    collector = Collector(failing, "1", on_error=told.append)
    collector.render()
    collector.render()

    series = parse(collector.render())

    assert value(series, "concagent_agent_errors_total", border="scrape") == 2
    assert value(series, "concagent_deadlocked_threads") == 2
    assert [str(error) for error in told] == ["torn", "torn"]


def test_an_error_that_the_agent_counts_as_well_is_shown_once() -> None:
    counted = [0]
    broken = [True]

    def statistics() -> AgentStats:
        if broken[0]:
            raise RuntimeError("torn")
        return AgentStats(agent_errors=(("scrape", counted[0]),))

    def count(_: Exception) -> None:
        counted[0] += 1

    collector = Collector(statistics, "1", on_error=count)
    collector.render()
    during = parse(collector.render())
    broken[0] = False

    after = parse(collector.render())

    assert value(during, "concagent_agent_errors_total", border="scrape") == 2
    assert value(after, "concagent_agent_errors_total", border="scrape") == 2


def test_one_scrape_reads_the_statistics_once() -> None:
    source = Source()

    Collector(source, "1").render()

    assert source.calls == 1


def test_registering_reads_no_statistics() -> None:
    source = Source()

    prometheus.register(CollectorRegistry(auto_describe=True), source, "1")

    assert source.calls == 0


def test_a_registry_can_hold_us_beside_its_own_collectors_and_let_us_go() -> None:
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)

    collector = prometheus.register(registry, Source(AgentStats(blocked_threads=4)), "1")

    assert registry.get_sample_value("concagent_blocked_threads") == 4
    registry.unregister(collector)
    assert registry.get_sample_value("concagent_blocked_threads") is None


def test_two_agents_in_one_registry_are_refused() -> None:
    registry = CollectorRegistry()
    prometheus.register(registry, Source(), "1")

    with pytest.raises(ValueError, match="concagent"):
        prometheus.register(registry, Source(), "1")


def test_render_gives_one_scrape_as_text() -> None:
    text = prometheus.render(Source(AgentStats(deadlocked_threads=2)), "1")

    assert b"\nconcagent_deadlocked_threads 2.0\n" in text


def test_names_follow_the_conventions_of_prometheus() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"concagent_[a-z]+(_[a-z]+)*", metric.name)
        assert metric.name.endswith("_total") == (metric.type == "counter")
        assert metric.name.endswith("_info") == (metric.type == "info")
        assert metric.help.endswith(".")
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_the_child_of_a_fork_counts_from_zero() -> None:
    source = Source(AgentStats(classes=(lock_class("a", 10),)))
    collector = Collector(source, "1")
    collector.render()
    collector._lock.acquire()  # a thread that was scraping, and that the child does not have

    collector.after_fork_in_child()
    source.stats = AgentStats(classes=(lock_class("a", 2),))

    series = parse(collector.render())
    assert by_class(series, "concagent_lock_acquisitions_total") == {"a": 2, OTHER: 0}


def test_importing_the_module_does_not_import_prometheus_client() -> None:
    code = "import sys, concagent.exporters.prometheus; sys.exit('prometheus_client' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)

    assert done.returncode == 0


def test_the_document_lists_exactly_the_metrics_of_the_collector() -> None:
    document = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")

    rows = re.findall(r"^\| `(concagent_\w+)` \| (\w+) \|(.*?)\| (.*?) \|", document, re.MULTILINE)

    documented = [(name, kind, tuple(re.findall(r"`(\w+)`", labels)), text) for name, kind, labels, text in rows]
    assert documented == [(metric.name, metric.type, metric.labels, metric.help) for metric in METRICS]


def test_the_document_lists_the_closed_sets() -> None:
    document = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")

    for label, allowed in (("border", prometheus.BORDERS), ("queue", prometheus.QUEUES)):
        row = re.search(rf"^\| `{label}` \| (.*) \|$", document, re.MULTILINE)
        assert row
        assert tuple(re.findall(r"`(\w+)`", row[1])) == allowed


def test_every_name_in_the_document_and_in_the_rules_is_scraped() -> None:
    scraped = {name for name, _ in parse(Collector(Source(), "1").render())}

    for file in (ROOT / "docs" / "metrics.md", ROOT / "exporters" / "rules.yml"):
        names = set(re.findall(r"\bconcagent_[a-z_]+\b", file.read_text(encoding="utf-8")))
        unknown = names - scraped - {metric.name for metric in METRICS}
        assert not unknown, file.name


# ---------------------------------------------------------------- children


def counted(**more: object) -> AgentStats:
    entry = ClassStatistics("app.py:7", "lock", 5, 2, 0.5, (1,) * 9, 1.5, 3, (2,) * 9)
    figures: dict[str, object] = {"findings": ((("deadlock", "lock", "proven"), 2),), "classes": (entry,), **more}
    return AgentStats(**figures)  # type: ignore[arg-type]


def test_what_children_count_has_their_pid_and_what_the_process_counts_has_none() -> None:
    collector = Collector(Source(counted()), "1", children=lambda: {7: counted(order_edges=3), 8: None})

    series = parse(collector.render())

    found = {"kind": "deadlock", "resource_kind": "lock", "confidence": "proven"}
    assert value(series, "concagent_findings_total", **found) == 2
    assert value(series, "concagent_findings_total", **found, pid="7") == 2
    assert value(series, "concagent_order_edges", pid="7") == 3
    assert value(series, "concagent_lock_contentions_total", lock_class="app.py:7", pid="7") == 2
    assert value(series, "concagent_child_processes", state="answered") == 1
    assert value(series, "concagent_child_processes", state="silent") == 1
    assert not [key for key in series if ("pid", "8") in key[1]]


def test_a_process_without_children_has_no_label_pid() -> None:
    series = parse(Collector(Source(counted()), "1", children=dict).render())

    assert not [labels for _, labels in series if "pid" in dict(labels)]
    assert value(series, "concagent_child_processes", state="answered") == 0


def test_the_series_of_a_child_go_with_it() -> None:
    below = {7: counted()}
    collector = Collector(Source(), "1", children=lambda: below)
    collector.render()
    below.clear()

    assert not [labels for _, labels in parse(collector.render()) if "pid" in dict(labels)]


def test_there_are_no_series_of_more_children_than_the_limit() -> None:
    below = dict.fromkeys(range(1000, 1000 + 2 * prometheus.PROCESSES), counted())

    series = parse(Collector(Source(), "1", children=lambda: below).render())

    assert len({dict(labels).get("pid") for _, labels in series} - {None}) == prometheus.PROCESSES
    assert value(series, "concagent_child_processes", state="answered") == 2 * prometheus.PROCESSES


def test_children_that_cannot_be_read_cost_an_error_and_not_the_scrape() -> None:
    def broken() -> dict[int, AgentStats | None]:
        raise RuntimeError("torn")

    series = parse(Collector(Source(counted()), "1", children=broken).render())

    assert value(series, "concagent_agent_errors_total", border="scrape") == 1


def test_counters_reach_another_process_unchanged() -> None:
    stats = counted(open_resources=(("file", 3),), agent_cpu_seconds=0.25)

    assert statistics_from_json(statistics_to_json(stats).encode()) == stats


def test_counters_of_another_version_are_refused() -> None:
    for text in (b'{"classes": [], "unheard_of": 1}', b"[]", b'{"classes": [{}]}', b"not json"):
        with pytest.raises(ValueError, match=r"."):
            statistics_from_json(text)
