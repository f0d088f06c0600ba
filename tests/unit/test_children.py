"""How full a pipe is, who else reads it, and what a child is called."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from concagent.hooks import children

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
    # What runs the tests may have threads of its own.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_a_pipe_tells_how_much_is_in_it(pipe: tuple[int, int]) -> None:
    os.write(pipe[1], b"x" * 1000)

    found = children.pipe_of("stdout", pipe[0])

    assert found is not None
    assert (found.stream, found.filled_bytes) == ("stdout", 1000)
    assert found.size_bytes >= 4096


def test_what_is_no_pipe_tells_nothing() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert children.pipe_of("stdout", one.fileno()) is None


def test_a_descriptor_that_is_closed_tells_nothing() -> None:
    assert children.pipe_of("stdout", 999_999) is None


def test_another_process_that_has_the_reading_end_is_a_reader(pipe: tuple[int, int]) -> None:
    inode = os.fstat(pipe[0]).st_ino
    alone = children.has_other_readers(inode)
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go)
        os.read(ready, 1)
        os._exit(0)
    both = children.has_other_readers(inode)
    os.close(go)
    os.close(ready)
    os.waitpid(pid, 0)

    assert (alone, both) == (False, True)


def test_another_process_that_can_only_write_is_no_reader(pipe: tuple[int, int]) -> None:
    inode = os.fstat(pipe[0]).st_ino
    ready, go = os.pipe()
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(pipe[0])
        os.close(go)
        os.write(tell, b"x")
        os.read(ready, 1)
        os._exit(0)
    os.read(told, 1)
    found = children.has_other_readers(inode)
    for end in (go, ready, told, tell):
        os.close(end)
    os.waitpid(pid, 0)

    assert not found


@pytest.mark.parametrize(
    ("args", "name"),
    [
        (["/usr/bin/ls", "--password=x"], "ls (pid 7)"),
        ("/bin/cat /etc/passwd", "cat (pid 7)"),
        (b"/bin/cat", "cat (pid 7)"),
        ([b"make"], "make (pid 7)"),
        ([], "child (pid 7)"),
        ("", "child (pid 7)"),
    ],
)
def test_a_child_is_called_by_its_command_without_arguments(args: Any, name: str) -> None:
    assert children._name_of(SimpleNamespace(args=args, pid=7)) == name
