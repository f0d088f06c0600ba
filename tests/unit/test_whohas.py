"""Who has an end of a pipe, or a semaphore: asked of the kernel."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from concagent import whohas
from concagent.board import start_time

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the Linux kernel")


def me() -> tuple[int, int]:
    return os.getpid(), start_time(os.getpid())


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            pass


@pytest.fixture
def other() -> Iterator[Any]:
    """Start a process that is no Python and keeps the descriptors it is given."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*descriptors: int) -> tuple[int, int]:
        process = subprocess.Popen(["sleep", "60"], pass_fds=descriptors)
        started.append(process)
        return process.pid, start_time(process.pid)

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_who_reads_is_freed_by_whoever_has_a_writing_end(pipe: tuple[int, int], other: Any) -> None:
    key = whohas.other_end(pipe[0], writing=False)
    child = other(pipe[1])

    assert key is not None
    assert whohas.census({key}, os.getpid()) == {key: {me(), child}}


def test_who_writes_is_freed_by_whoever_has_a_reading_end(pipe: tuple[int, int], other: Any) -> None:
    key = whohas.other_end(pipe[1], writing=True)
    child = other(pipe[0])
    os.close(pipe[0])

    assert key is not None
    assert whohas.census({key}, os.getpid()) == {key: {child}}


def test_an_end_that_nobody_has_any_more_is_nobodys(pipe: tuple[int, int]) -> None:
    key = whohas.other_end(pipe[0], writing=False)
    os.close(pipe[1])

    assert key is not None
    assert whohas.census({key}, os.getpid()) == {key: set()}


def test_the_other_end_of_a_pair_of_sockets_is_the_other_socket(other: Any) -> None:
    one, two = socket.socketpair()
    with one, two:
        key = whohas.other_end(one.fileno(), writing=False)
        child = other(two.fileno())
        if key is None:
            pytest.skip("the kernel has no unix_diag")

        assert key == f"socket:{os.fstat(two.fileno()).st_ino}"
        assert whohas.census({key}, os.getpid()) == {key: {me(), child}}


def test_of_a_socket_that_is_connected_with_nobody_nothing_is_known() -> None:
    with socket.socket(socket.AF_UNIX) as alone, socket.socket(socket.AF_INET) as elsewhere:
        assert whohas.other_end(alone.fileno(), writing=False) is None
        assert whohas.other_end(elsewhere.fileno(), writing=False) is None


def test_of_a_file_nothing_is_known() -> None:
    with open(__file__, encoding="utf-8") as file:
        assert whohas.other_end(file.fileno(), writing=False) is None


def test_a_semaphore_whose_file_is_gone_is_had_by_those_who_map_it(other: Any) -> None:
    lock: Any = multiprocessing.get_context("fork").Lock()
    key = whohas.semaphore_key(lock._semlock.handle, named=lock._semlock.name is not None)
    other()

    assert key is not None
    assert key.startswith("sem:")
    assert whohas.census({key}, os.getpid()) == {key: {me()}}


def test_a_semaphore_that_has_a_name_may_be_opened_by_any_process_of_the_program(other: Any) -> None:
    lock: Any = multiprocessing.get_context("spawn").Lock()
    key = whohas.semaphore_key(lock._semlock.handle, named=lock._semlock.name is not None)
    child = other()

    assert key is not None
    assert key.startswith("name:")
    found = whohas.census({key}, os.getpid())
    assert found is not None
    assert {me(), child} <= found[key]
    commands = [whohas._command(pid) for pid, _ in found[key]]
    assert not any("resource_tracker" in command for command in commands)


def test_without_the_first_process_nothing_is_known_of_a_semaphore_that_has_a_name() -> None:
    assert whohas.census({"name:00:01:2"}, 0) is None


def test_what_is_mapped_from_no_semaphore_has_no_key() -> None:
    assert whohas.semaphore_key(id(object()), named=False) is None
