"""A Lock that records who holds it and who waits for it.

The whole state of a lock is one dictionary entry.  ``state.setdefault(0, hold)`` either stores *this* acquisition's tuple
(holder, site, how) or returns the one that is there: under the GIL, and on free-threaded builds under the dict's
own lock, that is an atomic test-and-set that names the holder in the same instant.  So there is no moment at which a lock
is taken and nobody is its holder, and no moment at which a holder is named who has let go.

Invariants see ``_pybase``, C1.
Sources    CPython Modules/_threadmodule.c (semantics, messages).
"""

from __future__ import annotations

import copyreg
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from concagent import _real
from concagent._pybase import Hold, Links, core, tls, uninterrupted
from concagent._pyclass import make_cell, transparent
from concagent._pyrecord import links_for, new_chain, new_record, popped
from concagent._pyuse import note_use
from concagent._pywait import ask_no_more, free, wait_for
from concagent._real import INSTANTIABLE

if TYPE_CHECKING:
    from types import FrameType

    from concagent._pyclass import LockCell

_getframe = _real.getframe
_len = len
_clock = _real.monotonic_ns
_allocate = _real.allocate_lock
_ident = _real.get_ident


def refuse_exit(exc: tuple[object, ...]) -> NoReturn:
    """Raise what the original's ``__exit__`` raises to another number of arguments than three."""
    raise TypeError(f"__exit__ expected 3 arguments, got {len(exc)}")


class _LockMeta(type):
    """Makes the lock type look like the original: instance checks accept originals, instantiation is as in this version."""

    def __instancecheck__(cls, instance: object) -> bool:
        return type.__instancecheck__(cls, instance) or type(instance) is _real.LockType

    if not INSTANTIABLE:

        def __call__(cls, *args: Any, **kwargs: Any) -> NoReturn:
            raise TypeError("cannot create '_thread.lock' instances")


class Lock(metaclass=_LockMeta):
    """A lock object is a synchronization primitive.

    Created by ``threading.Lock()``; drop-in for ``_thread.lock`` of the running version, with a cell that names its holder.
    """

    __slots__ = ("__weakref__", "_cell")
    _cell: LockCell

    if INSTANTIABLE:

        def __new__(cls, *args: Any, **kwargs: Any) -> Lock:
            """Return a new, free lock."""
            if args or kwargs:
                _real.LockType(*args, **kwargs)  # raises as the original does
            return _make_lock(_getframe(1))

    def __init_subclass__(cls, **kwargs: Any) -> NoReturn:
        raise TypeError("type '_thread.lock' is not an acceptable base type")

    def acquire(self, /, *args: Any, **kwargs: Any) -> bool:
        """Take the lock; ``acquire(blocking=True, timeout=-1)`` as in ``threading``."""
        blocking, timeout = arguments(args, kwargs) if args or kwargs else (True, -1)
        cell = self._cell
        frame = _getframe(1)
        hold, frame = hold_for(frame, False)
        try:
            return _take_lock(self, cell, hold, frame, blocking, timeout)
        except BaseException:
            undo(cell, hold, 0)
            raise

    def __enter__(self) -> bool:
        """Take the lock for a ``with`` block: the holder, and nobody else, is going to release it."""
        cell = self._cell
        hold, frame = hold_for(_getframe(1), True)
        try:
            return _take_lock(self, cell, hold, frame, True, -1)
        except BaseException:
            undo(cell, hold, 0)
            raise

    @uninterrupted
    def release(self) -> None:
        """Release the lock; RuntimeError if it is not held.  Any thread may do it, as with the original."""
        try:
            _release_lock(self._cell)
        finally:
            pass

    @uninterrupted
    def __exit__(self, *exc: object) -> None:
        """Release at the end of a ``with`` block."""
        try:
            _release_lock(self._cell)
        finally:
            pass

    # 3.15 counts its arguments.  Before, a jump would let signals in here, and the lock would stay held.
    if sys.version_info >= (3, 15):

        @uninterrupted
        def __exit__(self, *exc: object) -> None:
            """Release at the end of a ``with`` block."""
            try:
                if not exc[2:] or exc[3:]:  # no call: nobody may interrupt before the release
                    refuse_exit(exc)
                _release_lock(self._cell)
            finally:
                pass

    def locked(self) -> bool:
        """Return whether the lock is held."""
        return bool(self._cell.state)

    acquire_lock = acquire
    release_lock = release
    locked_lock = locked

    def _at_fork_reinit(self) -> None:
        reinit(self._cell)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if protocol in (0, 1):
            if not INSTANTIABLE:  # pickle fails to find the type, and says so
                return copyreg._reconstructor, (type(self), object, None)  # type: ignore[attr-defined]
            raise TypeError("cannot pickle 'lock' object")
        raise TypeError("cannot pickle '_thread.lock' object")

    def __repr__(self) -> str:
        status = "locked" if self._cell.state else "unlocked"
        return f"<{status} _thread.lock object at {id(self):#x}>"


# ---------------------------------------------------------------- taking and giving back


def _caller(frame: FrameType) -> FrameType:
    """Return the frame on whose behalf transparent code acts."""
    while frame.f_code.co_filename in transparent and frame.f_back is not None:
        frame = frame.f_back
    return frame


def arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, float]:
    """Parse acquire's arguments; the original itself, on a free lock, raises what is to be raised."""
    _allocate().acquire(*args, **kwargs)
    blocking = args[0] if args else kwargs.get("blocking", True)
    timeout = args[1] if _len(args) > 1 else kwargs.get("timeout", -1)
    return bool(blocking), float(timeout)


def hold_for(frame: FrameType, entered: bool) -> tuple[Hold, FrameType]:
    """Return what an acquisition will put into the cell, and the frame that it is for."""
    try:
        record = tls.record
    except AttributeError:
        record = new_record()
    if frame.f_code.co_filename in transparent:
        frame, entered = _caller(frame), True
    return (record, frame.f_code, frame.f_lasti, entered), frame


def _take_lock(lock: Lock, cell: LockCell, hold: Hold, frame: FrameType, blocking: bool, timeout: float) -> bool:
    """Put the hold into the cell; the caller undoes that if an exception comes."""
    links = None
    if core.recording:
        note_use(cell, hold, frame, blocking and timeout < 0)
        links = links_for(hold[0], cell, hold, blocking and timeout < 0)
    since_ns = _clock()  # and by the way the last look for pending finalizers before the lock is taken
    if cell.state.setdefault(0, hold) is not hold:
        if not blocking or timeout == 0:
            return False
        if not wait_for(cell, hold, timeout, frame, lock):
            return False
        since_ns = _clock()
    cell.since_ns = since_ns
    cell.acquisitions += 1
    if links is not None:
        grow(cell, hold, links, blocking and timeout < 0)
    return True


@uninterrupted
def grow(cell: LockCell, hold: Hold, links: Links, blocking: bool) -> None:
    """Put a cell onto the held stack."""
    try:
        record = hold[0]
        record.held += links[0]
        record.chains += links[1]
    finally:
        pass
    if links[2]:
        new_chain(record, cell, hold, links[1][0], blocking)


@uninterrupted
def undo(cell: LockCell, hold: Hold, extra: int) -> None:
    """Give back what an interrupted acquire has taken: its caller will not release.

    ``extra`` is what the cell said before: a re-entry of an RLock has no hold of its own.
    """
    try:
        present = cell.state[0]
    except KeyError:
        present = None
    if present is hold:
        cell.extra = 0
        free(cell)
    elif present is not None and present[0] is hold[0] and cell.cls.kind == "rlock":
        cell.extra = extra
        return
    popped(hold[0], cell)


@uninterrupted
def _release_lock(cell: LockCell) -> None:
    try:
        hold = free(cell)
    finally:
        pass
    if hold is None:
        if core.recording:
            core.listener.misuse("double-release", cell, None, _getframe(2))
        raise RuntimeError("release unlocked lock")
    holder = hold[0]
    if holder.ident == _ident():
        if holder.held:
            popped(holder, cell)
    elif core.recording and not holder.agent:
        cell.cls.signal = True  # an event, not a mutex; the holder drops its stale entry itself


def reinit(cell: LockCell) -> None:
    """Free a lock in a fork's child; whoever held or awaited it does not exist there."""
    hold = cell.state.get(0)
    cell.extra = 0
    cell.state.clear()
    cell.waiters.clear()
    for waiter in list(cell.turn.values()):
        ask_no_more(cell, waiter)
    if hold is not None:
        popped(hold[0], cell)


# ---------------------------------------------------------------- making locks


def _make_lock(frame: FrameType | None) -> Lock:
    lock = object.__new__(Lock)
    make_cell(lock, "lock", frame)
    return lock


class _FactoryMeta(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, Lock)

    def __repr__(cls) -> str:
        return "<built-in function allocate_lock>"


class allocate_lock(metaclass=_FactoryMeta):  # noqa: N801 - the original's name
    """Return a new lock object.

    A class and not a function: the original is a built-in, which does not become a method when a class keeps it in an
    attribute (``lock_factory = threading.Lock``), and neither does a class.
    """

    __slots__ = ()

    def __init_subclass__(cls, **kwargs: Any) -> NoReturn:
        raise TypeError("cannot create 'builtin_function_or_method' instances")

    def __new__(cls, *args: Any, **kwargs: Any) -> Lock:  # type: ignore[misc]
        """Return a new, free lock."""
        if args or kwargs:
            _real.allocate_lock(*args, **kwargs)  # raises as the original does
        return _make_lock(_getframe(1))


for _type, _name in ((Lock, "lock"), (allocate_lock, "allocate_lock")):
    _type.__module__ = "_thread"
    _type.__name__ = _type.__qualname__ = _name
