"""Promises of ``openings``: sums that add up, sites that mean something, bounded, and silent after a fork."""

from __future__ import annotations

import sys
from types import CodeType
from typing import Any

import pytest

from concagent import openings as module
from concagent.model import CallSite
from concagent.openings import MAX_SITES, OTHER, UNKNOWN, Opening, Openings, OpeningStatistics


class Clock:
    """A clock that stands still until it is told to go on."""

    now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(clock: Clock) -> Openings:
    return Openings(clock=clock)


def code_of(name: str = "load", file: str = "/srv/app.py", line: int = 12) -> CodeType:
    return (lambda: None).__code__.replace(co_filename=file, co_firstlineno=line, co_name=name)


def only(table: Openings, older_than_ns: int = 0) -> OpeningStatistics:
    (figures,) = table.statistics(older_than_ns)
    return figures


def test_an_opening_is_counted_at_its_site(table: Openings) -> None:
    table.opened("file", (code_of(), 0))

    figures = only(table)

    assert (figures.site.file, figures.site.line, figures.kind) == ("/srv/app.py", 12, "file")
    assert (figures.opened, figures.open, figures.closed, figures.collected_unclosed) == (1, 1, 0, 0)
    assert figures.user_code


def test_opened_is_the_sum_of_open_closed_and_collected(table: Openings) -> None:
    code = code_of()
    tokens = [table.opened("file", (code, 0)) for _ in range(10)]
    for token in tokens[:3]:
        table.closed(token)
    for token in tokens[3:5]:
        table.collected_unclosed(token)

    figures = only(table)

    assert (figures.opened, figures.open, figures.closed, figures.collected_unclosed) == (10, 5, 3, 2)
    assert table.open_counts() == (("file", 5),)
    assert table.collected_counts() == (("file", 2),)


def test_closing_twice_is_closing_once(table: Openings) -> None:
    token = table.opened("file", (code_of(), 0))

    table.closed(token)
    table.closed(token)

    assert only(table).closed == 1


def test_equal_functions_of_two_files_are_two_sites(table: Openings) -> None:
    one, two = code_of(file="/a/app.py"), code_of(file="/b/app.py")
    assert one == two or sys.version_info >= (3, 12)
    table.opened("file", (one, 0))
    table.opened("file", (two, 0))

    assert [figures.site.file for figures in table.statistics()] == ["/a/app.py", "/b/app.py"]


def test_kinds_are_told_apart(table: Openings) -> None:
    code = code_of()
    table.opened("socket", (code, 0))
    table.opened("file", (code, 0))

    assert table.open_counts() == (("file", 1), ("socket", 1))


def test_an_opening_without_a_site_is_unknown(table: Openings) -> None:
    table.opened("file", None)

    assert only(table).site == CallSite(UNKNOWN, 0, UNKNOWN)
    assert not only(table).user_code


def test_sites_beyond_the_cap_are_counted_as_other(clock: Clock) -> None:
    table = Openings(max_sites=3, clock=clock)
    codes = [code_of(f"f{number}") for number in range(10)]
    for code in codes:
        table.opened("file", (code, 0))

    figures = table.statistics()

    assert [f.site.function for f in figures].count(OTHER) == 1
    assert figures[-1].site == CallSite(OTHER, 0, OTHER)
    assert figures[-1].opened == 7
    assert len(table.table("file")) == 4
    assert MAX_SITES > 3


def test_age_counts_from_the_opening(table: Openings, clock: Clock) -> None:
    code = code_of()
    for clock.now_ns in (10, 20, 30):
        table.opened("file", (code, 0))
    clock.now_ns = 100

    young, middle, all_ = only(table, 80), only(table, 75), only(table, 0)

    assert (young.old, young.old_span_ns) == (2, 10)
    assert (middle.old, middle.old_span_ns) == (2, 10)
    assert (all_.old, all_.old_span_ns, all_.oldest_open_ns) == (3, 20, 10)
    assert (only(table, 1000).old, only(table, 1000).old_span_ns) == (0, 0)


def test_an_opening_that_says_it_is_closed_counts_as_closed(table: Openings) -> None:
    class Ended(Opening):
        def is_open(self) -> bool:
            return False

    table.add(Ended(table.record_at("file", code_of(), 0), 0))

    assert (only(table).open, only(table).closed, only(table).oldest_open_ns) == (0, 1, None)


def test_collected_resources_are_taken_once_a_site_with_their_number(table: Openings) -> None:
    code = code_of()
    for _ in range(3):
        table.collected_unclosed(table.opened("file", (code, 0)))

    first, second = table.take_unclosed(), table.take_unclosed()
    table.collected_unclosed(table.opened("file", (code, 0)))
    third = table.take_unclosed()

    assert [(event.site.line, event.count, event.total) for event in first] == [(12, 3, 3)]
    assert second == ()
    assert [(event.count, event.total) for event in third] == [(1, 4)]


def test_whoever_waits_is_told_once_until_it_takes(clock: Clock) -> None:
    told: list[int] = []
    table = Openings(on_unclosed=lambda: told.append(1), clock=clock)
    code = code_of()
    for _ in range(3):
        table.collected_unclosed(table.opened("file", (code, 0)))
    before = len(told)
    table.take_unclosed()
    table.collected_unclosed(table.opened("file", (code, 0)))

    assert (before, len(told)) == (1, 2)


def test_a_stopped_table_counts_no_ends(table: Openings) -> None:
    token = table.opened("file", (code_of(), 0))
    table.stop()
    table.collected_unclosed(token)

    assert table.take_unclosed() == ()
    table.start()
    assert table.active


def test_what_the_interpreter_tears_down_is_no_leak(table: Openings, monkeypatch: pytest.MonkeyPatch) -> None:
    token = table.opened("file", (code_of(), 0))
    monkeypatch.setattr(module, "_is_finalizing", lambda: True)

    table.collected_unclosed(token)

    assert table.take_unclosed() == ()


def test_after_a_fork_the_parents_openings_count_for_nothing(table: Openings) -> None:
    code = code_of()
    hot = table.table("file")
    old = table.opened("file", (code, 0))

    table.after_fork_in_child()
    table.collected_unclosed(old)
    after_fork = table.statistics()
    table.opened("file", (code, 0))

    assert after_fork == ()
    assert table.take_unclosed() == ()
    assert only(table).opened == 1
    assert table.table("file") is hot


def test_the_site_behind_the_standard_library_is_the_callers(table: Openings) -> None:
    table.add(Opening(table.record_of("file", _frame_inside_library()), 0))

    assert only(table).site.file == __file__


def _frame_inside_library() -> Any:
    import io
    import os

    namespace: dict[str, Any] = {"sys": sys}
    exec(compile("def inner(): return sys._getframe(0)", os.__file__, "exec"), namespace)
    assert io
    return namespace["inner"]()


def test_with_library_frames_only_the_innermost_is_named_and_is_not_the_programs(table: Openings) -> None:
    record = table.record_of("file", _Frames(code_of(file="<frozen runpy>"), code_of(file="<frozen main>")))  # type: ignore[arg-type]
    table.add(Opening(record, 0))

    assert only(table).site.file == "<frozen runpy>"
    assert not only(table).user_code


def test_our_own_launcher_is_never_blamed(table: Openings) -> None:
    frames = _Frames(code_of(file="<frozen runpy>"), code_of(file=module.__file__))
    record = table.record_of("file", frames)  # type: ignore[arg-type]
    table.add(Opening(record, 0))

    assert only(table).site.file == "<frozen runpy>"


def test_installed_packages_are_not_the_programs_code(table: Openings) -> None:
    table.opened("file", (code_of(file="/venv/lib/python3.11/site-packages/x/y.py"), 0))

    assert not only(table).user_code


def test_the_line_is_that_of_the_instruction() -> None:
    namespace: dict[str, Any] = {}
    exec(compile("def f():\n    a = 1\n    b = 2\n    return a\n", "/x/y.py", "exec"), namespace)
    code = namespace["f"].__code__
    last = list(code.co_lines())[-1]

    assert module.call_site(code, last[0]) == CallSite("/x/y.py", 4, "f")


class _Frames:
    """A chain of frames, innermost first."""

    f_lasti = 0

    def __init__(self, code: CodeType, *callers: CodeType) -> None:
        self.f_code = code
        self.f_back = _Frames(*callers) if callers else None
