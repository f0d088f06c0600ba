# ruff: noqa: ARG005 - what the interpreter gives is there, and nobody needs it
"""Each twin tells in what circumstances a class of locks is taken: the same rows, and few of them."""

from __future__ import annotations

import gc
import signal
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from concagent import _pycore, core

TWINS = {"c": core.implementation if core.NAME == "c" else None, "python": _pycore}
ORDINARY, FINALIZER, WEAKREF, GC, SIGNAL = range(5)


@pytest.fixture(params=TWINS)
def twin(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A twin that records, and where the agent is not installed."""
    chosen = TWINS[request.param]
    if chosen is None:
        pytest.skip("the C core is not in use")
    chosen.reset_for_tests()
    chosen.start(core.Listener(), main_ident=threading.main_thread().ident)
    yield chosen
    chosen.stop()
    chosen.reset_for_tests()


class Session:
    """Uses a lock when it is gone, in the way that it is given."""

    def __init__(self, use: Any) -> None:
        self.use = use

    def __del__(self) -> None:
        self.use()


class Plain:
    """Can be referred to weakly."""


def user(lock: Any) -> Any:
    def use() -> None:
        with lock:
            pass

    return use


def kinds(twin: Any, lock: Any) -> list[tuple[int, bool, bool]]:
    """Return (circumstance, main thread, collector enabled) of what is told of a lock's class."""
    cls = twin.cell_of(lock).cls.serial
    return [(row[2], bool(row[3]), bool(row[4])) for row in twin.drain_uses() if row[0] == cls]


def drop(things: list[Any]) -> None:
    things.clear()


def test_ordinary_use_and_each_interruption_by_the_same_function_are_told_apart(twin: Any) -> None:
    lock = twin.allocate_lock()
    use = user(lock)
    thing = Plain()
    reference = weakref.ref(thing, lambda _dead: use())

    use()
    drop([Session(use)])
    del thing
    gc.callbacks.append(lambda phase, info: use())
    gc.collect()
    gc.callbacks.pop()
    before = signal.signal(signal.SIGUSR2, lambda number, frame: use())
    signal.raise_signal(signal.SIGUSR2)
    signal.signal(signal.SIGUSR2, before)

    assert reference() is None
    assert dict.fromkeys(kind for kind, _, _ in kinds(twin, lock)) == dict.fromkeys(range(5))
    assert twin.was_interrupted()


@pytest.mark.parametrize(
    ("phase", "given", "kind"),
    [
        ("stop", {"generation": 2, "collected": 0, "uncollectable": 0}, GC),
        ("start", {"generation": 2, "collected": 0, "uncollectable": 0, "candidates": 7, "duration": 0.1}, GC),  # 3.15
        ("stop", {"colour": 2, "collected": 0, "uncollectable": 0}, ORDINARY),
        ("away", {"generation": 2, "collected": 0, "uncollectable": 0}, ORDINARY),
    ],
)
def test_a_gc_callback_is_known_by_what_it_is_given_however_much_its_version_gives(
    twin: Any, phase: str, given: dict[str, Any], kind: int
) -> None:
    lock = twin.allocate_lock()
    use = user(lock)

    def callback(_phase: str, _info: Any) -> None:
        use()

    callback(phase, given)

    assert [seen for seen, _, _ in kinds(twin, lock)] == [kind]


def test_threads_and_a_paused_collector_are_told(twin: Any) -> None:
    lock = twin.allocate_lock()
    thread = threading.Thread(target=user(lock))

    thread.start()
    thread.join()
    gc.disable()
    try:
        user(lock)()
    finally:
        gc.enable()

    assert kinds(twin, lock) == [(ORDINARY, False, True), (ORDINARY, True, False)]
    assert not twin.was_interrupted()


def test_who_only_tries_in_an_interruption_is_not_told(twin: Any) -> None:
    lock = twin.allocate_lock()

    drop([Session(lambda: lock.acquire(blocking=False) and lock.release())])
    drop([Session(lambda: lock.acquire(timeout=1) and lock.release())])

    assert kinds(twin, lock) == []


def test_what_is_done_over_and_over_is_told_a_few_times(twin: Any) -> None:
    lock = twin.allocate_lock()
    use = user(lock)

    def deeper(depth: int) -> None:
        use()
        if depth:
            deeper(depth - 1)

    for _ in range(50):
        deeper(30)
        drop([Session(use)])

    told = [kind for kind, _, _ in kinds(twin, lock)]
    assert 1 <= told.count(ORDINARY) <= 2
    assert 1 <= told.count(FINALIZER) <= 16


def test_the_cell_says_whether_its_lock_lives(twin: Any) -> None:
    lock = twin.allocate_lock()
    cell = twin.cell_of(lock)
    before = cell.alive

    del lock

    assert (before, cell.alive) == (True, False)
