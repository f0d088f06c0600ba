"""Lines of source for evidence: the same as ``linecache`` gives, without its cost."""

from __future__ import annotations

import linecache
import os
from pathlib import Path

import pytest

from concagent import sources


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_files", {})


@pytest.mark.parametrize(
    "content",
    [
        b"a = 1\n\n  b = 2  \n",
        b"a = 1\r\nb = 2\r\nc = 3",
        b"\xef\xbb\xbfa = 1\nb = 2\n",
        "# -*- coding: latin-1 -*-\na = '\u00e4'\nb = 2\n".encode("latin-1"),
        "a = '\u00e4\u2028'\n\x0cb = 2\n".encode(),
        b"",
    ],
)
def test_a_line_is_what_linecache_says(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "program.py"
    path.write_bytes(content)

    lines = [sources.source_line(str(path), number) for number in range(5)]

    linecache.cache.pop(str(path), None)
    assert lines == [linecache.getline(str(path), number).strip() for number in range(5)]


def test_what_linecache_knows_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(linecache.cache, "<cell 1>", (7, None, ["x = 1\n"], "<cell 1>"))

    assert sources.source_line("<cell 1>", 1) == "x = 1"


def test_bytes_that_are_no_utf_8_do_not_hide_the_line(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_bytes(b"a = '\xff'\n")

    assert sources.source_line(str(path), 1) == "a = '\ufffd'"


@pytest.mark.parametrize("file", ["<string>", "/no/such/file.py", "", "a\0b", os.sep])
def test_what_cannot_be_read_has_no_source(file: str) -> None:
    assert sources.source_line(file, 1) == ""


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "pipe.py"
    os.mkfifo(path)

    assert sources.source_line(str(path), 1) == ""


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.py"
    with path.open("wb") as file:
        file.truncate(sources._SIZE_LIMIT + 1)

    assert sources.source_line(str(path), 1) == ""


def test_a_file_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text("a = 1\nb = 2\n")
    first = sources.source_line(str(path), 1)
    path.unlink()

    assert (first, sources.source_line(str(path), 2)) == ("a = 1", "b = 2")
    assert str(path) not in linecache.cache


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_FILE_LIMIT", 2)
    for number in range(5):
        path = tmp_path / f"program_{number}.py"
        path.write_text("a = 1\n")
        sources.source_line(str(path), 1)

    assert len(sources._files) <= 2
