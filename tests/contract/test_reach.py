"""Reachability: each way to wait, and each way to refer to what is awaited, as "reached" and as its unreachable twin."""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from concagent import _pyreach, _real, core, reach

C = core._load_c()[0] if os.environ.get("CONCAGENT_CORE") != "python" else None
needs_c = pytest.mark.skipif(C is None, reason="the C core is not built")
TWINS = [pytest.param(_pyreach, id="python"), pytest.param(C, id="c", marks=needs_c)]
BOX: list[Any] = []  # what a module global holds


@pytest.fixture(autouse=True)
def _empty_box() -> Iterator[None]:
    """Forget what a test has put into the box."""
    yield
    BOX.clear()


Publish = Callable[[Any], None]


class Stuck:
    """A thread that runs ``body(publish)`` and blocks; ``publish(target)`` tells the test what it is going to wait for."""

    def __init__(self, body: Callable[[Publish], object], release: Callable[[Any], None], **started: Any) -> None:
        self.targets: dict[int, tuple[object, ...]] = {}
        self.release = release
        self.thread = threading.Thread(target=body, args=(self.publish,), daemon=True, **started)

    def publish(self, target: object) -> None:
        self.targets[1] = reach.signal_objects(target)

    def __enter__(self) -> Stuck:
        self.thread.start()
        assert self.thread.ident is not None
        before, same = None, 0
        while same < 20:  # blocked: at one instruction for a while, with the target told
            now = C.reach_frames(self.thread.ident)
            same = same + 1 if now == before and self.targets else 0
            before = now
            _real.sleep(0.001)
        return self

    def ask(self, *more: Any, **limits: Any) -> reach.Reach:
        return reach.reached(self.targets, [self.thread.ident, *more], twin=C, **limits)

    def __exit__(self, *_: object) -> None:
        self.release(self.targets[1][0])
        self.thread.join(10)
        assert not self.thread.is_alive()


def _notify(condition: Any) -> None:
    with condition:
        condition.notify_all()


def _event(publish: Publish) -> None:
    event = threading.Event()
    publish(event)
    event.wait()


def _condition(publish: Publish) -> None:
    condition = threading.Condition()
    publish(condition)
    with condition:
        condition.wait()


def _condition_for(publish: Publish) -> None:
    condition = threading.Condition()
    publish(condition)
    done: list[int] = []
    with condition:
        condition.wait_for(lambda: done or done.append(1))


def _get(publish: Publish) -> None:
    jobs: queue.Queue[int] = queue.Queue()
    publish(jobs)
    jobs.get()


def _iterated(publish: Publish) -> None:
    jobs: queue.Queue[int] = queue.Queue()
    publish(jobs)
    for _ in iter(jobs.get, 1):
        pass


def _put(publish: Publish) -> None:
    jobs: queue.Queue[int] = queue.Queue(1)
    publish(jobs)
    jobs.put(1)
    jobs.put(2)


def _simple(publish: Publish) -> None:
    jobs: queue.SimpleQueue[int] = queue.SimpleQueue()
    publish(jobs)
    jobs.get()


def _lock(publish: Publish) -> None:
    lock = _real.allocate_lock()
    publish(lock)
    lock.acquire()
    lock.acquire()


def _semaphore(publish: Publish) -> None:
    semaphore = threading.Semaphore(0)
    publish(semaphore)
    semaphore.acquire()


def _future(publish: Publish) -> None:
    from concurrent.futures import Future

    future: Future[int] = Future()
    publish(future)
    future.result()


def _closure(publish: Publish) -> None:
    event = threading.Event()
    publish(event)

    def inner() -> None:
        event.wait()

    inner()


def _method(publish: Publish) -> None:
    class Worker:
        def __init__(self) -> None:
            self.event = threading.Event()
            publish(self.event)

        def run(self) -> None:
            self.event.wait()

    Worker().run()


def _expression(publish: Publish) -> None:
    event = threading.Event()
    publish(event)
    print([event], {"event": event}, (event, [event.wait()]), file=None, sep=str(event.wait()))


def _starred(publish: Publish) -> None:
    def inner(*args: Any, **named: Any) -> None:
        deeper(*args, **named)

    def deeper(event: Any) -> None:
        event.wait()

    event = threading.Event()
    publish(event)
    inner(event)


def _named(publish: Publish) -> None:
    def inner(**named: Any) -> None:
        deeper(**named)

    def deeper(event: Any) -> None:
        event.wait()

    event = threading.Event()
    publish(event)
    inner(event=event)


def _with(publish: Publish) -> None:
    @contextlib.contextmanager
    def waiting(event: Any) -> Iterator[Any]:
        yield event

    event = threading.Event()
    publish(event)
    with waiting(event) as one, contextlib.closing(open(os.devnull)), contextlib.suppress(ValueError):
        one.wait()


def _generator(publish: Publish) -> None:
    def steps(event: Any) -> Iterator[Any]:
        yield 1
        yield event.wait()

    event = threading.Event()
    publish(event)
    for _ in steps(event):
        pass


def _comprehension(publish: Publish) -> None:
    event = threading.Event()
    publish(event)
    _ = [one.wait() for one in (event,) for _ in range(2)]


def _released(target: Any) -> None:
    for name in ("set", "release"):
        if hasattr(target, name) and not hasattr(target, "notify"):
            getattr(target, name)()
            return
    if hasattr(target, "notify"):
        _notify(target)
    elif hasattr(target, "set_result"):
        target.set_result(1)
    elif getattr(target, "maxsize", 0) == 1:
        target.get()
    else:
        target.put(1)


WAYS = [
    _event, _condition, _condition_for, _get, _iterated, _put, _simple, _lock, _semaphore, _future, _closure, _method,
    _expression, _starred, _with, _generator, _comprehension,
]  # fmt: skip
if sys.version_info >= (3, 12):
    WAYS.append(_named)  # before, C code copies named arguments to where nobody sees them


@needs_c
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__[1:])
def test_what_only_the_stuck_thread_refers_to_is_out_of_reach(way: Callable[[Publish], None]) -> None:
    with Stuck(way, _released) as stuck:
        answer = stuck.ask()

    assert (answer.resources, answer.complete) == (frozenset(), True)


@needs_c
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__[1:])
def test_what_a_global_refers_to_as_well_is_reached_whatever_way_it_is_awaited(way: Callable[[Publish], None]) -> None:
    def both(publish: Publish) -> None:
        def publish_and_keep(target: Any) -> None:
            BOX.append({"it": target})
            publish(target)

        way(publish_and_keep)

    with Stuck(both, _released) as stuck:
        answer = stuck.ask()

    assert answer.resources == {1}
    assert f"module global {__name__}.BOX" in answer.paths[1]


@needs_c
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__[1:])
def test_a_thread_that_is_not_stuck_reaches_what_it_has(way: Callable[[Publish], None]) -> None:
    with Stuck(way, _released) as stuck:
        answer = reach.reached(stuck.targets, [], twin=C)

    assert answer.resources == {1}
