"""Publishes joins, and remembers where threads were started.

A join waits for the end of a thread, so the thread is the resource and its own holder: a ring can run through it.  The wait is
published and walked before the original is called, which blocks in C; so the last blocker of a ring is found, and can be
a victim, without waking anybody.  The end of a thread is seen by the core (a thread-local's destructor), not here.

When the program's main module is over the interpreter waits for all threads that are no daemons, in
``threading._shutdown``: a wait like any other, and a program that hangs there hangs for good.  It is published by the last of
the calls that ``threading`` makes before it: what comes before is code of the program and of pools, which runs.

The functions below say what is done.  Where the C core runs, it does the same by itself (``_core_thread.c``), and has a gate
where `_StartCondition` is: they cost as much as all the rest.

Left alone  ``Thread._bootstrap`` and ``run``: nothing of ours is on the stack of a thread.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from typing import Any

from concagent import _real, core, state
from concagent.errors import DeadlockError
from concagent.hooks.patching import Patch, PatchSet

_thread_join = threading.Thread.join
_thread_start = threading.Thread.start
_shutdown = threading._shutdown  # type: ignore[attr-defined]


@functools.wraps(_thread_join)
def join(self: Any, timeout: float | None = None) -> None:
    """Publish the wait for the thread's end, and wait as the original does."""
    if not core.is_recording():
        return _thread_join(self, timeout)
    mark = core.wait_mark()
    try:
        try:
            ident = self.ident
            if ident is not None and ident != _real.get_ident():
                wait = core.begin_wait(state.thread_cell(self), timeout is not None, _real.getframe(1))
                joined = core.record_of_ident(ident)
                if joined is not None and joined.waits:  # else it will walk itself, and see this wait
                    core.check_wait(wait)
        except DeadlockError:
            raise
        except Exception as error:  # noqa: BLE001 - border: the join goes on with plain semantics
            state.count_error("hook", error)
        return _thread_join(self, timeout)
    finally:
        try:  # 3.10 looks for signals at the beginning of a handler, but for a ``try``
            core.end_waits(mark)
        finally:
            pass


class _StartCondition(threading.Condition):
    """What ``start`` waits on until the new thread says that it runs.

    It always says so, so there is nothing to watch, and watched, this one wait is what would cost.
    """

    wait = _real.Condition.wait  # the original: bound before any patch

    def __init__(self, lock: Any) -> None:
        """Do what the original does for a lock of the original type, without asking it what it lacks."""
        self._lock = lock
        for name in _LOCK_METHODS:
            setattr(self, name, getattr(lock, name))
        self._waiters: deque[Any] = deque()

    def notify_all(self) -> None:
        """Say so, on the new thread, and have a record made of it: some waits (for a module) are read off the interpreter."""
        core.current_record()
        super().notify_all()


def _lock_methods() -> tuple[str, ...]:
    """Return what a condition takes from its lock; empty if conditions of this version consist of something else, too."""
    lock = _real.allocate_lock()
    parts = dict(vars(_real.Condition(lock)))
    expected = type(parts.pop("_waiters", None)) is deque and parts.pop("_lock", None) is lock
    same = all(getattr(lock, name, None) == part for name, part in parts.items())
    return tuple(parts) if expected and same else ()


_LOCK_METHODS = _lock_methods()


def _leave_start_unwatched(thread: Any) -> None:
    started = thread._started
    kinds: tuple[type, type] = type(started), type(started._cond)
    plain = _LOCK_METHODS and kinds == (_real.Event, _real.Condition)
    if plain and not started.is_set() and not started._cond._waiters:
        started._cond = _StartCondition(_real.allocate_lock())


@functools.wraps(_thread_start)
def start(self: Any) -> None:
    """Start the thread as the original does, and remember from where."""
    if core.is_recording():
        try:
            frame = _real.getframe(1)
            cell = state.thread_cell(self)
            cell.code, cell.lasti = frame.f_code, frame.f_lasti
            _leave_start_unwatched(self)
        except Exception as error:  # noqa: BLE001 - border
            state.count_error("hook", error)
    _thread_start(self)


@functools.wraps(_shutdown)
def shutdown() -> None:
    """Wait for all threads that are no daemons as the original does, and publish that wait when it begins."""
    calls: list[Any] | None = getattr(threading, "_threading_atexits", None)
    if calls is None or not core.is_recording():
        return _shutdown()  # type: ignore[no-any-return]
    mark = core.wait_mark()
    calls.insert(0, _publish_shutdown)  # the last one to be called
    try:
        return _shutdown()  # type: ignore[no-any-return]
    finally:
        try:  # 3.10 looks for signals at the beginning of a handler, but for a ``try``
            core.end_waits(mark)
        finally:
            pass
        if _publish_shutdown in calls:
            calls.remove(_publish_shutdown)


def _publish_shutdown() -> None:
    try:
        core.begin_wait(state.ExitCell(), False, None)
    except Exception as error:  # noqa: BLE001 - border
        state.count_error("hook", error)


def add_patches(patches: PatchSet) -> None:
    """Append the patches of this family."""
    core.configure_threads(
        state.ThreadCell,
        threading.Thread,
        threading._active,  # type: ignore[attr-defined]
        threading._limbo,  # type: ignore[attr-defined]
    )
    patches.add(
        Patch(threading.Thread, "join", core.sync_method("join", join), "threading.Thread.join"),
        Patch(threading.Thread, "start", core.sync_method("start", start), "threading.Thread.start"),
        Patch(threading, "_shutdown", shutdown, "threading._shutdown"),
    )
