"""Rows K10 (its file part) and K13: files that are closed, and those that are not."""

from __future__ import annotations

import textwrap
from typing import Any

K10 = """
    import sys
    def careful(path):
        with open(path) as file:
            file.read(1)
    def careless(path):
        open(path).read(1)
    for number in range(10_000):
        {call}
    """


def test_k10_a_hundred_files_of_ten_thousand_unclosed_are_counted_exactly(runner: Any) -> None:
    call = "(careless if number % 100 == 0 else careful)(__file__)"
    outcome = runner.ends(
        "import concagent\n"
        + textwrap.dedent(K10.format(call=call))
        + "print(dict(concagent.install().statistics().leaked_resources))\n"
    )

    found = outcome.only
    assert (found["kind"], found["resource_kind"], found["confidence"]) == ("leak", "file", "proven")
    assert outcome.stdout == "{'file': 100}\n"
    assert found["resources"][0]["created"]["function"] == "careless"


def test_k10_twin_ten_thousand_closed_files_are_silent(runner: Any) -> None:
    runner.silent(K10.format(call="careful(__file__)"))


def test_k13_files_closed_in_any_way_are_silent(runner: Any, shape: str) -> None:
    runner.silent(
        """
        import io, os
        path = __file__
        file = open(path)
        file.close()
        with open(path, "rb") as file:
            file.read()
        with open(path, "rb", buffering=0) as file:
            file.read()
        try:
            with io.open(path) as file:
                raise ValueError
        except ValueError:
            pass
        file = open(path)
        try:
            file.read()
        finally:
            file.close()
        """,
        shape=shape,
    )


def test_k13_positive_twin_a_file_never_closed_is_reported(runner: Any, shape: str) -> None:
    found = runner.ends("open(__file__).read()\n", shape=shape).only

    assert (found["kind"], found["resource_kind"], found["confidence"]) == ("leak", "file", "proven")
