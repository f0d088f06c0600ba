"""Locks of the standard library that exist before install: exchanged when that is safe, given back at the end."""

from __future__ import annotations

import subprocess
import sys
import textwrap

HEAD = """
import logging, queue, sys, tempfile, threading, concurrent.futures.thread as pool
from concagent import core
import concagent
"""


def run(code: str) -> tuple[int, str, str]:
    """Return status, stdout and stderr of a program."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_free_locks_are_exchanged_and_given_back() -> None:
    code = """
        handler = logging.StreamHandler()
        before = logging._lock, handler.lock, pool._global_shutdown_lock, tempfile._once_lock
        concagent.install(stderr=False, log=False)
        now = logging._lock, handler.lock, pool._global_shutdown_lock, tempfile._once_lock
        print([core.cell_of(lock) is not None for lock in now])
        logging.getLogger().warning("text")
        handler.acquire(); handler.release()
        concagent.uninstall()
        print((logging._lock, handler.lock, pool._global_shutdown_lock, tempfile._once_lock) == before)
        """

    assert run(code) == (0, "[True, True, True, True]\nTrue\n", "text\n")


def test_a_held_lock_is_left_alone_and_counted() -> None:
    code = """
        handler = logging.StreamHandler()
        lock = handler.lock
        lock.acquire()
        agent = concagent.install(stderr=False, log=False)
        print(handler.lock is lock, lock._is_owned())
        lock.release()
        concagent.uninstall()
        """

    assert run(code) == (0, "True True\n", "")


def test_nothing_is_exchanged_while_other_threads_run() -> None:
    code = """
        end = threading.Event()
        other = threading.Thread(target=end.wait); other.start()
        lock = logging._lock
        agent = concagent.install(stderr=False, log=False)
        print(logging._lock is lock, concagent.snapshot().snapshot.untracked_locks > 0
              if hasattr(concagent.snapshot(), "snapshot") else concagent.snapshot().untracked_locks > 0)
        end.set(); other.join()
        """

    assert run(code) == (0, "True True\n", "")


def test_a_queue_that_exists_goes_on_with_what_is_in_it() -> None:
    code = """
        q = queue.Queue(2)
        q.put(1)
        concagent.install(stderr=False, log=False)
        print(core.cell_of(q.mutex) is not None, q.not_empty._lock is q.mutex, q.get(), q.empty())
        threading.Timer(0.01, q.put, [2]).start()
        print(q.get())
        q.task_done(); q.task_done(); q.join()
        concagent.uninstall()
        q.put(3)
        print(q.get())
        """

    assert run(code) == (0, "True True 1 True\n2\n3\n", "")


def test_adoption_can_be_switched_off() -> None:
    code = """
        lock = logging._lock
        concagent.install(stderr=False, log=False, adopt=False)
        print(logging._lock is lock)
        """

    assert run(code) == (0, "True\n", "")
