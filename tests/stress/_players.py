"""What the tests with random programs share: real threads that move one step at a time, and batches of programs in processes.

A thread stops at a gate before each step, and whoever schedules opens one gate at a time.  Gates are original locks, which
the agent does not see.  That a step has blocked is read from the core's record of the thread and not from a clock.
"""

from __future__ import annotations

import argparse
import functools
import json
import linecache
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from operator import methodcaller
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH = 250  # programs a process: lock classes are never given back
PATIENCE_SECONDS = 10.0  # for a thread or a finding that never comes

# A release that no code shows: where one is in sight, the agent takes a lock of an ended thread for one that is handed over.
give = methodcaller("release")


class Stop(BaseException):
    """Ends the threads of a program whose verdict is known."""


class MismatchError(Exception):
    """The agent, or what a thread waits for, does not do what the oracle says."""


class Worker:
    """One thread of a program, and its gate."""

    def __init__(self, function: Any) -> None:
        from concagent import _real

        self.function = function
        self.go = _real.allocate_lock()
        self.go.acquire()
        self.at = -1  # number of the gate where it was last
        self.arrived = False
        self.stop = False
        self.is_late = False  # its time is up
        self.wake: Any = None  # the lock in which it waits for another's end, see `make_joins_wakeable`
        self.joiners: list[Any] = []
        self.record: Any = None
        self.failure: BaseException | None = None
        self.thread: Any = None

    def make_thread(self, name: str, args: tuple[Any, ...] = ()) -> None:
        self.thread = threading.Thread(target=self.play, args=args, name=name, daemon=True)

    def play(self, *args: Any) -> None:
        """Be the function of the program."""
        from concagent import core

        self.record = core.current_record()
        workers[self.record.ident] = self
        try:
            self.function(*args)
        except Stop:
            pass
        except BaseException as error:  # noqa: BLE001 - told by the scheduler
            self.failure = error
        finally:
            for joiner in self.joiners:
                if joiner.locked():
                    give(joiner)

    def open_gate(self) -> None:
        self.arrived = False
        give(self.go)

    def is_gone(self) -> bool:
        """Return whether the thread has ended, as the agent sees it, too."""
        return self.record is not None and bool(self.record.ended) and not self.thread.is_alive()

    def forget(self) -> None:
        """Drop the record of an ended thread: it may hold a lock, and would be looked at for ever."""
        from concagent import core

        core.forget_record(self.record)
        workers.pop(self.record.ident, None)


class Task(Worker):
    """A task of a thread pool."""

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        self.returned = False

    def play(self, *args: Any) -> None:
        self.thread = threading.current_thread()
        super().play(*args)
        self.returned = True

    def is_gone(self) -> bool:
        """Return whether the task is done, and its worker at rest: idle, in another task, or gone."""
        if not self.returned:
            return False
        return workers.get(self.record.ident) is not self or super().is_gone() or is_idle(self.record.ident)


workers: dict[int, Worker] = {}


def gate(at: int = 0) -> None:
    worker = workers[threading.get_ident()]
    worker.at = at
    worker.arrived = True
    worker.go.acquire()
    if worker.stop:
        raise Stop


def make_joins_wakeable() -> None:
    """Let threads of programs wait for each other's end so that they can be woken; before the agent sees the original."""
    from concagent import _real

    original = threading.Thread.join

    def join(self: threading.Thread, timeout: float | None = None) -> None:
        joiner = workers.get(threading.get_ident())
        awaited = next((worker for worker in workers.values() if worker.thread is self), None)
        if joiner is not None and awaited is not None and self.is_alive():
            joiner.wake = _real.allocate_lock()
            joiner.wake.acquire()
            awaited.joiners.append(joiner.wake)
            joiner.wake.acquire()
            joiner.wake = None
            if joiner.stop:
                raise Stop
            if joiner.is_late:
                return
        original(self, timeout)

    threading.Thread.join = join  # type: ignore[method-assign]


def is_parked(ident: int) -> bool:
    """Return whether a thread that has published its wait is past the walk, and asleep: its innermost line says so."""
    frame = sys._current_frames().get(ident)
    if frame is None:
        return False
    file = frame.f_code.co_filename
    if file.startswith("<program"):
        return True  # a core in C has no frame
    line = linecache.getline(file, frame.f_lineno)
    return any(call in line for call in (".acquire(", ".__enter__(", "_acquire_restore(", ".join(", "_original("))


def is_idle(ident: int) -> bool:
    """Return whether a worker of a thread pool waits for its next task."""
    frame = sys._current_frames().get(ident)
    while frame is not None and frame.f_code.co_name != "_worker":
        if frame.f_code.co_filename.endswith(("thread.py", "_players.py")):
            return False  # still in a task
        frame = frame.f_back
    return frame is not None and "work_queue.get(block=True)" in linecache.getline(
        frame.f_code.co_filename, frame.f_lineno
    )


def wait_until(is_so: Callable[[], Any]) -> bool:
    """Wait for something that is about to happen; False if it does not within PATIENCE_SECONDS."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    spins = 0
    while not is_so():
        spins += 1
        time.sleep(0 if spins < 50 else 0.0001)
        if time.monotonic() > deadline:
            return False
    return True


# ---------------------------------------------------------------- batches


def run_batch(programs: range, check: Callable[[int], Counter[str]], show: Callable[[int], str]) -> int:
    """Check programs in this process; print the tally as JSON, or the first program that fails; the exit status is 0 or 1."""
    from concagent import state

    tally: Counter[str] = Counter()
    for seed in programs:
        try:
            tally += check(seed)
        except MismatchError as error:
            print(f"program with seed {seed}:\n{show(seed)}\n{error}", flush=True)
            return 1
    if state.errors():
        print(f"errors of the agent: {state.error_texts()}", flush=True)
        return 1
    print(json.dumps(tally), flush=True)
    return 0


def run_all(script: str, first: int, count: int, jobs: int) -> int:
    """Run programs in child processes, some at a time; print what there was."""

    def child(start: int) -> subprocess.CompletedProcess[str]:
        size = min(BATCH, first + count - start)
        command = [sys.executable, script, "--batch", "--seed", str(start), "--programs", str(size)]
        return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)

    began = time.monotonic()
    tally: Counter[str] = Counter()
    failed = 0
    with ThreadPoolExecutor(jobs) as pool:
        for done in pool.map(child, range(first, first + count, BATCH)):
            if done.returncode:
                failed += 1
                print(done.stdout, done.stderr, sep="\n", flush=True)
            else:
                tally.update(json.loads(done.stdout))
    seconds = time.monotonic() - began
    print(f"{failed} batches failed" if failed else "no difference", f"in {seconds:.1f} s:", json.dumps(tally))
    return min(1, failed)


def main(script: str, run: Callable[[range], int], show: Callable[[int], str]) -> None:
    """Do what the command line says, and end the process: threads that wait for ever are daemons."""
    parser = argparse.ArgumentParser(description="Random programs under the agent and in an oracle.")
    parser.add_argument("--programs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1, help="of the first program; the others follow")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--batch", action="store_true", help="all in this process")
    parser.add_argument("--show", action="store_true", help="print the program, run nothing")
    options = parser.parse_args()
    status = 0
    if options.show:
        print(show(options.seed))
    elif options.batch:
        status = run(range(options.seed, options.seed + options.programs))
    else:
        status = functools.partial(run_all, script)(options.seed, options.programs, options.jobs)
    sys.stdout.flush()
    os._exit(status)
