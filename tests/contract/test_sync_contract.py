"""Waits on what is built on conditions: seen while they last, gone afterwards, whatever ended them."""

# ruff: noqa: ARG001  the agent is asked for its effect

from __future__ import annotations

import concurrent.futures
import contextlib
import queue
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from eventually import until, wait_of
from storms import Alarms

import concagent
from concagent import core, state


def _blocked(call: Callable[[], Any]) -> tuple[threading.Thread, Any]:
    """Return a thread that is blocked in a call, and its wait."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread, until(lambda: wait_of(thread))


def _condition() -> tuple[Any, Callable[[], Any], Callable[[], Any]]:
    condition = threading.Condition()

    def wait() -> None:
        with condition:
            condition.wait()

    def notify() -> None:
        with condition:
            condition.notify()

    return condition, wait, notify


def _event() -> tuple[Any, Callable[[], Any], Callable[[], Any]]:
    event = threading.Event()
    return event, event.wait, event.set


def _semaphore() -> tuple[Any, Callable[[], Any], Callable[[], Any]]:
    semaphore = threading.Semaphore(0)
    return semaphore, semaphore.acquire, semaphore.release


def _bounded() -> tuple[Any, Callable[[], Any], Callable[[], Any]]:
    semaphore = threading.BoundedSemaphore(1)
    semaphore.acquire()
    return semaphore, semaphore.__enter__, semaphore.release


def _barrier() -> tuple[Any, Callable[[], Any], Callable[[], Any]]:
    barrier = threading.Barrier(2)
    return barrier, barrier.wait, barrier.wait


def _queue_get() -> tuple[Any, Callable[[], Any], Callable[[], Any]]:
    tasks: queue.Queue[int] = queue.Queue()
    return tasks, tasks.get, lambda: tasks.put(1)


def _queue_put() -> tuple[Any, Callable[[], Any], Callable[[], Any]]:
    tasks: queue.Queue[int] = queue.Queue(1)
    tasks.put(1)
    return tasks, lambda: tasks.put(2), tasks.get


def _queue_join() -> tuple[Any, Callable[[], Any], Callable[[], Any]]:
    tasks: queue.Queue[int] = queue.Queue()
    tasks.put(1)
    return tasks, tasks.join, tasks.task_done


def _join() -> tuple[Any, Callable[[], Any], Callable[[], Any]]:
    event = threading.Event()
    worker = threading.Thread(target=event.wait)
    worker.start()
    return worker, worker.join, event.set


@pytest.mark.parametrize(
    ("make", "kind"),
    [(_condition, "condition"), (_event, "event"), (_semaphore, "semaphore"), (_bounded, "semaphore"),
     (_barrier, "barrier"), (_queue_get, "queue"), (_queue_put, "queue"), (_queue_join, "queue"), (_join, "thread")],
    ids=lambda value: getattr(value, "__name__", None),
)  # fmt: skip
def test_a_wait_says_for_what_and_from_where_and_ends(agent: Any, make: Any, kind: str) -> None:
    target, wait, end = make()

    thread, published = _blocked(lambda: wait())
    resource = published.resource
    end()
    thread.join(20)

    assert resource.kind == kind
    assert resource.reference() is target
    assert not published.timed
    assert published.code.co_filename == __file__
    assert core.record_of_ident(thread.ident) is None or wait_of(thread) is None
    assert state.errors() == ()


@pytest.mark.parametrize("make", [_condition, _event, _semaphore, _queue_get])
def test_a_wait_with_a_timeout_is_timed(agent: Any, make: Any) -> None:
    target, _, end = make()

    def wait() -> Any:
        if isinstance(target, threading.Condition):
            with target:
                return target.wait(20)
        take = getattr(target, "wait", None) or getattr(target, "acquire", None) or target.get
        return take(timeout=20)

    thread, published = _blocked(wait)
    timed = published.timed
    end()
    thread.join(20)

    assert timed


class _AlarmError(Exception):
    """Raised by a signal handler."""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
@pytest.mark.parametrize("make", [_condition, _event, _semaphore, _queue_get, _join], ids=lambda make: make.__name__)
def test_an_interrupted_wait_is_over(agent: Any, make: Any) -> None:
    def handler(_signal: int, _frame: Any) -> None:
        raise _AlarmError

    before = signal.signal(signal.SIGALRM, handler)
    try:
        for _ in range(20):
            _target, wait, end = make()
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            with pytest.raises(_AlarmError):
                wait()
            end()
            assert core.current_record().waiting() is None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_permits_have_holders_until_they_are_given_back(agent: Any) -> None:
    semaphore = threading.Semaphore(2)

    with semaphore, semaphore:
        held = dict(state.existing_cell(semaphore).holders)
    left = dict(state.existing_cell(semaphore).holders)

    assert held == {core.current_record(): 2}
    assert left == {}
    assert not state.existing_cell(semaphore).foreign


def test_a_permit_given_back_by_another_thread_makes_a_signal(agent: Any) -> None:
    semaphore = threading.Semaphore(0)

    semaphore.release()

    assert state.existing_cell(semaphore).foreign


def test_a_condition_waiters_private_lock_is_no_lock_to_report(agent: Any) -> None:
    _condition_object, wait, end = _condition()

    thread, published = _blocked(wait)
    kind = published.resource.kind
    end()
    thread.join(20)

    assert kind == "condition"


def test_a_method_kept_by_the_program_works_after_uninstall() -> None:
    concagent.install(stderr=False, log=False, report_signal="off", socket=False)
    try:
        semaphore, condition = threading.Semaphore(1), threading.Condition()
        take, give, wait = semaphore.acquire, semaphore.release, condition.wait
        take()
        give()
    finally:
        concagent.uninstall()

    assert take()
    assert not take(False)
    give()
    with condition:
        assert not wait(0)
    assert core.current_record().waiting() is None


# ---------------------------------------------------------------- alarms in the midst of hooks


def _interruptible() -> dict[str, Callable[[], Any]]:
    condition, event, semaphore = threading.Condition(), threading.Event(), threading.Semaphore(0)
    full, simple, items = queue.Queue(1), queue.SimpleQueue(), queue.Queue()
    full.put(0)
    future: concurrent.futures.Future[None] = concurrent.futures.Future()

    def wait() -> None:
        with condition:
            condition.wait(0.00001)

    def put() -> None:
        with contextlib.suppress(queue.Full):
            full.put(1, timeout=0.00001)

    def get(jobs: Any) -> Callable[[], None]:
        def call() -> None:
            with contextlib.suppress(queue.Empty):
                jobs.get(timeout=0.00001)

        return call

    def result() -> None:
        with contextlib.suppress(concurrent.futures.TimeoutError):
            future.result(timeout=0.00001)

    return {
        "condition": wait,
        "event": lambda: event.wait(0.00001),
        "semaphore": lambda: semaphore.acquire(timeout=0.00001),
        "put": put,
        "get": get(items),
        "get of a simple queue": get(simple),
        "result": result,
    }


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
@pytest.mark.parametrize("call", _interruptible())
@pytest.mark.usefixtures("agent")
def test_what_a_handler_raises_in_the_midst_of_a_hook_is_not_lost(call: str) -> None:
    deadline = time.monotonic() + 1.5
    with Alarms(0.0003) as storm:
        while time.monotonic() < deadline:
            # New ones each time: the originals themselves lose or keep their lock if they are interrupted in a bad moment.
            with contextlib.suppress(RuntimeError):
                storm.interrupt(_interruptible()[call])

    assert storm.alarms > 50
    assert storm.lost == 0
    assert core.current_record().waiting() is None
