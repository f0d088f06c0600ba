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
        file = open(path)
        file.read(1)
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
    found = runner.ends("file = open(__file__)\nfile.read()\nfile = None\n", shape=shape).only

    assert (found["kind"], found["resource_kind"], found["confidence"]) == ("leak", "file", "proven")


def test_k13_temporaries_that_their_own_statement_consumes_are_silent(runner: Any, shape: str) -> None:
    runner.silent(
        """
        import csv, glob, json, os, pathlib, tempfile, threading
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "data.json")
            open(path, "w").write("[1]")
            text = open(path).read()
            data = json.load(
                open(
                    path,
                    encoding="utf-8",
                )
            )
            rows = list(csv.reader(open(path)))
            lines = sum(len(open(f).readlines()) for f in glob.glob(os.path.join(folder, "*")))
            texts = [open(f).read() for f in glob.glob(os.path.join(folder, "*"))]
            for line in open(path):
                break
            pathlib.Path(path).open().read()
            threads = [threading.Thread(target=lambda: json.load(open(path))) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        """,
        shape=shape,
    )


def test_k13_positive_twin_files_that_were_kept_and_dropped_are_reported(runner: Any, shape: str) -> None:
    outcome = runner.ends(
        """
        kept = []
        def unused():
            open(__file__)
        def variable():
            file = open(__file__)
            return file.read()
        def rebound():
            for _ in range(2):
                file = open(__file__)
        def item():
            kept.append(open(__file__))
            kept.clear()
        class Owner:
            def __init__(self):
                self.me = self
                self.file = open(__file__)
        def cycle():
            import gc
            Owner()
            gc.collect()
        for function in (unused, variable, rebound, item, cycle):
            function()
        """,
        shape=shape,
    )

    found = {finding["resources"][0]["created"]["function"]: finding for finding in outcome.findings}
    names = {name.rpartition(".")[2] for name in found}
    assert {(finding["kind"], finding["confidence"]) for finding in found.values()} == {("leak", "proven")}
    assert names == {"unused", "variable", "rebound", "item", "__init__"}
