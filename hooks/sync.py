"""Publishes waits on conditions, and with them on everything the standard library builds on conditions.

``Event``, ``Semaphore``, ``Barrier`` and ``queue.Queue`` wait in one place, ``Condition.wait``.  Only that method is replaced and
only its slow path is ours: a wait looks at the frames above it to see on whose behalf it waits (``Event.wait``, ``Queue.get``
...), so an event is reported as an event, objects made before us are recognised, subclasses keep working, and an
``Event.set`` or a ``Queue.put`` that does not wait costs nothing.

A semaphore's permits have holders, who are worth knowing: acquire and release are counted per thread.  A release by a
thread that took none marks the semaphore as a signal, whose holders say nothing.

The functions below say what a wait and a permit are.  Where the C core runs, `core.sync_method` stands before them: ``wait``
is done there whole, and ``acquire`` and ``release`` of one permit of a plain semaphore with nobody in the way (the cell is
made, the inner lock is free, for a release: no waiter, and a permit of this thread or a cell that is ``foreign`` already)
change ``holders`` and the semaphore's value there, and do not come here.

Not seen   who notifies or sets; that anybody alive might is what the detectors assume.
"""

from __future__ import annotations

import functools
import queue
import threading
from typing import TYPE_CHECKING, Any

from concagent import _real, core, state
from concagent.hooks.patching import Patch, PatchSet

if TYPE_CHECKING:
    from types import FrameType

_condition_wait = threading.Condition.wait
_semaphore_acquire = threading.Semaphore.acquire
_semaphore_release = threading.Semaphore.release
_bounded_release = threading.BoundedSemaphore.release

# Code on whose behalf a condition waits -> kind; the outermost one counts.  None: nothing to publish, the wait always ends.
_OUTER: dict[Any, str | None] = {
    threading.Event.wait.__code__: "event",
    threading.Semaphore.acquire.__code__: "semaphore",
    threading.Barrier.wait.__code__: "barrier",
    queue.Queue.get.__code__: "queue",
    queue.Queue.put.__code__: "queue",
    queue.Queue.join.__code__: "queue",
    threading.Thread.start.__code__: None,  # a thread that was just started will say so
}


@functools.wraps(_condition_wait)
def wait(self: Any, timeout: float | None = None) -> bool:
    """Publish the wait, and wait as the original does."""
    if not core.is_recording():
        return _condition_wait(self, timeout)
    mark = core.wait_mark()
    try:
        try:
            _publish(self, timeout is not None, _real.getframe(1))
        except Exception as error:  # noqa: BLE001 - border: the wait goes on with plain semantics
            state.count_error("hook", error)
        return _condition_wait(self, timeout)
    finally:
        core.end_waits(mark)


def _publish(condition: Any, timed: bool, frame: FrameType | None) -> None:
    target, kind = condition, "condition"
    while frame is not None and core.is_transparent(frame.f_code):
        code = frame.f_code
        if code in _OUTER:
            outer = _OUTER[code]
            if outer is None:
                return
            target, kind = frame.f_locals["self"], outer
        frame = frame.f_back
    core.begin_wait(state.sync_cell(target, kind), timed, frame)


def _cell_of(target: Any, kind: str) -> Any:
    """Return the cell of what is waited for, None if there can be none."""
    try:
        return state.sync_cell(target, kind)
    except Exception as error:  # noqa: BLE001 - border: the wait goes on with plain semantics
        state.count_error("hook", error)
        return None


@functools.wraps(_semaphore_acquire)
def acquire(self: Any, blocking: bool = True, timeout: float | None = None) -> bool:
    """Take a permit as the original does, and remember who has it."""
    got = _semaphore_acquire(self, blocking, timeout)
    if got and core.is_recording():
        try:
            holders = state.sync_cell(self, "semaphore").holders
            record = core.current_record()
            if not record.agent:
                holders[record] = holders.get(record, 0) + 1
        except Exception as error:  # noqa: BLE001 - border: the permit is taken, whatever we know of it
            state.count_error("hook", error)
    return got


def _give_back(semaphore: Any, number: int) -> None:
    cell = state.sync_cell(semaphore, "semaphore")
    record = core.current_record()
    left = cell.holders.get(record, 0) - number
    if left < 0:
        cell.foreign = True
    if left > 0:
        cell.holders[record] = left
    else:
        cell.holders.pop(record, None)


@functools.wraps(_semaphore_release)
def release(self: Any, n: int = 1) -> None:
    """Give permits back as the original does."""
    _semaphore_release(self, n)
    if core.is_recording() and not hasattr(self, "_initial_value"):
        try:
            _give_back(self, n)
        except Exception as error:  # noqa: BLE001 - border
            state.count_error("hook", error)


@functools.wraps(_bounded_release)
def bounded_release(self: Any, n: int = 1) -> None:
    """Give permits back as the original does, which refuses more than were taken."""
    _bounded_release(self, n)
    if core.is_recording():
        try:
            _give_back(self, n)
        except Exception as error:  # noqa: BLE001 - border
            state.count_error("hook", error)


def add_patches(patches: PatchSet) -> None:
    """Append the patches of this family."""
    semaphore, bounded = threading.Semaphore, threading.BoundedSemaphore
    state.make_room_for_cells(threading.Condition, semaphore, bounded, threading.Event, threading.Barrier, queue.Queue)
    core.configure_sync(_OUTER, _cell_of, threading.Condition, semaphore, bounded)
    take = core.sync_method("acquire", acquire)
    patches.add(
        Patch(threading.Condition, "wait", core.sync_method("wait", wait), "threading.Condition.wait"),
        Patch(semaphore, "acquire", take, "threading.Semaphore.acquire"),
        Patch(semaphore, "__enter__", take, "threading.Semaphore.__enter__"),
        Patch(semaphore, "release", core.sync_method("release", release), "threading.Semaphore.release"),
        Patch(
            bounded,
            "release",
            core.sync_method("bounded_release", bounded_release),
            "threading.BoundedSemaphore.release",
        ),
    )
