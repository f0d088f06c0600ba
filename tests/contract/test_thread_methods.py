"""``Thread.start`` and ``join`` under the agent: what they do is the original's, what is known afterwards is ours.

Both twins are asked: the hooks of ``hooks/threads.py``, and what the C core puts in their place.
"""

# ruff: noqa: ARG001, ARG005  fixtures are asked for their effect; a call uses one method or the other

from __future__ import annotations

import functools
import inspect
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from concagent import _real, core, state
from concagent.hooks import threads

ORIGINAL_START = threads._thread_start
ORIGINAL_JOIN = threads._thread_join


@pytest.fixture(params=["python", "c"] if core.NAME == "c" else ["python"])
def twin(request: pytest.FixtureRequest, agent: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Install the agent, with the methods of each twin that there is."""
    if request.param == "python":
        monkeypatch.setattr(threading.Thread, "start", threads.start)
        monkeypatch.setattr(threading.Thread, "join", threads.join)
    return str(request.param)


@pytest.fixture
def gate() -> Iterator[Any]:
    """A lock that the agent does not see, held until the test is over."""
    lock = _real.allocate_lock()
    lock.acquire()
    yield lock
    if lock.locked():
        lock.release()


def behind(gate: Any, **options: Any) -> threading.Thread:
    """Start a thread that ends when the gate opens."""
    thread = threading.Thread(target=lambda: gate.acquire() and gate.release(), **options)
    thread.start()
    return thread


def eventually(condition: Callable[[], Any]) -> Any:
    """Return what a condition answers, once it is true."""
    end = time.monotonic() + 20
    while not (answer := condition()) and time.monotonic() < end:
        time.sleep(0.001)
    return answer


def test_the_cell_knows_where_the_thread_was_started(twin: str) -> None:
    thread = threading.Thread(target=int)
    line = sys._getframe().f_lineno + 1
    thread.start()
    thread.join()

    cell = state.thread_cell(thread)
    assert cell.code is sys._getframe().f_code
    lines = {number for start, end, number in cell.code.co_lines() if start <= cell.lasti < end}
    assert lines == {line}
    assert (cell.kind, cell.name, cell.reference()) == ("thread", None, thread)
    assert cell.serial > 0
    assert state.thread_cell(thread) is cell


def test_two_threads_have_two_cells_that_keep_neither_alive(twin: str) -> None:
    first, second = threading.Thread(target=int), threading.Thread(target=int)
    for thread in (first, second):
        thread.start()
        thread.join()
    cells = [state.thread_cell(first), state.thread_cell(second)]
    del first, second, thread

    assert cells[0].serial != cells[1].serial
    assert [cell.reference() for cell in cells] == [None, None]


def test_a_thread_has_a_record_when_start_returns(twin: str, gate: Any) -> None:
    thread = behind(gate, name="worker", daemon=True)

    record = core.record_of_ident(thread.ident)

    assert (record.name, record.daemon, record.thread()) == ("worker", True, thread)
    assert state.thread_cell(thread).record() is record
    gate.release()
    thread.join()
    assert state.thread_cell(thread).record() is None


def test_a_class_that_names_its_threads_itself_is_asked(twin: str, gate: Any) -> None:
    class Named(threading.Thread):
        @property
        def name(self) -> str:  # type: ignore[override]
            return "asked"

        @name.setter
        def name(self, value: str) -> None:
            pass

        def run(self) -> None:
            gate.acquire()
            gate.release()

    thread = Named()
    thread.start()

    assert core.record_of_ident(thread.ident).name == "asked"
    gate.release()
    thread.join()


@pytest.mark.parametrize(
    ("join", "timed"),
    [
        (lambda thread: thread.join(), False),
        (lambda thread: thread.join(None), False),
        (lambda thread: thread.join(timeout=None), False),
        (lambda thread: thread.join(60), True),
        (lambda thread: thread.join(timeout=60.0), True),
    ],
)
def test_a_join_is_published_while_it_lasts(twin: str, gate: Any, join: Any, timed: bool) -> None:
    thread = behind(gate)
    joiner = threading.Thread(target=join, args=(thread,))
    joiner.start()
    record = core.record_of_ident(joiner.ident)

    (wait,) = eventually(lambda: list(record.waits))
    epoch = record.epoch
    gate.release()
    joiner.join()
    thread.join()

    assert wait.resource is state.thread_cell(thread)
    assert wait.timed is timed
    assert wait.code.co_name == "<lambda>"
    assert list(record.waits) == []
    assert record.epoch > epoch


@pytest.mark.parametrize(
    "call",
    [
        lambda start, join: join(threading.Thread(target=int)),
        lambda start, join: join(threading.current_thread()),
        lambda start, join: join(),
        lambda start, join: join(None),
        lambda start, join: join(1, 2, 3),
        lambda start, join: start(),
        lambda start, join: start(None),
        lambda start, join: start(threading.Thread.__new__(threading.Thread)),
        lambda start, join: join(threading.Thread.__new__(threading.Thread)),
        lambda start, join: start(threading.current_thread()),
        lambda start, join: start(threading.Thread(target=int), 1),
    ],
)
def test_mistakes_are_answered_as_by_the_original(twin: str, call: Any, answer: Any) -> None:
    ours = answer(lambda: call(threading.Thread.start, threading.Thread.join))

    assert ours == answer(lambda: call(ORIGINAL_START, ORIGINAL_JOIN))
    assert ours[0] != "returns"
    assert list(core.current_record().waits) == []


def test_a_thread_that_ended_is_joined_at_once_and_again(twin: str) -> None:
    thread = threading.Thread(target=int)
    thread.start()

    assert [thread.join(), thread.join(), thread.join(0), thread.join(timeout=-1)] == [None] * 4
    assert not thread.is_alive()


def test_a_join_that_gives_up_leaves_no_wait_behind(twin: str, gate: Any) -> None:
    thread = behind(gate)

    for timeout in (0, 0.01, -1):
        thread.join(timeout)

    assert thread.is_alive()
    assert list(core.current_record().waits) == []
    gate.release()
    thread.join()


def test_a_join_that_a_signal_handler_ends_leaves_no_wait_behind(twin: str, gate: Any) -> None:
    class Alarm(Exception):  # noqa: N818
        pass

    def raise_alarm(*_: Any) -> None:
        raise Alarm

    thread = behind(gate)
    before = signal.signal(signal.SIGALRM, raise_alarm)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Alarm):
            thread.join()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert list(core.current_record().waits) == []
    gate.release()
    thread.join()


def test_who_waits_for_the_event_of_a_thread_before_it_starts_is_woken(twin: str) -> None:
    thread = threading.Thread(target=int)
    woken: list[bool] = []
    waiters: Any = thread._started._cond._waiters  # type: ignore[attr-defined]
    waiter = threading.Thread(target=lambda: woken.append(thread._started.wait(60)))  # type: ignore[attr-defined]
    waiter.start()
    eventually(lambda: waiters)

    thread.start()
    waiter.join()
    thread.join()

    assert woken == [True]


def test_the_event_of_a_thread_that_runs_is_set_for_everybody(twin: str) -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    started: Any = thread._started  # type: ignore[attr-defined]

    assert started.is_set()
    assert [started.wait(), started.wait(0), started.wait(1.5)] == [True] * 3


def test_the_event_of_a_thread_that_was_started_has_its_condition(twin: str) -> None:
    many = [threading.Thread(target=int) for _ in range(200)]
    for thread in many:
        thread.start()
    for thread in many:
        thread.join()

    kinds = {type(thread._started._cond) for thread in many}  # type: ignore[attr-defined]
    assert all(issubclass(kind, _real.Condition) for kind in kinds)
    if twin == "c":
        assert kinds == {_real.Condition}


def test_a_thread_that_cannot_be_started_says_so_and_leaves_nothing_behind(
    twin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("can't start new thread")

    name = "_start_joinable_thread" if hasattr(threading, "_start_joinable_thread") else "_start_new_thread"
    monkeypatch.setattr(threading, name, fail)
    thread = threading.Thread(target=int)

    with pytest.raises(RuntimeError, match="can't start new thread"):
        thread.start()

    assert threading._limbo == {}  # type: ignore[attr-defined]
    monkeypatch.undo()
    thread.start()
    thread.join()


def test_a_thousand_threads_start_and_end_and_leave_nothing(twin: str) -> None:
    ran: list[int] = []

    for turn in range(10):
        many = [threading.Thread(target=ran.append, args=(number,)) for number in range(100)]
        for thread in many:
            thread.start()
        for thread in many:
            thread.join()
        assert len(ran) == 100 * (turn + 1)

    assert eventually(lambda: len(core.records()) < 50)


def test_threads_that_threads_start_and_join_all_end(twin: str) -> None:
    ended: list[int] = []

    def nest(depth: int) -> None:
        if depth:
            inner = [threading.Thread(target=nest, args=(depth - 1,)) for _ in range(2)]
            for thread in inner:
                thread.start()
            for thread in inner:
                thread.join()
        ended.append(depth)

    nest(5)

    assert len(ended) == 63


def test_derived_methods_reach_the_original(twin: str) -> None:
    calls: list[str] = []

    class Loud(threading.Thread):
        def start(self) -> None:
            calls.append("start")
            super().start()

        def join(self, timeout: float | None = None) -> None:
            calls.append("join")
            super().join(timeout)

    thread = Loud(target=int)
    thread.start()
    thread.join()

    assert calls == ["start", "join"]
    assert state.thread_cell(thread).code.co_name == "start"


def test_the_methods_look_like_the_originals(twin: str) -> None:
    for ours, original in ((threading.Thread.start, ORIGINAL_START), (threading.Thread.join, ORIGINAL_JOIN)):
        assert inspect.signature(ours) == inspect.signature(original)
        assert (ours.__name__, ours.__qualname__, ours.__doc__) == (
            original.__name__,
            original.__qualname__,
            original.__doc__,
        )
        assert ours.__wrapped__ is original  # type: ignore[attr-defined]
        assert functools.partial(ours).func is ours
    assert threading.Thread(target=int).start.__self__.is_alive() is False  # type: ignore[attr-defined]
