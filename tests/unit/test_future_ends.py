"""Who can end a wait for futures, put together from what ends each of them."""

from __future__ import annotations

import queue
from concurrent.futures import Future, ThreadPoolExecutor, thread
from types import SimpleNamespace
from typing import Any

import pytest

from concagent.hooks import futures
from concagent.hooks.futures import ANYBODY, SOON, Ends

ONE, TWO, THREE = (SimpleNamespace(serial=serial) for serial in (1, 2, 3))


def by(*records: Any, growing: bool = False) -> Ends:
    """Return what ends a future that any one of these workers could complete."""
    return Ends("any-holder", tuple((record, None) for record in records), growing)


def test_any_of_several_is_ended_by_whoever_ends_one_of_them() -> None:
    ends = futures._any_of([by(TWO, THREE), by(ONE)])

    assert ends == by(ONE, TWO, THREE)


@pytest.mark.parametrize("easy", [ANYBODY, SOON, SOON._replace(detail="told")])
def test_any_of_several_is_as_easy_as_the_easiest(easy: Ends) -> None:
    assert futures._any_of([by(ONE), easy]) == easy


def test_any_of_several_may_end_by_a_new_worker_of_one_pool() -> None:
    assert futures._any_of([by(ONE), by(TWO, growing=True)]).growing


def test_all_of_several_need_each_of_those_that_run() -> None:
    ends = futures._all_of([by(ONE), by(TWO), by(ONE, TWO, THREE), ANYBODY, SOON])

    assert ends == Ends("all-holders", by(ONE, TWO).holders)


def test_all_of_several_that_are_queued_need_one_worker_of_the_first_pool() -> None:
    assert futures._all_of([SOON, by(ONE, TWO), ANYBODY]) == by(ONE, TWO)


@pytest.mark.parametrize(("ends", "expected"), [([SOON, SOON], SOON), ([SOON, ANYBODY], ANYBODY)])
def test_all_of_several_that_nobody_holds_are_as_hard_as_the_hardest(ends: list[Ends], expected: Ends) -> None:
    assert futures._all_of(ends) == expected


@pytest.mark.parametrize("make", [queue.SimpleQueue, queue.Queue, queue.LifoQueue, queue._PySimpleQueue])
def test_the_work_items_in_a_queue_are_seen_and_stay_there(make: Any) -> None:
    work = make()
    items = [thread._WorkItem.__new__(thread._WorkItem) for _ in range(5)]
    for item in [*items, None]:
        work.put(item)
    taken = work.get()

    found = futures._items_of(work, thread._WorkItem)

    assert sorted(map(id, found)) == sorted(id(item) for item in items if item is not taken)
    assert work.qsize() == 5


def test_a_pool_may_get_another_worker_until_it_has_all_or_is_shut_down() -> None:
    pool = ThreadPoolExecutor(2)
    before = futures._may_grow(pool, ThreadPoolExecutor)
    pool.submit(int).result()
    pool._max_workers = 1
    full = futures._may_grow(pool, ThreadPoolExecutor)
    pool._max_workers = 2
    pool.shutdown()

    assert (before, full, futures._may_grow(pool, ThreadPoolExecutor)) == (True, False, False)


def test_a_pool_that_starts_workers_in_its_own_way_may_always_get_one() -> None:
    class Own(ThreadPoolExecutor):
        def _adjust_thread_count(self) -> None:
            """Start nobody."""

    pool = Own(1)
    pool._max_workers = 0

    assert futures._may_grow(pool, ThreadPoolExecutor)


def test_a_future_of_nobody_is_ended_by_anybody() -> None:
    assert futures._Pools({}).ends_of(Future()._condition) == ANYBODY  # type: ignore[attr-defined]


def test_the_executor_is_known_by_its_workers() -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        (worker,) = pool._threads
        found = futures._executor_of(worker)

    assert found is pool
