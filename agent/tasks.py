"""Puts asyncio's tasks into each picture: who they are, what they wait for, what they hold.

A task that waits is suspended until the future at its end is done, and that future is made for this one wait.  So a task
whose ``_fut_waiter`` is the same pending future in both readings was in this wait all the time between them, and what its
frames show, read in between, belonged to it: the argument of ``snapshots`` with a future in the place of an epoch.

Invariants T1 a task's epoch changes when it waits for another future.
           T2 nothing of the program is kept alive longer than one picture; see `_let_go`.
Cost       nothing for running tasks.  A picture: a microsecond a task, ten for one that is described.  Pictures to be judged
           describe only those tasks whose waits have holders.
Sources    CPython Lib/asyncio/tasks.py, Modules/_asynciomodule.c, 3.10-3.15.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Final

from concagent import _real, awaits, core, loops, state, taskscene

_PRUNE_EVERY: Final = 64
_SHARE: Final = 200
_LONGEST_NS: Final = 10_000_000_000


class Entry:
    """What is remembered of a task from picture to picture."""

    __slots__ = ("epoch", "held", "reference", "serial", "since_ns", "waiter")

    def __init__(self, task: Any) -> None:
        """Remember a task that is seen for the first time; not strongly."""
        self.reference = _real.weak_reference(task)
        self.serial: int = state.ACTOR_SERIALS + int(core.next_serial())
        self.epoch = 0
        self.since_ns = 0
        self.waiter: Any = None
        self.held = False

    def waits_for(self, waiter: Any, task: Any) -> None:
        """Count a new wait if it is one, and note whether somebody may hold what it is for."""
        if self.waiter is None or self.waiter() is not waiter:
            self.waiter = _real.weak_reference(waiter)
            self.epoch += 1
            self.since_ns = _real.monotonic_ns()
            self.held = awaits.may_be_held(awaits.task_class(task).get_coro(task), waiter)


class TaskSource:
    """The source of tasks; see `state.Source`."""

    def __init__(self) -> None:
        """Start with nothing known."""
        self._entries: dict[int, Entry] = {}
        self._serials: dict[int, tuple[Any, int]] = {}
        self._reads = 0
        self._next_ns = 0

    # ------------------------------------------------------------ reading

    def read(self) -> list[tuple[Any, Any]]:
        """Return (task, future that it waits for or None) of every task that is not done."""
        self._reads += 1
        if self._reads % _PRUNE_EVERY == 0:
            self._prune()
        return [(task, task._fut_waiter) for task in _all_tasks()]  # noqa: SLF001 - what this module is for

    def has_work(self) -> bool:
        """Return whether a picture may show a task that is stuck.

        Looks at all tasks, and therefore takes care not to spend more than one part in `_SHARE` of its thread's time on that.
        """
        now_ns = _real.monotonic_ns()
        if now_ns < self._next_ns:
            return False
        began_ns = time.thread_time_ns()
        frames = _real.current_frames()
        try:
            found = self._has_work(frames)
        finally:
            frames.clear()
        self._next_ns = now_ns + min(_SHARE * (time.thread_time_ns() - began_ns), _LONGEST_NS)
        return found

    def _has_work(self, frames: dict[int, Any]) -> bool:
        running = loops.running_loops(frames)
        tasks = self.read()
        if not tasks:
            return False
        asleep = any(view.turn is None and not loops.may_wake_by_itself(view.loop) for view in running)
        found = False
        for task, waiter in tasks:
            if waiter is not None:
                entry = self.entry(task)
                entry.waits_for(waiter, task)
                found = found or entry.held
        _let_go([], tasks)
        return found or asleep

    def entry(self, task: Any) -> Entry:
        """Return what is remembered of a task, made on first use."""
        entry = self._entries.get(id(task))
        if entry is not None and entry.reference() is not task:
            self._entries.pop(id(task), None)
            entry = None
        # Another thread may take a picture, too: the first entry is everybody's.
        return entry if entry is not None else self._entries.setdefault(id(task), Entry(task))

    def _prune(self) -> None:
        for key, entry in list(self._entries.items()):
            if entry.reference() is None:
                self._entries.pop(key, None)
        for key, (reference, _) in list(self._serials.items()):
            if reference() is None:
                self._serials.pop(key, None)

    def serial_of(self, thing: Any) -> int:
        """Return the serial of a lock, future, loop ... as a resource; the same as long as it lives."""
        cell = state.existing_cell(thing)
        if cell is not None and hasattr(cell, "serial"):
            return int(cell.serial)
        known = self._serials.get(id(thing))
        if known is not None and known[0]() is not thing:
            self._serials.pop(id(thing), None)
            known = None
        if known is None:
            known = self._serials.setdefault(id(thing), (_real.weak_reference(thing), int(core.next_serial())))
        return known[1]

    def target_of(self, serial: int) -> Any:
        """Return the lock, future, event ... that a resource of a picture stands for, None if it is gone or not ours.

        This is what a proof that nobody refers to it any more begins with.  The task that awaits it refers to it through its
        coroutine, and it to the task through its callbacks.
        """
        for reference, known in list(self._serials.values()):
            if known == serial:
                return reference()
        return None

    def actor_of(self, serial: int) -> Any:
        """Return the task that an actor of a picture stands for, None if it is gone or no task."""
        return next((entry.reference() for entry in list(self._entries.values()) if entry.serial == serial), None)

    def own_objects(self) -> list[object]:
        """Return what refers to tasks and futures here, weakly: no way for the program to get at them."""
        return [*self._entries.values(), *self._serials.values()]

    # ------------------------------------------------------------ a picture

    def add(self, builder: Any, one: list[tuple[Any, Any]], two: list[tuple[Any, Any]]) -> None:
        """Add the tasks; those that did not wait for the same future in both readings are running."""
        if two:
            taskscene.Scene(self, builder, one, two).add()
            _let_go(one, two)


def _all_tasks() -> list[Any]:
    """Return the tasks that are not done, of all loops.

    Sets of weak references are copied as such: iterating over a ``WeakSet`` would delay what the program's own does.
    """
    tasks: Any = sys.modules["asyncio.tasks"]
    if sys.version_info >= (3, 14):
        found: list[Any] = []
        frames = _real.current_frames()
        try:
            running = loops.running_loops(frames)
        finally:
            frames.clear()
        for view in running:
            found += tasks.all_tasks(view.loop)
        return [task for task in found if awaits.is_task(task)]
    known = tasks._scheduled_tasks if sys.version_info >= (3, 12) else tasks._all_tasks  # noqa: SLF001
    alive = [reference() for reference in list(known.data)]
    if sys.version_info >= (3, 12):
        alive += list(tasks._eager_tasks)  # noqa: SLF001
    return [task for task in alive if awaits.is_task(task) and awaits.is_pending(task)]


def _let_go(one: list[tuple[Any, Any]], two: list[tuple[Any, Any]]) -> None:
    """Give back what was read; the last reference to a task is dropped on its loop's thread, where its coroutine belongs."""
    one.clear()
    while two:
        task, waiter = two.pop()
        waiter = None
        if sys.getrefcount(task) <= 2 and awaits.is_pending(task):
            loop = awaits.task_class(task).get_loop(task)
            if not loop.is_closed():
                loop.call_soon_threadsafe(_forget, task)
    del waiter


def _forget(_task: Any) -> None:
    """Drop a reference."""
