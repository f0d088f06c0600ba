"""Promises of the leak detector and of fingerprints: facts are proven, suspicions are few and say why."""

from __future__ import annotations

import dataclasses
import json

import pytest

from concagent.detectors import leak
from concagent.detectors.fingerprint import fingerprint, place, short_file
from concagent.detectors.leak import detect_growth, detect_open_at_exit, detect_unclosed
from concagent.model import CallSite
from concagent.openings import OpeningStatistics, UnclosedEvent
from concagent.suppressions import line_for

SITE = CallSite("/srv/shop/app.py", 12, "load")
OTHER_SITE = CallSite("/srv/shop/app.py", 30, "save")
SECOND = 1_000_000_000


def event(count: int = 1, site: CallSite = SITE) -> UnclosedEvent:
    return UnclosedEvent("file", site, True, count, count)


def figures(
    *, open_: int = 0, opened: int = 0, old: int = 0, span: float = 0.0, user_code: bool = True, site: CallSite = SITE
) -> OpeningStatistics:
    opened = max(opened, open_)
    span_ns = int(span * SECOND)
    return OpeningStatistics("file", site, user_code, opened, opened - open_, open_, 0, old, span_ns, 0)


# Collected unclosed.


def test_a_file_collected_unclosed_is_a_proven_leak_with_its_site() -> None:
    (finding,) = detect_unclosed([event()], pid=7, wall_seconds=1.5)

    assert (finding.kind, finding.resource_kind, finding.confidence) == ("leak", "file", "proven")
    assert finding.detail == "collected unclosed"
    assert finding.title == "file opened at shop/app.py:12 in load was collected without being closed"
    assert finding.resources[0].created == SITE
    assert finding.reason is None
    assert (finding.pid, finding.time, finding.id) == (7, 1.5, f"7-{finding.fingerprint[:8]}")
    assert finding.advice


def test_a_hundred_from_one_line_are_one_finding_that_counts_to_a_hundred() -> None:
    findings = detect_unclosed([event(60), event(40)], pid=7, wall_seconds=0)

    assert [finding.count for finding in findings] == [100]
    assert findings[0].title.endswith("(100 times)")


def test_each_line_has_its_own_finding() -> None:
    findings = detect_unclosed([event(), event(site=OTHER_SITE)], pid=7, wall_seconds=0)

    assert len({finding.fingerprint for finding in findings}) == 2


def test_no_events_make_no_findings() -> None:
    assert detect_unclosed([], pid=7, wall_seconds=0) == ()


def test_the_line_to_suppress_a_leak_is_that_of_the_suppressions() -> None:
    (finding,) = detect_unclosed([event()], pid=7, wall_seconds=0)

    assert finding.suppress == line_for(finding)


def test_a_leak_can_be_written_as_json() -> None:
    (finding,) = detect_unclosed([event()], pid=7, wall_seconds=0)

    data = json.loads(json.dumps(finding.to_dict()))

    assert data["resources"] == [
        {
            "id": "r1",
            "kind": "file",
            "name": None,
            "created": {"file": "/srv/shop/app.py", "line": 12, "function": "load"},
            "holders": [],
            "detail": None,
        }
    ]


# Still open and growing.


def growth(now: OpeningStatistics, *earlier: OpeningStatistics) -> tuple[str, ...]:
    found = detect_growth([now], earlier, 300.0, 50, pid=7, wall_seconds=0)
    return tuple(f"{finding.confidence} {finding.detail}" for finding in found)


def test_many_old_files_that_get_more_are_suspected_with_the_reason() -> None:
    now = figures(open_=70, opened=100, old=60, span=400)
    (finding,) = detect_growth([now], [figures(open_=55, old=50, span=390)], 300.0, 50, pid=7, wall_seconds=0)

    assert (finding.confidence, finding.detail, finding.count) == ("suspected", "still open and growing", 60)
    assert finding.title == "60 files opened at shop/app.py:12 in load are open for more than 300 s, and they get more"
    assert finding.reason is not None
    assert finding.reason.startswith(
        "60 open for more than 300 s, 50 at the look before, 70 open in all, of 100 opened"
    )


def test_a_site_that_is_new_has_grown_from_none() -> None:
    assert growth(figures(open_=60, old=60, span=400)) == ("suspected still open and growing",)


@pytest.mark.parametrize(
    ("now", "earlier"),
    [
        pytest.param(figures(open_=49, old=49, span=400), figures(old=10), id="too few"),
        pytest.param(figures(open_=500, old=10, span=400), figures(old=5), id="many, but young: load"),
        pytest.param(figures(open_=64, old=64, span=400), figures(old=64), id="a full cache"),
        pytest.param(figures(open_=60, old=60, span=400), figures(old=70), id="getting fewer"),
        pytest.param(figures(open_=500, old=500, span=4), figures(old=100), id="all opened at the start"),
    ],
)
def test_sound_programs_are_not_suspected(now: OpeningStatistics, earlier: OpeningStatistics) -> None:
    assert growth(now, earlier) == ()


# Open at exit.


def test_twenty_files_from_one_line_left_open_are_suspected() -> None:
    (finding,) = detect_open_at_exit([figures(open_=20)], pid=7, wall_seconds=0)

    assert (finding.confidence, finding.detail, finding.count) == ("suspected", "open at exit", 20)
    assert finding.title == "20 files opened at shop/app.py:12 in load were still open at exit"
    assert finding.reason


def test_strictness_is_the_callers() -> None:
    (finding,) = detect_open_at_exit([figures(open_=1)], pid=7, wall_seconds=0, at_least=1)

    assert finding.title == "1 file opened at shop/app.py:12 in load was still open at exit"


@pytest.mark.parametrize(
    "statistics",
    [
        pytest.param(figures(open_=1), id="a log file"),
        pytest.param(figures(open_=leak.EXIT_OPEN - 1), id="a handler for each of a few channels"),
        pytest.param(figures(open_=20, user_code=False), id="a library's cache"),
        pytest.param(figures(open_=16, opened=100_000), id="daemon workers stopped at work"),
        pytest.param(figures(opened=100_000), id="all closed"),
    ],
)
def test_sound_programs_may_end_with_open_files(statistics: OpeningStatistics) -> None:
    assert detect_open_at_exit([statistics], pid=7, wall_seconds=0) == ()


def test_the_three_details_are_three_defects() -> None:
    now = figures(open_=60, old=60, span=400)
    found = [
        *detect_unclosed([event()], pid=7, wall_seconds=0),
        *detect_growth([now], [], 300.0, 50, pid=7, wall_seconds=0),
        *detect_open_at_exit([now], pid=7, wall_seconds=0),
    ]

    assert len({finding.fingerprint for finding in found}) == 3


# Fingerprints.


def test_a_fingerprint_is_sixteen_hexadecimal_digits() -> None:
    mark = fingerprint("leak", "file", None, [SITE])

    assert len(mark) == 16
    assert int(mark, 16) >= 0


def test_order_and_repetition_of_sites_do_not_matter() -> None:
    assert fingerprint("deadlock", "lock", None, [SITE, OTHER_SITE]) == fingerprint(
        "deadlock", "lock", None, [OTHER_SITE, SITE, OTHER_SITE]
    )


def test_the_same_program_elsewhere_has_the_same_fingerprint() -> None:
    elsewhere = dataclasses.replace(SITE, file="C:\\venv\\shop\\app.py")

    assert fingerprint("leak", "file", None, [SITE]) == fingerprint("leak", "file", None, [elsewhere])


@pytest.mark.parametrize("change", [{"line": 13}, {"function": "store"}, {"file": "/srv/other/app.py"}])
def test_another_place_has_another_fingerprint(change: dict[str, object]) -> None:
    other = dataclasses.replace(SITE, **change)  # type: ignore[arg-type]

    assert fingerprint("leak", "file", None, [SITE]) != fingerprint("leak", "file", None, [other])


def test_kind_and_detail_are_part_of_it() -> None:
    marks = {fingerprint(kind, "file", detail, [SITE]) for kind in ("leak", "misuse") for detail in (None, "x")}

    assert len(marks) == 4


def test_a_fingerprint_stays_what_it_was_in_earlier_versions() -> None:
    # Suppressions out there name it: a change needs a note in the changelog.
    assert fingerprint("leak", "file", "collected unclosed", [SITE]) == "5b576551d5f2d40b"


def test_places_are_short_and_unknown_ones_have_a_word() -> None:
    assert place(SITE) == "shop/app.py:12:load"
    assert place(None) == "unknown"
    assert short_file("app.py") == "app.py"


def test_file_names_that_are_no_text_have_fingerprints_too() -> None:
    assert fingerprint("leak", "file", None, [CallSite("/x/\udcff.py", 1, "f")])
