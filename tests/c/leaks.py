"""Repeats every operation on locks many times: blocks of memory, objects, records and RSS must stay as they are.

A release build has no ``sys.gettotalrefcount``.  A reference too many keeps an object, so blocks grow with the repeats; one
too few crashes, or frees an object that never dies, which is counted by its own reference count.

    python tests/c/leaks.py [repeats]
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

os.environ.setdefault("CONCAGENT_CORE", "c")
from concagent import core

REPEATS = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
SLACK_BLOCKS = 150  # caches fill up; one block an operation would be 3000
SLACK_KB = 4096


class Heard(core.Listener):
    """Answers rings with an exception, so that these ways are gone, too."""

    def ring(self, path: object) -> BaseException | None:  # noqa: ARG002
        return RuntimeError("ring")

    def orphan(self, record: object, wait: object, hold: object) -> BaseException | None:  # noqa: ARG002
        return RuntimeError("orphan")

    def misuse(self, detail: str, cell: object, hold: object, frame: object) -> None:
        """Ignore it."""


core.start(Heard())
lock, other, again = core.allocate_lock(), core.allocate_lock(), core.RLock()
taken = core.allocate_lock()
taken.acquire()


def raises(function: Callable[..., object], *arguments: object, **named: object) -> None:
    try:
        function(*arguments, **named)
    except (RuntimeError, TypeError, ValueError, OverflowError):
        return
    raise AssertionError(function)


def uncontended() -> None:
    with lock, other, again, again:
        pass
    lock.acquire(False)
    lock.release()
    lock.acquire(True, 1.5)
    lock.release()
    lock.acquire(blocking=True, timeout=1)
    lock.release()


def contended() -> None:
    taken.acquire(False)
    taken.acquire(timeout=1e-9)
    taken.acquire(True, 1e-9)


def ring_of_one() -> None:
    raises(taken.acquire)


def mistakes() -> None:
    raises(lock.release)
    raises(again.release)
    raises(lock.acquire, False, 1)
    raises(lock.acquire, timeout="x")
    raises(lock.acquire, 1, 2, 3)
    raises(lock.acquire, nonsense=1)
    raises(core.wake_victim, 1, 2)
    raises(core.end_waits, "x")


def made_and_dropped() -> None:
    one, two = core.allocate_lock(), core.RLock()
    core.cell_of(one)
    core.name_lock(two, "two")
    with one, two:
        repr(one), repr(two), core.cell_of(two).hold
    core.allocate_lock().acquire()


def read() -> None:
    record = core.current_record()
    repr((record.held, record.waits, record.waiting(), record.refresh(), record))
    for cls in core.classes():
        repr((cls.name, cls.code, core.acquisitions(cls)))
    core.records(), core.record_of_ident(record.ident), core.drain_order()
    core.wait_statistics(), core.hold_statistics()


def published() -> None:
    mark = core.wait_mark()
    wait = core.begin_wait(core.cell_of(taken), True, sys._getframe())
    wait.token = object()
    repr((wait.code, wait.resource, wait.token, wait.user, wait.since_ns))
    core.end_waits(mark)


def condition() -> None:
    saved = (again.acquire(), again._release_save())[1]
    again._acquire_restore(saved)
    again.release()


def signalled() -> None:
    raises(core.signal_register, signal.SIGSEGV, 1, False)
    core.signal_register(signal.SIGUSR2, 2**31 - 1, False)
    os.kill(os.getpid(), signal.SIGUSR2)
    core.signal_unregister(signal.SIGUSR2)


def threaded() -> None:
    def run() -> None:
        with lock, again:
            taken.acquire(timeout=1e-4)
        core.allocate_lock().acquire()

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def victims() -> None:
    def run() -> None:
        try:
            taken.acquire()
        except RuntimeError:
            pass

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        for record in core.records():
            for wait in record.waits:
                core.wake_victim(wait, RuntimeError())
        time.sleep(0)
    thread.join()


OPERATIONS = [
    uncontended,
    contended,
    ring_of_one,
    mistakes,
    made_and_dropped,
    read,
    published,
    condition,
    threaded,
    victims,
]
if hasattr(core.implementation, "signal_register"):
    core.signal_register = core.implementation.signal_register  # type: ignore[attr-defined]
    core.signal_unregister = core.implementation.signal_unregister  # type: ignore[attr-defined]
    OPERATIONS.append(signalled)
IMMORTALS = [None, True, False, (), core.Lock, core.RLock, type(core.current_record()), type(core.cell_of(lock))]


def state() -> tuple[int, int, int, list[int]]:
    for _ in range(3):
        gc.collect()
    core.drain_order()
    with open("/proc/self/statm") as file:
        rss = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    return sys.getallocatedblocks(), rss, len(core.records()), [sys.getrefcount(one) for one in IMMORTALS]


failed = 0
for operation in OPERATIONS:
    repeats = REPEATS if operation not in (threaded, victims) else max(10, REPEATS // 10)
    for _ in range(max(10, repeats // 3)):
        operation()
    for _ in range(2):  # what grows once, and not again, is a cache that fills up on a busy machine
        before = state()
        for _ in range(repeats):
            operation()
        after = state()
        counts = [b - a for a, b in zip(before[3], after[3], strict=True)]
        good = (
            abs(after[0] - before[0]) < SLACK_BLOCKS
            and after[1] - before[1] < SLACK_KB
            and after[2] == before[2]
            and max(map(abs, counts)) < repeats / 2
        )
        if good:
            break
    failed += not good
    print(
        f"{operation.__name__:18} {repeats:6} times: blocks {after[0] - before[0]:+d}, kB {after[1] - before[1]:+d}, "
        f"records {after[2] - before[2]:+d}, references {counts}{'' if good else '  <== LEAK'}"
    )
print("leaks:", failed or "none")
sys.exit(1 if failed else 0)
