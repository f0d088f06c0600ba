"""Row H18: a pool of two connections, and two tasks that hold one each and want a second; as real pools are made."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

PROGRAM = """
    import queue, threading
    from scaffold import Meeting, finish
    class OfPermits:
        def __init__(self, size):
            self._free, self._lock, self._idle = threading.{semaphore}(size), threading.Lock(), list(range(size))
        def get(self):
            self._free.acquire()
            with self._lock:
                return self._idle.pop()
        def put(self, connection):
            with self._lock:
                self._idle.append(connection)
            self._free.release()
    class OfAQueue:
        def __init__(self, size):
            self._idle = queue.{queue}(size)
            for number in range(size):
                self._idle.put(number)
        def get(self):
            return self._idle.get()
        def put(self, connection):
            self._idle.put(connection)
    class Overflowing:
        def __init__(self, size):
            self._idle, self._left, self._lock = queue.LifoQueue(), size, threading.Lock()
        def get(self):
            with self._lock:
                if self._left:
                    self._left -= 1
                    return object()
            return self._idle.get()
        def put(self, connection):
            self._idle.put(connection)
    pool, meeting = {pool}({size}), Meeting(2)
    def task():
        first = pool.get()
        try:
            meeting.wait()
            second = pool.get()
            pool.put(second)
        finally:
            pool.put(first)
    tasks = [threading.Thread(target=task, name=f"task-{number}") for number in range(2)]
    for one in tasks:
        one.start()
    for one in tasks:
        one.join()
    finish()
    """


def program(pool: str, size: int, **kinds: str) -> str:
    text = textwrap.dedent(PROGRAM)
    for name, value in {"semaphore": "Semaphore", "queue": "Queue", **kinds, "pool": pool, "size": str(size)}.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def assert_two_tasks(found: dict[str, Any], kind: str) -> None:
    assert (found["kind"], found["confidence"]) == (kind, "proven"), found["title"]
    roles = {actor["name"]: actor["role"] for actor in found["actors"]}
    assert roles == {"task-0": "member", "task-1": "member", "MainThread": "behind"}, found["title"]


@pytest.mark.parametrize("semaphore", ["Semaphore", "BoundedSemaphore"])
def test_h18_an_exhausted_pool_of_permits_is_a_deadlock_of_two(runner: Any, semaphore: str) -> None:
    outcome = runner.hangs(program("OfPermits", 2, semaphore=semaphore))

    assert_two_tasks(outcome.only, "deadlock")


@pytest.mark.parametrize(
    ("pool", "queue"), [("OfAQueue", "Queue"), ("OfAQueue", "LifoQueue"), ("Overflowing", "Queue")]
)
def test_h18_an_exhausted_pool_in_a_queue_has_nobody_left_to_give_back(runner: Any, pool: str, queue: str) -> None:
    """A queue does not know who has what was in it, so this is told as a stall of the two."""
    outcome = runner.hangs(program(pool, 2, queue=queue))

    assert_two_tasks(outcome.only, "stall")


@pytest.mark.parametrize("pool", ["OfPermits", "OfAQueue", "Overflowing"])
def test_h18_with_one_connection_more_they_finish(runner: Any, pool: str) -> None:
    runner.silent(program(pool, 3))
