"""The ring that the kernel refused, read from its list of locks."""

from __future__ import annotations

import pytest

from concagent import kernellocks, refusals

LAST = (1 << 63) - 1
WHOLE = (0, LAST)
LIST = """\
1: POSIX  ADVISORY  WRITE 100 fe:00:7 0 EOF
1: -> POSIX  ADVISORY  WRITE 200 fe:00:7 0 EOF
2: POSIX  ADVISORY  WRITE 200 fe:00:8 0 9
2: -> FLOCK  ADVISORY  WRITE 300 fe:00:8 0 EOF
3: FLOCK  ADVISORY  WRITE 300 fe:00:8 0 EOF
4: OFDLCK ADVISORY  READ  -1 fe:00:9 0 EOF
5: POSIX  ADVISORY  READ  300 fe:00:8 20 29
5:  -> POSIX  ADVISORY  WRITE 400 fe:00:8 20 29
"""


def test_the_list_is_read_with_the_waits_and_lines_that_look_otherwise_are_left_out() -> None:
    entries = kernellocks.parse(LIST + "8: LEASE  ACTIVE    READ 1\nnonsense\n")

    assert [(e.number, e.kind, e.waits, e.pid, e.inode, e.first, e.last) for e in entries] == [
        ("1", "POSIX", False, 100, 7, 0, LAST),
        ("1", "POSIX", True, 200, 7, 0, LAST),
        ("2", "POSIX", False, 200, 8, 0, 9),
        ("2", "FLOCK", True, 300, 8, 0, LAST),
        ("3", "FLOCK", False, 300, 8, 0, LAST),
        ("4", "OFDLCK", False, 0, 9, 0, LAST),
        ("5", "POSIX", False, 300, 8, 20, 29),
        ("5", "POSIX", True, 400, 8, 20, 29),
    ]


@pytest.mark.parametrize(("span", "shared"), [(WHOLE, False), ((9, 9), True)])
def test_who_has_what_is_wanted_and_waits_for_us_is_the_ring(span: tuple[int, int], shared: bool) -> None:
    assert refusals.find_ring(kernellocks.parse(LIST), 100, 8, shared, span) == [(200, 7)]


@pytest.mark.parametrize(("span", "shared"), [((10, 30), False), ((20, 29), True)])
def test_who_has_other_bytes_or_shares_is_not_in_it(span: tuple[int, int], shared: bool) -> None:
    assert refusals.find_ring(kernellocks.parse(LIST), 100, 8, shared, span) == []


def test_a_ring_of_three_is_found_through_the_second() -> None:
    text = LIST + "6: POSIX  ADVISORY  WRITE 500 fe:00:9 0 EOF\n6: -> POSIX  ADVISORY  WRITE 100 fe:00:9 0 EOF\n"

    assert refusals.find_ring(kernellocks.parse(text), 500, 8, False, (0, 0)) == [(200, 7), (100, 9)]
    assert refusals.find_ring(kernellocks.parse(text), 500, 8, False, (20, 20)) == []


def test_a_list_that_has_changed_meanwhile_gives_no_ring() -> None:
    text = "\n".join(line for line in LIST.splitlines() if "->" not in line)

    assert refusals.find_ring(kernellocks.parse(text), 100, 8, False, WHOLE) == []
