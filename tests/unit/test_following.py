"""What is told to a child that is executed, and to whom."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from concagent import following
from concagent.config import Config

FOLDER = os.fsencode(following.FOLDER)


@pytest.fixture(autouse=True)
def followed() -> Iterator[None]:
    following.start(Config(long_wait=7.0))
    yield
    following.stop()


def environment(*pairs: bytes) -> dict[bytes, bytes]:
    told = following.told(pairs)
    assert told is not None
    return dict(pair.split(b"=", 1) for pair in told)  # type: ignore[misc]


def test_our_directory_is_the_first_of_the_childs_path() -> None:
    assert environment(b"A=1", b"PYTHONPATH=/x:/y")[b"PYTHONPATH"] == FOLDER + b":/x:/y"


def test_a_child_without_a_path_gets_one_without_an_empty_entry() -> None:
    assert environment(b"A=1")[b"PYTHONPATH"] == FOLDER


def test_everything_else_goes_through() -> None:
    told = following.told([b"A=1=2", b"odd", b"B="])

    assert told is not None
    assert told[:3] == [b"A=1=2", b"odd", b"B="]
    assert len(told) == 5


@pytest.mark.parametrize("pairs", [(), (b"PYTHONPATH=",), (b"PYTHONPATH=/x",), (b"PYTHONPATH=/x::/y",)])
def test_an_environment_that_was_told_already_is_told_the_same(pairs: tuple[bytes, ...]) -> None:
    once = following.told(pairs)

    assert once is not None
    assert following.told(once) == once


def test_the_options_travel() -> None:
    assert b"+CONCAGENT_LONG_WAIT=7" in environment()[b"_CONCAGENT_FOLLOW"].split(b"\x1f")


def test_paths_travel_as_absolute_ones() -> None:
    settled = following.settled(Config(findings="found.jsonl"))

    assert settled.findings == os.path.join(os.getcwd(), "found.jsonl")


def test_a_mapping_with_a_name_that_is_none_is_left_to_the_original() -> None:
    assert following.told_mapping({"A=B": "1"}) is None
    assert following.told_mapping({"A": "x\0y"}) is None


def test_nobody_is_told_when_nobody_is_followed() -> None:
    following.stop()

    assert following.told([b"A=1"]) is None
    assert not following.wants([sys.executable], ["python"], inherited=True)


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "x.py -I",
        "-c pass",
        "-m mod -S",
        "-u -W error x.py",
        "-X dev -- x",
        "-Wignore x.py",
        "-bbu -c x",
        "-W E x",
        "-",
    ],
)
@pytest.mark.parametrize(
    "program", ["/usr/bin/python3", "python", b"/x/python3.13", "/x/python3.13t", "/y/python3-dbg"]
)
def test_a_python_is_told_whatever_its_environment(program: str | bytes, arguments: str) -> None:
    assert following.wants([program], ["python", *arguments.split()], inherited=False)


@pytest.mark.parametrize(
    "arguments", ["-I x.py", "-S", "-E -c x", "-uE x", "-X dev -S x", "-W error -I -c x", "-sISu x"]
)
def test_a_python_that_wants_none_of_it_is_not(arguments: str) -> None:
    assert not following.wants(["/usr/bin/python3"], ["python3", *arguments.split()], inherited=True)


def test_the_resource_tracker_of_multiprocessing_is_not() -> None:
    code = "from multiprocessing.resource_tracker import main;main(5)"

    assert not following.wants([sys.executable], [sys.executable, "-c", code], inherited=True)


def test_another_program_is_told_if_it_inherits_the_environment_only() -> None:
    assert following.wants(["/bin/sh"], ["sh", "-c", "python x.py"], inherited=True)
    assert not following.wants(["/bin/sh"], ["sh", "-c", "python x.py"], inherited=False)


def test_a_script_of_python_is_told(tmp_path: Path) -> None:
    script, other = tmp_path / "script", tmp_path / "other"
    script.write_text("#!/usr/bin/env python3\n", encoding="utf-8")
    other.write_text("#!/bin/sh\npython3 x.py\n", encoding="utf-8")

    assert following.wants([tmp_path / "missing", script], ["script"], inherited=False)
    assert not following.wants([other], ["other"], inherited=False)


def test_what_a_child_finds_first_can_be_read_by_the_oldest_python() -> None:
    path = Path(following.FOLDER) / "sitecustomize.py"

    tree = ast.parse(path.read_text(encoding="ascii"), feature_version=(3, 0))

    newer = (ast.JoinedStr, ast.AnnAssign, ast.AsyncFunctionDef, ast.Nonlocal, ast.NamedExpr, ast.arg)
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, newer) and getattr(node, "annotation", 1)]
    assert os.listdir(following.FOLDER).count("sitecustomize.py") == 1


@pytest.mark.parametrize(
    "name",
    [
        *(
            "python",
            "python3",
            "python3.13",
            "python3.13t",
            "pythonw",
            "python3.12-dbg",
            "python3.13d-dbg",
            "python-dbg",
        ),
        *(
            "",
            "p",
            "pytho",
            "pythonic",
            "python3-config",
            "python3.13tt",
            "-dbg",
            "python-dbg-dbg",
            "Python",
            "ipython",
        ),
        *("pythonW", "python3.1\u00e9", "python3,1", "python\n", "python3\n", "dpython"),
    ],
)
def test_what_is_called_like_a_python_is_one(name: str) -> None:
    called_so = re.fullmatch(rb"python[0-9.]*[a-z]?(-dbg)?", name.encode()) is not None

    assert following._is_python(name.encode()) == called_so
