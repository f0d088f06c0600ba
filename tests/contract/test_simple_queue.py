"""`queue.SimpleQueue` under the agent: the same type, with a ``get`` that says when it waits."""

# ruff: noqa: ARG001  the agent is asked for its effect

from __future__ import annotations

import gc
import inspect
import pickle
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from eventually import until

import concagent
from concagent import core, snapshots, state
from concagent.hooks import simplequeue
from concagent.words import NO_WORK

pytestmark = pytest.mark.skipif(core.NAME != "c", reason="the Python core leaves the type alone")
_ORIGINAL = queue.SimpleQueue.__dict__["get"]


def _waits() -> list[Any]:
    return [wait for record in core.records() if (wait := record.waiting()) is not None]


class _Derived(queue.SimpleQueue):  # type: ignore[type-arg]
    pass


EARLY: Any = queue.SimpleQueue()


@pytest.mark.parametrize("make", [queue.SimpleQueue, _Derived, lambda: EARLY], ids=["new", "derived", "made before"])
def test_a_wait_for_an_item_is_seen_while_it_lasts(agent: Any, make: Callable[[], Any]) -> None:
    items: Any = make()
    thread = threading.Thread(target=lambda: items.get())
    thread.start()
    wait = until(_waits)[0]
    resource = next(r for r in snapshots.take().resources if r.serial == wait.resource.serial)
    items.put(1)
    thread.join(20)

    assert (resource.kind, resource.detail, wait.timed) == ("queue", "empty", False)
    assert wait.code.co_filename == __file__
    assert _waits() == []
    assert state.errors() == ()


def test_a_wait_with_a_limit_is_timed(agent: Any) -> None:
    items: Any = queue.SimpleQueue()
    thread = threading.Thread(target=items.get, kwargs={"timeout": 20})
    thread.start()
    wait = until(_waits)[0]
    items.put(1)
    thread.join(20)

    assert wait.timed


USES: dict[str, Callable[[Any], Any]] = {
    "item": lambda q: (
        q.put(1),
        q.get(),
        q.put(2),
        q.get(True),
        q.put(3),
        q.get(timeout=5),
        q.put(4),
        q.get(True, 5.0),
    ),
    "none": lambda q: q.get(False),
    "none by keyword": lambda q: q.get(block=False),
    "nowait": lambda q: q.get_nowait(),
    "short": lambda q: q.get(timeout=0.001),
    "short and true": lambda q: q.get(1, 0.001),
    "negative": lambda q: (q.put(1), q.get(timeout=-1)),
    "negative without blocking": lambda q: (q.put(1), q.get(False, -1)),
    "endless": lambda q: (q.put(1), q.get(timeout=1e300)),
    "a word": lambda q: (q.put(1), q.get(timeout="1")),
    "too many": lambda q: q.get(True, 1, 2),
    "unknown": lambda q: q.get(fast=True),
    "no queue": lambda q: type(q).get(1),
    "nothing": lambda q: type(q).get(),
    "pickled": pickle.dumps,
}


@pytest.mark.parametrize("use", USES)
def test_get_answers_as_the_original(agent: Any, answer: Any, use: str) -> None:
    ours = answer(lambda: USES[use](queue.SimpleQueue()))
    concagent.uninstall()
    original = answer(lambda: USES[use](queue.SimpleQueue()))

    # The original names its type where it is called without an object; a callable of ours does not know it.
    assert ours[0] == original[0]
    if use not in {"no queue", "nothing", "unknown", "too many"}:
        assert ours == original


def test_the_type_is_the_one_it_was_and_is_put_back() -> None:
    before = queue.SimpleQueue, queue.SimpleQueue.__name__, inspect.signature(queue.SimpleQueue.get)

    concagent.install(stderr=False, log=False, report_signal="off", socket=False)
    try:
        during = queue.SimpleQueue, queue.SimpleQueue.__name__, inspect.signature(queue.SimpleQueue.get)
        replaced = queue.SimpleQueue.__dict__["get"] is not _ORIGINAL
    finally:
        concagent.uninstall()

    assert during == before
    assert replaced
    assert queue.SimpleQueue.__dict__["get"] is _ORIGINAL


def test_what_is_known_of_a_queue_goes_with_it(agent: Any) -> None:
    def once() -> None:
        with pytest.raises(queue.Empty):
            queue.SimpleQueue().get(timeout=0.0001)

    for _ in range(200):
        once()
    gc.collect()
    once()

    assert len(simplequeue._cells) < 10


def test_an_idle_thread_of_a_pool_is_marked_as_such(agent: Any) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        wait = until(_waits)[0]

        assert snapshots.describe_resource(wait.resource).detail == NO_WORK
