"""The lock that a condition's waiter sleeps on: a plain lock in all that it does, and it remembers who released it."""

# ruff: noqa: ARG001  the twin records for its effect

from __future__ import annotations

import _thread
import signal
from collections.abc import Callable
from typing import Any

import pytest
from eventually import until

from concagent import _real


def _in_thread(call: Callable[[], Any]) -> Callable[[], Any]:
    """Run a call on a raw thread; what is returned waits for its result."""
    done, results = _real.allocate_lock(), []
    done.acquire()

    def run() -> None:
        try:
            results.append(call())
        finally:
            done.release()

    _thread.start_new_thread(run, ())

    def result() -> Any:
        assert done.acquire(timeout=20)
        done.release()
        return results[0]

    return result


USES: list[tuple[str, Callable[[Any], Any]]] = [
    ("acquire", lambda lock: lock.acquire()),
    ("release", lambda lock: lock.release()),
    ("acquire twice", lambda lock: (lock.acquire(), lock.acquire(False), lock.acquire(True, 0), lock.acquire(timeout=0.001))),
    ("with", lambda lock: [lock.locked() for _ in [0] if lock.__enter__()] + [lock.__exit__(None, None, None), lock.locked()]),
    ("negative", lambda lock: lock.acquire(True, -2)),
    ("not blocking with a limit", lambda lock: lock.acquire(False, 1)),
    ("keyword", lambda lock: lock.acquire(blocking=False)),
    ("unknown", lambda lock: lock.acquire(fast=True)),
    ("fork", lambda lock: (lock.acquire(), lock._at_fork_reinit(), lock.locked())),
    ("repr", repr),
]  # fmt: skip


@pytest.mark.parametrize("use", [use for _, use in USES], ids=[name for name, _ in USES])
def test_a_waiters_lock_answers_as_the_original(twin: Any, answer: Any, use: Callable[[Any], Any]) -> None:
    original, ours = _real.allocate_lock(), twin.waiter_lock()

    assert answer(lambda: use(ours)) == answer(lambda: use(original))


def test_who_releases_is_found_by_who_was_asleep(twin: Any, recorder: Any) -> None:
    lock = twin.waiter_lock()
    lock.acquire()

    def sleep() -> Any:
        assert twin.current_record().waker is None
        lock.acquire()
        return twin.current_record().waker

    woken = _in_thread(sleep)
    me = twin.current_record()
    until(lambda: _is_asleep_in(sleep))
    lock.release()

    assert woken() is me


def _is_asleep_in(function: Any) -> bool:
    frames: list[Any] = list(_real.current_frames().values())
    return any(frame.f_code is function.__code__ or frame.f_back.f_code is function.__code__ for frame in frames)


def test_who_releases_before_the_other_sleeps_is_found_as_well(twin: Any, recorder: Any) -> None:
    lock = twin.waiter_lock()
    lock.acquire()
    other = _in_thread(lambda: (twin.current_record(), lock.release())[0])()
    twin.current_record()

    lock.acquire()

    assert twin.current_record().waker is other


def test_an_own_release_is_nobodys_signal(twin: Any, recorder: Any) -> None:
    lock = twin.waiter_lock()

    for _ in range(2):
        lock.acquire()
        lock.release()
    lock.acquire()

    assert twin.current_record().waker is None


def test_the_next_such_lock_forgets_the_one_before(twin: Any, recorder: Any) -> None:
    lock = twin.waiter_lock()
    twin.current_record()
    lock.acquire()
    _in_thread(lambda: (twin.current_record(), lock.release()))()
    lock.acquire()
    assert twin.current_record().waker is not None

    twin.waiter_lock().acquire()

    assert twin.current_record().waker is None


def test_nobody_is_remembered_while_nothing_is_recorded(twin: Any) -> None:
    lock = twin.waiter_lock()
    lock.acquire()
    _in_thread(lambda: (twin.current_record(), lock.release()))()

    lock.acquire()

    assert twin.current_record().waker is None


def test_a_wait_that_runs_out_leaves_the_lock_to_who_holds_it(twin: Any) -> None:
    lock = twin.waiter_lock()
    lock.acquire()

    assert not lock.acquire(True, 0.01)
    assert lock.locked()
    lock.release()
    assert lock.acquire(True, 0.01)


def test_no_wake_up_is_lost_among_many_sleepers(twin: Any) -> None:
    lock, inside, count = twin.waiter_lock(), [0], 300

    def work() -> bool:
        for _ in range(count):
            with lock:
                inside[0] += 1
            if lock.acquire(timeout=0.0001):
                lock.release()
        return True

    workers = [_in_thread(work) for _ in range(8)]

    assert all(result() for result in workers)
    assert inside[0] == 8 * count
    assert not lock.locked()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no alarm on this system")
def test_a_signals_handler_runs_in_the_sleep_and_may_end_it(twin: Any) -> None:
    class _StopError(Exception):
        pass

    seen = []

    def handler(*_: object) -> None:
        seen.append(1)
        if len(seen) == 2:
            raise _StopError

    lock = twin.waiter_lock()
    lock.acquire()
    former = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        with pytest.raises(_StopError):
            lock.acquire()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)

    assert len(seen) == 2
    lock.release()
    assert lock.acquire(timeout=1)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no alarm on this system")
def test_a_handler_may_release_what_it_interrupted(twin: Any) -> None:
    lock = twin.waiter_lock()
    lock.acquire()
    former = signal.signal(signal.SIGALRM, lambda *_: lock.release())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        taken = lock.acquire(timeout=20)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)

    assert taken
