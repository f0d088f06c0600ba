"""An RLock that records who owns it, how deep, and who waits for it.

Invariants see ``_pybase``, C1.
Sources    CPython Modules/_threadmodule.c (semantics, messages).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn

from concagent import _real
from concagent._pybase import Hold, core, tls, uninterrupted
from concagent._pyclass import make_cell
from concagent._pylock import arguments, grow, hold_for, refuse_exit, reinit, undo
from concagent._pyrecord import links_for, popped
from concagent._pyuse import note_use
from concagent._pywait import free, wait_for
from concagent.errors import DeadlockError

if TYPE_CHECKING:
    from types import FrameType

    from concagent._pyclass import LockCell

_getframe = _real.getframe
_clock = _real.monotonic_ns
_ident = _real.get_ident


class RLock:
    """A reentrant lock; drop-in for ``_thread.RLock`` of the running version, with a cell that names its owner."""

    __slots__ = ("__weakref__", "_cell")
    _cell: LockCell

    def __new__(cls, *args: Any, **kwargs: Any) -> RLock:
        """Return a new lock; arguments are refused where the original refuses them."""
        # A subclass with an __init__ of its own may take what it likes.
        if (args or kwargs) and cls.__init__ is object.__init__:
            _real.RLockType(*args, **kwargs)
        lock = object.__new__(cls)
        make_cell(lock, "rlock", _getframe(1))
        return lock

    def acquire(self, /, *args: Any, **kwargs: Any) -> bool:
        """Take the lock, once more if it is ours; ``acquire(blocking=True, timeout=-1)`` as in ``threading``."""
        blocking, timeout = arguments(args, kwargs) if args or kwargs else (True, -1)
        cell = self._cell
        extra = cell.extra
        hold, frame = hold_for(_getframe(1), False)
        try:
            return _take_rlock(self, cell, hold, frame, blocking, timeout)
        except BaseException:
            undo(cell, hold, extra)
            raise

    def __enter__(self) -> bool:
        """Take the lock for a ``with`` block."""
        cell = self._cell
        extra = cell.extra
        hold, frame = hold_for(_getframe(1), True)
        try:
            return _take_rlock(self, cell, hold, frame, True, -1)
        except BaseException:
            undo(cell, hold, extra)
            raise

    @uninterrupted
    def release(self) -> None:
        """Release the lock once; RuntimeError unless the caller owns it."""
        try:
            _release_rlock(self._cell)
        finally:
            pass

    @uninterrupted
    def __exit__(self, *exc: object) -> None:
        """Release at the end of a ``with`` block."""
        try:
            _release_rlock(self._cell)
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
                _release_rlock(self._cell)
            finally:
                pass

    def _is_owned(self) -> bool:
        hold = self._cell.state.get(0)
        if hold is not None and hold[0].ident == _ident():
            return True
        if core.recording:
            core.not_owned()
        return False

    def _recursion_count(self) -> int:
        return self._cell.depth if self._is_owned() else 0

    if sys.version_info >= (3, 14):

        def locked(self) -> bool:
            """Return whether anybody holds the lock."""
            return bool(self._cell.state)

    @uninterrupted
    def _release_save(self) -> tuple[int, int]:
        try:
            cell = self._cell
            depth = cell.extra + 1
            cell.extra = 0
            hold = free(cell)
        finally:
            pass
        if hold is None:
            raise RuntimeError("cannot release un-acquired lock")
        popped(hold[0], cell)
        return depth, hold[0].ident

    def _acquire_restore(self, state: tuple[int, int], /) -> None:
        """Take the lock as deep as it was.  A condition's caller relies on having it, so no signal handler ends this wait."""
        depth, _owner = state
        cell = self._cell
        interrupted: BaseException | None = None
        hold, frame = hold_for(_getframe(1), True)
        while True:
            try:
                _take_rlock(self, cell, hold, frame, True, -1)
                break
            except (DeadlockError, RecursionError, MemoryError):
                if cell.state.get(0) is hold:  # given at that very moment
                    cell.extra = depth - 1
                raise
            except BaseException as error:  # noqa: BLE001 - raised below, when the lock is ours
                interrupted = error
                if cell.state.get(0) is hold:
                    break
        cell.extra = depth - 1
        if interrupted is not None:
            raise interrupted

    def _at_fork_reinit(self) -> None:
        reinit(self._cell)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if protocol in (0, 1) and type(self).__reduce__ is object.__reduce__:
            raise TypeError("cannot pickle 'RLock' object")
        return object.__reduce_ex__(self, protocol)

    def __getstate__(self) -> NoReturn:
        raise TypeError(f"cannot pickle '{_type_name(self)}' object")

    def __repr__(self) -> str:
        hold = self._cell.state.get(0)
        status = "locked" if hold is not None else "unlocked"
        owner = hold[0].ident if hold is not None else 0
        depth = self._cell.depth if hold is not None else 0
        return f"<{status} {_type_name(self)} object owner={owner} count={depth} at {id(self):#x}>"


def _type_name(lock: RLock) -> str:
    """Return the name that the original shows: a type in C knows its module, a subclass in Python does not."""
    return "_thread.RLock" if type(lock) is RLock else type(lock).__name__


def _take_rlock(lock: RLock, cell: LockCell, hold: Hold, frame: FrameType, blocking: bool, timeout: float) -> bool:
    """Put the hold into the cell, or take it once more; the caller undoes that if an exception comes."""
    present = cell.state.get(0)
    if present is not None and (present[0] is hold[0] or present[0].ident == hold[0].ident):
        cell.extra += 1
        return True
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
def _release_rlock(cell: LockCell) -> None:
    try:
        hold: Hold | None = cell.state[0]
        mine = hold[0] is tls.record  # type: ignore[index]
    except (KeyError, AttributeError):  # free; the thread-local is gone
        hold, mine = cell.state.get(0), False
    if mine:
        if not cell.extra:
            free(cell)
            popped(hold[0], cell)  # type: ignore[index]
        else:
            cell.extra -= 1
    elif hold is not None and hold[0].ident == _ident():
        if not cell.extra:
            free(cell)
        else:
            cell.extra -= 1
    else:
        if core.recording:
            core.listener.misuse("foreign-release" if hold is not None else "double-release", cell, hold, _getframe(2))
        raise RuntimeError("cannot release un-acquired lock")


RLock.__module__ = "_thread"
