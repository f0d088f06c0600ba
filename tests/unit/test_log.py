"""The log sink: which level, which text, and that nothing is rendered for nobody."""

from __future__ import annotations

import logging

import pytest

from concagent.exporters.log import ERROR_KINDS, WARNING_KINDS, LogSink
from concagent.model import KINDS, Finding


def finding(kind: str) -> Finding:
    return Finding(kind, "lock", "proven", "f1", "p1", 1.0, 1, "100%s of a ring")


def render(what: Finding) -> str:
    return f"{what.title}\n  line two, 5% more"


@pytest.mark.parametrize("kind", ["deadlock", "stall", "orphaned-lock", "misuse", "order-violation", "data-race"])
def test_what_is_broken_is_an_error_with_the_full_report(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    LogSink(render)(finding(kind))

    (record,) = caplog.records
    assert (record.name, record.levelno) == ("concagent", logging.ERROR)
    assert record.getMessage() == "100%s of a ring\n  line two, 5% more"


@pytest.mark.parametrize("kind", ["long-wait", "long-hold", "leak", "lock-order-inversion"])
def test_what_is_slow_or_only_possible_is_a_warning(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    LogSink(render)(finding(kind))

    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_the_record_carries_the_finding(caplog: pytest.LogCaptureFixture) -> None:
    LogSink(render)(finding("deadlock"))

    assert vars(caplog.records[0])["finding"] == finding("deadlock")


def test_each_kind_has_a_level() -> None:
    assert set(KINDS) == ERROR_KINDS | WARNING_KINDS
    assert set(KINDS) > WARNING_KINDS


def test_a_logger_that_is_off_renders_nothing(caplog: pytest.LogCaptureFixture) -> None:
    rendered: list[Finding] = []

    def keep(what: Finding) -> str:
        rendered.append(what)
        return what.title

    sink = LogSink(keep, "concagent.test_log")

    with caplog.at_level(logging.CRITICAL, "concagent.test_log"):
        sink(finding("deadlock"))

    assert (rendered, caplog.records) == ([], [])


def test_without_any_handler_the_report_goes_to_standard_error_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    LogSink(render, write_stderr=written.append)(finding("deadlock"))

    assert written == ["100%s of a ring\n  line two, 5% more\n"]


def test_with_a_handler_standard_error_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    written: list[str] = []

    LogSink(render, write_stderr=written.append)(finding("deadlock"))

    assert written == []
    assert len(caplog.records) == 1
