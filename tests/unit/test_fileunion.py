"""Who is in whose way at locks on files, over all processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from concagent import fileunion
from concagent.fileholds import LAST, Held
from concagent.fileunion import FileHold, Want

ONE, TWO, THREE = (1, 10), (2, 10), (3, 10)
A, B = 100, 200  # files


def hold(process: tuple[int, int], holder: int, file: int, serial: int = 1, **fields: Any) -> FileHold:
    known = {"since_ns": 0, "site": None, "habit": "bare", "shared": False, "span": None, "descriptor": 3}
    return FileHold(process, serial, file, holder, **{**known, **fields})


def want(process: tuple[int, int], actor: int, file: int, **fields: Any) -> Want:
    return Want(process, actor, file, **{"shared": False, "span": None, "local": [], **fields})


def test_the_holder_of_a_file_is_in_the_way_of_another_process() -> None:
    held = hold(TWO, 20, A)

    assert fileunion.choose([want(ONE, 10, A)], [held, hold(TWO, 20, B)], {}) == {A: held}


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ({"shared": True}, {"shared": True}),
        ({"span": [0, 9]}, {"span": [10, 19]}),
        ({"span": [30, LAST]}, {"span": [0, 29]}),
        ({"span": [0, 9], "shared": True}, {"span": [0, 9], "shared": True}),
    ],
)
def test_shared_locks_and_different_bytes_are_in_nobodys_way(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert fileunion.choose([want(ONE, 10, A, **mine)], [hold(TWO, 20, A, **theirs)], {}) == {}


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ({"shared": True}, {}),
        ({}, {"shared": True}),
        ({"span": [0, 9]}, {"span": [9, 12]}),
        ({"span": [5, 5]}, {"span": [0, LAST]}),
    ],
)
def test_other_modes_and_common_bytes_are_in_the_way(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert list(fileunion.choose([want(ONE, 10, A, **mine)], [hold(TWO, 20, A, **theirs)], {})) == [A]


def test_within_a_process_only_what_that_process_says_is_in_the_way() -> None:
    own, other = hold(ONE, 11, A, 5), hold(ONE, 12, A, 6)

    assert fileunion.choose([want(ONE, 10, A)], [own, other], {}) == {}
    assert fileunion.choose([want(ONE, 10, A, local=[6])], [own, other], {}) == {A: other}


def test_of_several_holders_the_one_that_leads_back_stands_for_all() -> None:
    """Each of them is enough; the first only waits for something else."""
    first, second = hold(TWO, 20, A, shared=True), hold(THREE, 30, A, shared=True)

    chosen = fileunion.choose([want(ONE, 10, A)], [first, second], {20: 99, 30: 10})

    assert chosen == {A: second}


def test_the_way_back_may_lead_through_other_files() -> None:
    wants = [want(ONE, 10, A), want(TWO, 20, B)]
    idle, ring, back = hold(THREE, 30, A, shared=True), hold(TWO, 20, A, shared=True), hold(ONE, 10, B)

    assert fileunion.choose(wants, [idle, ring, back], {}) == {A: ring, B: back}


def test_without_a_way_back_the_first_holder_is_shown() -> None:
    first, second = hold(TWO, 20, A, shared=True), hold(THREE, 30, A, shared=True)

    assert fileunion.choose([want(ONE, 10, A)], [first, second], {20: 99, 99: 98}) == {A: first}


@pytest.mark.parametrize(
    ("held", "wanted", "expected"),
    [
        ((False, None), (False, None), True),
        ((True, None), (True, None), False),
        ((False, None), (False, (0, LAST)), False),
        ((False, (0, 9)), (False, (9, 9)), True),
        ((True, (0, 9)), (False, (10, 20)), False),
    ],
)
def test_flock_and_lockf_do_not_know_of_each_other(held: Any, wanted: Any, expected: bool) -> None:
    assert Held(None, (1, 2), 3, *held, 0, 1).is_in_way_of(*wanted) is expected


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux's /proc")
class TestSharers:
    def test_a_child_that_was_given_the_descriptor_shares_the_opening(self, tmp_path: Path) -> None:
        import fcntl

        with (tmp_path / "a").open("w") as file, (tmp_path / "a").open("r") as other:
            fcntl.flock(file, fcntl.LOCK_EX)
            numbers = [file.fileno()]
            child = subprocess.Popen(
                [sys.executable, "-S", "-c", "print(1, flush=True); input()"],
                pass_fds=numbers,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            assert child.stdout is not None
            child.stdout.readline()

            sharers = fileunion.sharers(os.getpid(), file.fileno())
            of_other = fileunion.sharers(os.getpid(), other.fileno())
            child.communicate()

            assert (sharers, of_other) == ({child.pid}, set())
            assert fileunion.sharers(os.getpid(), file.fileno()) == set()

    def test_another_opening_with_a_shared_lock_of_its_own_is_another(self, tmp_path: Path) -> None:
        import fcntl

        code = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_SH); print(1, flush=True); input()"
        path = tmp_path / "a"
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            child = subprocess.Popen(
                [sys.executable, "-S", "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert child.stdout is not None
            child.stdout.readline()

            sharers = fileunion.sharers(os.getpid(), file.fileno())
            child.communicate()

            assert sharers == set()
