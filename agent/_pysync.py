"""What is built on conditions: waits for what is not a lock of ours, cells laid into objects, the lock of a waiter.

Invariants see ``_pybase``, C2 and C3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from concagent import _real, rings
from concagent._pybase import core, tls, uninterrupted
from concagent._pyclass import next_serial
from concagent._pyrecord import current_record
from concagent._pywait import Wait

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

    from concagent._pyrecord import ThreadRecord

_len = len
_allocate = _real.allocate_lock


class ThreadCell:
    """A thread as a resource; what it does is in a class that is derived from this one."""

    __slots__ = ("code", "kind", "lasti", "name", "reference", "serial")

    def __init__(self, thread: Any) -> None:
        """Describe ``thread``, without keeping it alive."""
        self.serial = next_serial()
        self.kind = "thread"
        self.code: CodeType | None = None  # where it was started
        self.lasti = 0
        self.name: str | None = None
        self.reference = _real.weak_reference(thread)


def find_cell(target: Any, name: str) -> Any:
    """Return the cell that was laid into an object, or None; asks no ``__getattr__`` of the program."""
    try:
        return object.__getattribute__(target, name)
    except AttributeError:
        return None


def configure_not_owned(hook: Callable[[], object]) -> None:
    """Say what to call where a lock is not its asker's."""
    core.not_owned = hook


def keep_cell(target: Any, name: str, cell: Any) -> Any:
    """Lay a cell into an object that has a ``__dict__``; return it, or the one that another thread laid there first."""
    return target.__dict__.setdefault(name, cell)


def begin_wait(resource: Any, timed: bool, frame: FrameType | None) -> Wait:
    """Publish that the calling thread waits for something that is not a lock of ours; pair with ``end_waits``."""
    record = current_record()
    wait = Wait(resource, timed, frame.f_code if frame else None, frame.f_lasti if frame else 0)
    record.waits.append(wait)
    record.epoch += 1
    return wait


def wait_mark() -> int:
    """Return how many waits the calling thread is in; what is published later ends with ``end_waits(mark)``.

    The mark is taken before the ``try`` that ends the waits, because an exception that comes right after ``begin_wait`` would
    take its result along.
    """
    return _len(current_record().waits)


@uninterrupted
def end_waits(mark: int) -> None:
    """End the waits published since the mark; the epoch moves, so nobody can take the next wait for this one."""
    try:
        record = tls.record
        record.epoch += 1
        del record.waits[mark:]
    except AttributeError:  # the thread-local is gone: the thread is at its end
        pass


def check_wait(wait: Wait) -> None:
    """Walk from a wait that was just published; raises what the listener answers to a ring."""
    record = current_record()
    if record.agent or wait.timed or not core.recording:
        return
    error = rings.walk(record)
    if error is not None:
        raise error


# ---------------------------------------------------------------- the lock that a condition's waiter sleeps on


class WaiterLock:
    """A lock that remembers who released it: in `Condition.wait` that is whoever has ended the wait.

    The sleeper finds him when it wakes, and leaves him in its own record (``waker``) until the next such lock is taken.
    Since 3.14 a lock may be handed on without ever being free, so it tells itself that it was given (``is_given``).
    """

    __slots__ = ("__weakref__", "_lock", "_releaser", "is_given")

    def __init__(self) -> None:
        self._lock = _allocate()
        self._releaser: ThreadRecord | None = None
        self.is_given = False

    def acquire(self, *args: Any, **kwargs: Any) -> bool:
        """Take the lock."""
        self.is_given = False
        try:
            record = tls.record
        except AttributeError:
            return self._lock.acquire(*args, **kwargs)
        try:
            record.sleeps_on = self
            if not self._lock.acquire(*args, **kwargs):
                return False
        finally:
            record.sleeps_on = None
        giver = self._releaser
        self._releaser = None
        record.waker = giver if giver is not record else None
        return True

    __enter__ = acquire

    @uninterrupted
    def release(self) -> None:
        """Release the lock, and be remembered for it."""
        try:
            self._releaser = tls.record if core.recording else None
        except AttributeError:
            self._releaser = None
        self.is_given = self.locked()
        self._lock.release()

    @uninterrupted
    def __exit__(self, *exc: object) -> None:
        """Release at the end of a ``with`` block."""
        try:
            self.release()
        finally:
            pass

    def locked(self) -> bool:
        """Return whether the lock is held."""
        return self._lock.locked()

    def _at_fork_reinit(self) -> None:
        self._lock = _allocate()
        self._releaser = None
        self.is_given = False

    def __repr__(self) -> str:
        return f"<{'locked' if self.locked() else 'unlocked'} _thread.lock object at {id(self):#x}>"


def waiter_lock() -> WaiterLock:
    """Return a lock that remembers who released it."""
    return WaiterLock()
