"""Who ends waits is learned by whom he woke, a queue's conditions apart; and what a picture says of those that are waited for."""

# ruff: noqa: ARG001  the agent is asked for its effect

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest
from eventually import until, wait_of

import concagent
from concagent import core, snapshots, state


def _woken(wait: Callable[[], Any], signal: Callable[[], Any], *, before: Callable[[], Any] = lambda: None) -> Any:
    """Let one thread wait and another one end that; return (cell of the wait, record of the signaller)."""
    told: list[Any] = []

    def end() -> None:
        told.append(core.current_record())
        signal()

    before()
    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    cell = until(lambda: wait_of(waiter)).resource
    other = threading.Thread(target=end, name="signaller")
    other.start()
    other.join(20)
    waiter.join(20)
    assert not waiter.is_alive()
    return cell, told[0]


def _under(condition: Any, call: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        with condition:
            call()

    return run


def _cases() -> dict[str, Callable[[], Any]]:
    condition, event, semaphore, barrier = (
        threading.Condition(), threading.Event(), threading.Semaphore(0), threading.Barrier(2),
    )  # fmt: skip
    empty: queue.Queue[int] = queue.LifoQueue()
    full: queue.Queue[int] = queue.PriorityQueue(1)
    tasks: queue.Queue[int] = queue.Queue()
    full.put(1)
    tasks.put(1)
    return {
        "condition": lambda: _woken(_under(condition, condition.wait), _under(condition, condition.notify_all)),
        "event": lambda: _woken(event.wait, event.set),
        "semaphore": lambda: _woken(semaphore.acquire, semaphore.release),
        "barrier": lambda: _woken(barrier.wait, barrier.wait),
        "get": lambda: _woken(empty.get, lambda: empty.put(1)),
        "put": lambda: _woken(lambda: full.put(2), full.get),
        "join": lambda: _woken(tasks.join, tasks.task_done),
    }


@pytest.mark.parametrize("case", ["condition", "event", "semaphore", "barrier", "get", "put", "join"])
def test_who_ended_a_wait_is_known_afterwards(agent: Any, case: str) -> None:
    cell, signaller = _cases()[case]()

    assert cell.signallers == {signaller: 1}
    assert state.errors() == ()


def test_who_puts_is_no_signaller_of_who_puts(agent: Any) -> None:
    tasks: queue.Queue[int] = queue.Queue(1)

    getters, producer = _woken(tasks.get, lambda: tasks.put(1))
    tasks.put(1)
    putters, consumer = _woken(lambda: tasks.put(2), tasks.get)

    assert getters is not putters
    assert getters.signallers == {producer: 1}
    assert putters.signallers == {consumer: 1}


def test_a_wait_that_ran_out_taught_nothing(agent: Any) -> None:
    event = threading.Event()

    assert not event.wait(0.001)

    assert state.existing_cell(event).signallers == {}


def test_a_wake_up_by_one_is_not_counted_for_who_waits_elsewhere(agent: Any) -> None:
    # The condition's lock is awaited too, after the wake-up, and is let go by somebody else.
    condition = threading.Condition()

    cell, signaller = _woken(_under(condition, condition.wait), _under(condition, condition.notify))
    again, other = _woken(_under(condition, lambda: condition.wait(20)), _under(condition, condition.notify))

    assert again is cell
    assert cell.signallers == {signaller: 1, other: 1}


def test_signallers_are_bounded_and_those_that_ended_go_first(agent: Any) -> None:
    class Record:
        def __init__(self, ended: bool) -> None:
            self.ended = ended

    cell = state.SyncCell("event", threading.Event())
    living = [Record(False) for _ in range(3)]

    for record in (*living, *(Record(True) for _ in range(1000)), living[0]):
        cell.learn(record)

    assert len(cell.signallers) <= state.SIGNALLER_LIMIT
    assert cell.signallers[living[0]] == 2
    assert set(living) <= set(cell.signallers)


def test_with_too_many_that_live_nobody_in_particular_is_waited_for(agent: Any) -> None:
    class Record:
        ended = False

    cell = state.SyncCell("event", threading.Event())

    for _ in range(state.SIGNALLER_LIMIT + 1):
        cell.learn(Record())

    assert cell.signallers == {}


def _detail_of(wait: Callable[[], Any], end: Callable[[], Any]) -> tuple[Any, Any]:
    """Return (detail, name) of what a thread waits for, as a picture has them."""
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    published = until(lambda: wait_of(thread))
    picture = snapshots.take()
    end()
    thread.join(20)
    resource = next(r for r in picture.resources if r.serial == published.resource.serial)
    return resource.detail, resource.name


def test_an_event_is_not_set(agent: Any) -> None:
    event = threading.Event()

    assert _detail_of(event.wait, event.set)[0] == "not set"


@pytest.mark.parametrize(("parties", "words"), [(2, "1 of 2 is missing"), (4, "3 of 4 are missing")])
def test_a_barrier_says_how_many_are_missing(agent: Any, parties: int, words: str) -> None:
    barrier = threading.Barrier(parties)

    def wait() -> None:
        with pytest.raises(threading.BrokenBarrierError):
            barrier.wait()

    assert _detail_of(wait, barrier.abort)[0] == words


def test_a_semaphore_says_how_many_permits_are_free_of_how_many_where_it_is_known(agent: Any) -> None:
    bounded, plain, signal = threading.BoundedSemaphore(2), threading.Semaphore(2), threading.Semaphore(0)
    for semaphore in (bounded, plain):
        semaphore.acquire()
        semaphore.acquire()

    assert _detail_of(bounded.acquire, bounded.release)[0] == "0 of 2 permits free"
    assert _detail_of(plain.acquire, plain.release)[0] == "0 of 2 permits free"
    assert _detail_of(signal.acquire, signal.release)[0] == "0 permits free"


class _Bag(queue.Queue):  # type: ignore[type-arg]
    """A queue that keeps its items elsewhere."""

    def _init(self, _maxsize: int) -> None:
        self.bag: set[Any] = set()

    def _qsize(self) -> int:
        return len(self.bag)

    def _put(self, item: Any) -> None:
        self.bag.add(item)

    def _get(self) -> Any:
        return self.bag.pop()


@pytest.mark.parametrize("made", [queue.Queue, queue.LifoQueue, queue.PriorityQueue, _Bag])
def test_a_queue_says_how_it_is_for_who_waits(agent: Any, made: Any) -> None:
    jobs = made(2)
    concagent.name(jobs, "jobs")

    assert _detail_of(jobs.get, lambda: jobs.put(1)) == ("empty", "jobs")
    jobs.put(2)
    jobs.put(3)
    assert _detail_of(lambda: jobs.put(4), jobs.get) == ("full, 2 of 2", "jobs")
    assert _detail_of(jobs.join, lambda: [jobs.task_done() for _ in range(4)]) == ("4 tasks not done", "jobs")
    assert state.errors() == ()


def test_a_queue_of_which_nothing_can_be_told_is_waited_for_all_the_same(agent: Any) -> None:
    class Odd(queue.Queue):  # type: ignore[type-arg]
        @property
        def unfinished_tasks(self) -> int:
            raise ValueError("no")

        @unfinished_tasks.setter
        def unfinished_tasks(self, value: int) -> None:
            self.__dict__["left"] = value

        def join(self) -> None:
            with self.all_tasks_done:
                self.all_tasks_done.wait()

    odd = Odd()
    cell = state.condition_cell(odd.all_tasks_done, odd, "queue", lambda waited: str(waited.unfinished_tasks))

    assert snapshots.describe_resource(cell).detail is None
    assert dict(state.errors()) == {"detail": 1}
    state.reset_for_tests()
