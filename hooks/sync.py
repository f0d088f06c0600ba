"""Publishes waits on conditions, and with them on everything the standard library builds on conditions.

``Event``, ``Semaphore``, ``Barrier`` and ``queue.Queue`` wait in one place, ``Condition.wait``.  Only that method is replaced and
only its slow path is ours: a wait looks at the frames above it to see on whose behalf it waits (``Event.wait``, ``Queue.get``
...), so an event is reported as an event, objects made before us are recognised, subclasses keep working, and an
``Event.set`` or a ``Queue.put`` that does not wait costs nothing.

A semaphore's permits have holders, who are worth knowing: acquire and release are counted per thread.  A release by a
thread that took none marks the semaphore as a signal, whose holders say nothing.

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

# Code on whose behalf a condition waits -> kind; the outermost one counts.
_OUTER: dict[Any, str] = {
    threading.Event.wait.__code__: "event",
    threading.Semaphore.acquire.__code__: "semaphore",
    threading.Barrier.wait.__code__: "barrier",
    queue.Queue.get.__code__: "queue",
    queue.Queue.put.__code__: "queue",
    queue.Queue.join.__code__: "queue",
}
_START_CODE = threading.Thread.start.__code__


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
        outer = _OUTER.get(code)
        if outer is not None:
            target, kind = frame.f_locals["self"], outer
        elif code is _START_CODE:
            timed = True  # a thread that was just started will say so: such a wait always ends
        frame = frame.f_back
    core.begin_wait(state.sync_cell(target, kind), timed, frame)


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
    patches.add(
        Patch(threading.Condition, "wait", wait, "threading.Condition.wait"),
        Patch(semaphore, "acquire", acquire, "threading.Semaphore.acquire"),
        Patch(semaphore, "__enter__", acquire, "threading.Semaphore.__enter__"),
        Patch(semaphore, "release", release, "threading.Semaphore.release"),
        Patch(bounded, "release", bounded_release, "threading.BoundedSemaphore.release"),
    )
