"""Publishes waits on conditions, and with them on everything the standard library builds on conditions.

``Event``, ``Semaphore``, ``Barrier`` and ``queue.Queue`` wait in one place, ``Condition.wait``.  Only that method is replaced and
only its slow path is ours: a wait looks at the frames above it to see on whose behalf it waits (``Event.wait``, ``Queue.get``
...), so an event is reported as an event, objects made before us are recognised, subclasses keep working, and an
``Event.set`` or a ``Queue.put`` that does not wait costs nothing.

Who notifies, sets, puts, takes or arrives last is learned by whom it woke: the waiter's lock remembers who released it (see
``WaiterLock`` in the core), so it costs the signaller nothing.  A queue's three conditions are three resources, because those
who get end the waits of those who put, and the other way round.

A semaphore's permits have holders, who are worth knowing: acquire and release are counted per thread.  A release by a
thread that took none marks the semaphore as a signal, whose holders say nothing.

The functions below say what a wait and a permit are.  Where the C core runs, `core.sync_method` stands before them: ``wait``
is done there whole, and so are ``acquire`` and ``release`` of one permit of a plain semaphore that has a cell: with nobody in
the way they change its value and ``holders``, else they call the original and then change ``holders``.  Here comes the first
use, a release of several permits, and one to a bounded semaphore that somebody is inside of.

Not seen   who signals without ever having woken anybody; that anybody alive might is what the detectors assume.
"""

from __future__ import annotations

import functools
import queue
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from concagent import _real, core, state
from concagent.hooks.patching import Patch, PatchSet
from concagent.words import TAKEN

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_condition_wait = threading.Condition.wait
_semaphore_acquire = threading.Semaphore.acquire
_semaphore_release = threading.Semaphore.release
_bounded_release = threading.BoundedSemaphore.release


# ---------------------------------------------------------------- what a report says of those that are waited for


def _event_detail(event: Any) -> str | None:
    return None if event._flag else "not set"


def _semaphore_detail(semaphore: Any) -> str | None:
    """Return how many permits are free, and of how many where that can be told."""
    free = semaphore._value
    bound = getattr(semaphore, "_initial_value", None)
    cell = state.existing_cell(semaphore)
    if bound is None and cell is not None and not cell.foreign and cell.holders:
        bound = free + sum(list(cell.holders.values()))
    if bound is None:
        return f"{free} permit{'s' * (free != 1)} free"
    return f"{free} of {bound} permit{'s' * (bound != 1)} free"


def _barrier_detail(barrier: Any) -> str | None:
    if barrier._state != 0:
        return "those of the last round are still leaving"
    missing = barrier._parties - barrier._count
    return f"{missing} of {barrier._parties} {'is' if missing == 1 else 'are'} missing"


def _empty_detail(waited: Any) -> str | None:
    """Return that a queue is empty, and how many things were taken out of it and not reported as done."""
    tasks = getattr(waited, "unfinished_tasks", 0)
    return f"empty, {tasks}{TAKEN}" if tasks else "empty"


def _full_detail(waited: Any) -> str | None:
    """Return how full a queue is; a subclass that keeps its items elsewhere is as full as it can be, or nobody would wait."""
    items = waited.__dict__.get("queue")
    size = len(items) if type(items) in (deque, list) else waited.maxsize
    return f"full, {size} of {waited.maxsize}"


def _tasks_detail(waited: Any) -> str | None:
    tasks = waited.unfinished_tasks
    return f"{tasks} task{'s' * (tasks != 1)} not done"


# Code on whose behalf a condition waits -> kind, and what to say of it; the outermost one counts.  None: nothing to publish, the
# wait always ends.
_OUTER: dict[Any, tuple[str, Callable[[Any], str | None]] | None] = {
    threading.Event.wait.__code__: ("event", _event_detail),
    threading.Semaphore.acquire.__code__: ("semaphore", _semaphore_detail),
    threading.Barrier.wait.__code__: ("barrier", _barrier_detail),
    queue.Queue.get.__code__: ("queue", _empty_detail),
    queue.Queue.put.__code__: ("queue", _full_detail),
    queue.Queue.join.__code__: ("queue", _tasks_detail),
    threading.Thread.start.__code__: None,  # a thread that was just started will say so
}


# ---------------------------------------------------------------- waits


@functools.wraps(_condition_wait)
def wait(self: Any, timeout: float | None = None) -> bool:
    """Publish the wait, wait as the original does, and learn who has ended it."""
    if not core.is_recording():
        return _condition_wait(self, timeout)
    mark = core.wait_mark()
    cell = None
    try:
        try:
            cell = _publish(self, timeout is not None, _real.getframe(1))
        except Exception as error:  # noqa: BLE001 - border: the wait goes on with plain semantics
            state.count_error("hook", error)
        woken = _condition_wait(self, timeout)
        if woken and cell is not None:
            _learn(cell)
        return woken
    finally:
        try:  # 3.10 looks for signals at the beginning of a handler, but for a ``try``
            core.end_waits(mark)
        finally:
            pass


def _publish(condition: Any, timed: bool, frame: FrameType | None) -> Any:
    target, outermost = condition, None
    while frame is not None and core.is_transparent(frame.f_code):
        code = frame.f_code
        if code in _OUTER:
            if _OUTER[code] is None:
                return None
            target, outermost = frame.f_locals["self"], _OUTER[code]
        frame = frame.f_back
    cell = _cell_of(condition, target, outermost)
    if cell is not None:
        core.begin_wait(cell, timed, frame)
    return cell


def _cell_of(condition: Any, target: Any, outermost: Any) -> Any:
    """Return the cell of what is waited for, kept in the condition, where it is found next time; None if there can be none."""
    kind, detail = outermost or ("condition", None)
    try:
        return state.condition_cell(condition, target, kind, detail)
    except Exception as error:  # noqa: BLE001 - border: the wait goes on with plain semantics
        state.count_error("hook", error)
        return None


def _learn(cell: Any) -> None:
    try:
        waker = core.current_record().waker
        if waker is not None:
            cell.learn(waker)
    except Exception as error:  # noqa: BLE001 - border: the wait is over, whatever we know of it
        state.count_error("hook", error)


# ---------------------------------------------------------------- permits


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
    try:
        _bounded_release(self, n)
    except ValueError:
        _tell_over_release(self, n, _real.getframe(1))
        raise
    if core.is_recording():
        try:
            _give_back(self, n)
        except Exception as error:  # noqa: BLE001 - border
            state.count_error("hook", error)


def _tell_over_release(semaphore: Any, number: int, frame: FrameType) -> None:
    """Say that more permits are given back than were taken; a number that is none at all is another error."""
    try:
        if core.is_recording() and number >= 1:
            core.tell_misuse("over-release", state.sync_cell(semaphore, "semaphore"), frame)
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
