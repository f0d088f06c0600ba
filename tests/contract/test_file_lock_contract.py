"""``flock`` and ``lockf`` under the agent do what the originals do, and what we note of them is what the kernel says."""

# ruff: noqa: ARG001  the agent is asked for its effect

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from eventually import until, wait_of

from concagent import core, fileholds, filewaits, state

fcntl = pytest.importorskip("fcntl")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's words are Linux's")

Answer = Callable[[Callable[[], Any]], tuple[str, str]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "locked"
    file.write_bytes(b"x" * 100)
    return file


@pytest.fixture(autouse=True)
def no_errors() -> Iterator[None]:
    yield
    assert not state.errors(), state.error_texts()


def holds_of(descriptor: int) -> list[fileholds.Held]:
    status = os.fstat(descriptor)
    return [held for held in fileholds.of_file((status.st_dev, status.st_ino)) if fileholds.is_in_force(held)]


@pytest.mark.parametrize("position", [0, 40])
@pytest.mark.parametrize(
    "arguments", [(), (10,), (10, 5), (0, 7), (10, 5, 1), (0, 0, 1), (-10, 50), (-30, 35, 1), (10, -20, 2), (0, 0, 2)]
)
def test_the_bytes_that_are_noted_are_those_that_the_kernel_has(
    agent: Any, path: Path, position: int, arguments: tuple[int, ...]
) -> None:
    with path.open("r+b") as file:
        file.seek(position)

        try:
            fcntl.lockf(file, fcntl.LOCK_EX, *arguments)
        except OSError:
            assert holds_of(file.fileno()) == []  # before the first byte
            return

        (lock,) = fileholds.locks_in(f"/proc/self/fdinfo/{file.fileno()}")
        assert [held.span for held in holds_of(file.fileno())] == [(lock.first, lock.last)]
        fcntl.lockf(file, fcntl.LOCK_UN, *arguments)
        assert holds_of(file.fileno()) == []


@pytest.mark.parametrize("length", [0, 10, -10])
def test_os_lockf_counts_from_where_the_file_is(agent: Any, path: Path, length: int) -> None:
    descriptor = os.open(path, os.O_RDWR)
    os.lseek(descriptor, 20, os.SEEK_SET)

    assert os.lockf(descriptor, os.F_LOCK, length) is None

    (lock,) = fileholds.locks_in(f"/proc/self/fdinfo/{descriptor}")
    assert [held.span for held in holds_of(descriptor)] == [(lock.first, lock.last)]
    os.close(descriptor)


CALLS: dict[str, Callable[[Any, Any, Any, Any], Any]] = {
    "flock": lambda flock, _lockf, _os_lockf, file: [flock(file, n) for n in (1, 2, 1 | 4, 8)],
    "flock by number": lambda flock, _lockf, _os_lockf, file: flock(file.fileno(), 2),
    "a bool": lambda flock, _lockf, _os_lockf, file: flock(file, True),
    "no file": lambda flock, _lockf, _os_lockf, _file: flock(None, 2),
    "a closed file": lambda flock, _lockf, _os_lockf, file: (file.close(), flock(file, 2)),
    "a wrong number": lambda flock, _lockf, _os_lockf, _file: flock(98765, 2),
    "a wrong operation": lambda flock, _lockf, _os_lockf, file: flock(file, 0),
    "lockf": lambda _flock, lockf, _os_lockf, file: [lockf(file, n) for n in (1, 2, 2 | 4, 8)],
    "lockf of nothing": lambda _flock, lockf, _os_lockf, file: lockf(file, 0),
    "lockf with all arguments": lambda _flock, lockf, _os_lockf, file: lockf(file, 2, 5, 5, 0),
    "lockf before the file": lambda _flock, lockf, _os_lockf, file: lockf(file, 2, 5, -5, 0),
    "lockf from nowhere": lambda _flock, lockf, _os_lockf, file: lockf(file, 2, 5, 5, 9),
    "lockf with a length that is none": lambda _flock, lockf, _os_lockf, file: lockf(file, 2, "x"),
    "lockf with a number that is none": lambda _flock, lockf, _os_lockf, file: lockf(file, 2, 2.5),
    "lockf with too many": lambda _flock, lockf, _os_lockf, file: lockf(file, 2, 1, 1, 1, 1),
    "lockf beyond all": lambda _flock, lockf, _os_lockf, file: lockf(file, 2, 1 << 70),
    "os.lockf": lambda _flock, _lockf, os_lockf, file: [os_lockf(file.fileno(), n, 0) for n in (1, 2, 3, 0)],
    "os.lockf of a file": lambda _flock, _lockf, os_lockf, file: os_lockf(file, 1, 0),
    "os.lockf by name": lambda _flock, _lockf, os_lockf, file: os_lockf(file.fileno(), command=1, length=0),
    "os.lockf without length": lambda _flock, _lockf, os_lockf, file: os_lockf(file.fileno(), 1),
    "os.lockf with a strange command": lambda _flock, _lockf, os_lockf, file: os_lockf(file.fileno(), 77, 0),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_calls_answer_as_the_originals_do(agent: Any, path: Path, call: Any, answer: Answer) -> None:
    ours = [fcntl.flock, fcntl.lockf, os.lockf]
    originals = [function.__wrapped__ for function in ours]  # type: ignore[attr-defined]

    answers = []
    for functions in (ours, originals):
        with path.open("r+b") as file:
            answers.append(answer(lambda functions=functions, file=file: call(*functions, file)))  # type: ignore[misc]

    assert answers[0] == answers[1]


def test_a_signal_handler_that_returns_lets_the_wait_go_on(agent: Any, path: Path) -> None:
    first, second = path.open("r+b"), path.open("r+b")
    fcntl.flock(first, fcntl.LOCK_EX)
    rings = []

    def ring(*_: Any) -> None:
        rings.append(core.current_record().waiting() is not None)
        if len(rings) == 3:
            fcntl.flock(first, fcntl.LOCK_UN)

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    try:
        fcntl.flock(second, fcntl.LOCK_EX)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert rings[:3] == [True] * 3
    assert core.current_record().waiting() is None
    assert [held.descriptor for held in holds_of(second.fileno())] == [second.fileno()]
    first.close()
    second.close()


def test_a_signal_handler_that_raises_ends_the_wait(agent: Any, path: Path) -> None:
    first, second = path.open("r+b"), path.open("r+b")
    fcntl.flock(first, fcntl.LOCK_EX)
    timed = []

    def ring(*_: Any) -> None:
        wait = core.current_record().waiting()
        timed.append(wait is not None and wait.timed)
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(TimeoutError):
            fcntl.flock(second, fcntl.LOCK_EX)
    finally:
        signal.signal(signal.SIGALRM, before)

    assert timed == [True]  # an alarm was set: the only time limit that there is
    assert core.current_record().waiting() is None
    assert [held.descriptor for held in holds_of(first.fileno())] == [first.fileno()]
    first.close()
    second.close()


def test_a_wait_without_an_alarm_has_no_time_limit(agent: Any, path: Path) -> None:
    first, second = path.open("r+b"), path.open("r+b")
    fcntl.flock(first, fcntl.LOCK_EX)
    thread = threading.Thread(target=fcntl.flock, args=(second, fcntl.LOCK_EX), daemon=True)
    thread.start()

    wait = until(lambda: wait_of(thread))

    assert not wait.timed
    assert wait.resource.kind == "file-lock"
    assert list(filewaits.waits()) == [core.record_of_ident(thread.ident).serial]
    fcntl.flock(first, fcntl.LOCK_UN)
    thread.join()
    assert filewaits.waits() == {}
    first.close()
    second.close()


def test_a_posix_lock_is_no_hold_after_any_descriptor_of_the_file_was_closed(agent: Any, path: Path) -> None:
    with path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        assert len(holds_of(file.fileno())) == 1

        path.open("rb").close()

        assert holds_of(file.fileno()) == []


@pytest.mark.parametrize("again", [True, False])
def test_bytes_that_another_thread_has_locked_too_are_not_its_alone(agent: Any, path: Path, again: bool) -> None:
    """An unlock of either thread is one of both; with one file object the second hold even takes the place of the first."""
    first, second = path.open("r+b"), path.open("r+b")
    hold = threading.Event()
    thread = threading.Thread(target=lambda: (fcntl.lockf(first, fcntl.LOCK_EX), hold.wait()))
    thread.start()
    until(lambda: holds_of(first.fileno()))

    mine = first if again else second
    fcntl.lockf(mine, fcntl.LOCK_EX, *(() if again else (10,)))

    (held,) = holds_of(first.fileno())  # the kernel makes one of two
    assert (held.hold[0] is core.current_record()) is again
    assert fileholds.others_have(held)
    hold.set()
    thread.join()
    first.close()
    second.close()


def test_a_lock_of_another_mode_replaces_the_first(agent: Any, path: Path) -> None:
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        fcntl.flock(file, fcntl.LOCK_EX)

        assert [held.shared for held in holds_of(file.fileno())] == [False]


def test_what_was_locked_before_a_fork_is_no_proof_within_the_process_and_stays_known(agent: Any, path: Path) -> None:
    first, second = path.open("r+b"), path.open("r+b")
    fcntl.flock(first, fcntl.LOCK_EX)

    pid = os.fork()
    if pid == 0:
        os._exit(len(holds_of(first.fileno())))

    assert os.waitpid(pid, 0)[1] == 0  # the child has nothing of its own
    assert [held.inherited for held in holds_of(first.fileno())] == [True]
    wait = filewaits.wanted(second.fileno(), False)
    assert wait.blocker() is None
    assert [held.descriptor for held in wait.blockers()] == [first.fileno()]
    first.close()
    second.close()
