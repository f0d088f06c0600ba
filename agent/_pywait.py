"""Waiting for a lock: queue, parker, whose turn it is, time-outs, victims.

Waiting is the classic two-step: put a waiter with a parker of its own into the lock's queue, try once more, park.  The
releaser frees first and unparks the first waiter afterwards, so either the waiter's second try sees the lock free or the
releaser sees the waiter.  A waiter that leaves without the lock passes the wake-up on.  The parker belongs to the wait and
not to the thread, because a signal handler can wait inside a wait and would eat the outer wake-up.

Whoever comes by in between may take the lock first: that is faster, but a thread that holds it nearly always would let nobody
else in, since a waiter needs the GIL to try.  So the first waiter, after 2 ms, and once in 2 ms per lock, asks for the next
turn while it is parked: the releaser then puts the waiter's hold in the place of its own instead of taking that out.

Invariants see ``_pybase``, C3, C4 and C7.
Sources    parking_lot RawMutex (park/unpark protocol).
"""

from __future__ import annotations

import atexit
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final

from concagent import _real, rings
from concagent._pybase import Hold, core, uninterrupted
from concagent._pyclass import WAIT_BUCKETS_NS, statistics_row

if TYPE_CHECKING:
    from types import CodeType, FrameType

    from concagent._pyclass import LockCell
    from concagent._pyrecord import ThreadRecord

_FAIR_NS: Final = 2_000_000  # a waiter of so long may ask for the next turn, once in so long

_len = len
_clock = _real.monotonic_ns
_allocate = _real.allocate_lock


class Waiter:
    """One waiting acquire: its parker, whether it was given the lock, and the exception that a victim is to raise."""

    __slots__ = ("asked", "given", "hold", "parker", "victim")

    def __init__(self, hold: Hold) -> None:
        self.hold = hold
        self.asked = False  # the waiter writes
        self.given = False  # the releaser writes
        self.parker = _allocate()
        self.parker.acquire()
        self.victim: BaseException | None = None

    def unpark(self) -> None:
        """Wake the waiter; waking twice is the same as once."""
        try:
            self.parker.release()
        except RuntimeError:  # already awake
            pass


class Wait:
    """A published wait: what for, since when, whether it gives up by itself, and from where.

    ``resource`` is anything with ``serial``, ``kind`` and ``hold_seen_by(wait)``.
    """

    __slots__ = ("code", "lasti", "resource", "since_ns", "timed", "token", "user", "waiter")

    def __init__(self, resource: Any, timed: bool, code: CodeType | None, lasti: int) -> None:
        self.resource = resource
        self.timed = timed
        self.code = code
        self.lasti = lasti
        self.since_ns = _clock()
        self.token: Hold | None = None
        self.waiter: Waiter | None = None
        self.user: Any = None  # the user's lock object, alive on the waiter's stack anyway

    @property
    def can_be_woken(self) -> bool:
        """Return whether the wait is for a lock of ours, so that a victim can be woken out of it."""
        return self.waiter is not None


@atexit.register
def _begin_end() -> None:
    """Give nobody a lock any more: a daemon thread that is parked when the interpreter ends never comes back."""
    core.ending = True


@uninterrupted
def free(cell: LockCell) -> Hold | None:
    """Take the hold out of the cell and wake the first waiter, or give it the lock; None if there was no hold."""
    try:
        state = cell.state
        hold: Hold = state[0]
        if not cell.turn:
            del state[0]
            if cell.waiters:
                cell.waiters[0].parker.release()
        else:
            try:  # 3.10 does not look before a ``try``
                heir = cell.turn[0]
                if not core.ending:
                    del cell.turn[0]
                    state[0] = heir.hold
                    heir.given = True
                    heir.parker.release()
                else:
                    del state[0]
                    heir.parker.release()
            except KeyError:  # without a GIL: it has just left
                del state[0]
                if cell.waiters:
                    cell.waiters[0].parker.release()
    except KeyError:
        return None
    except (RuntimeError, IndexError):  # already awake; already gone
        pass
    return hold


def ask_no_more(cell: LockCell, waiter: Waiter) -> None:
    """Take back what a waiter asked for that cannot do so itself just now: its thread is gone, or in a signal handler."""
    if cell.turn.get(0) is waiter:
        waiter.asked = False
        cell.turn.clear()


def _enqueue(cell: LockCell, waiter: Waiter, waits: list[Wait]) -> None:
    """Put a waiter into the queue: last, but before those of the same thread, which runs a signal handler in them."""
    mine = [wait.waiter for wait in waits[:-1] if wait.resource is cell and wait.waiter is not None]
    for outer in mine:
        ask_no_more(cell, outer)
    if mine:
        cell.waiters.appendleft(waiter)
    else:
        cell.waiters.append(waiter)


def wait_for(cell: LockCell, hold: Hold, timeout: float, frame: FrameType, user: Any) -> bool:
    """Wait until ``hold`` is in the cell, the time is up, or somebody makes us a victim; True if the lock is ours."""
    record = hold[0]
    recorded = core.recording and not record.agent
    deadline = None if timeout < 0 else _clock() + int(timeout * 1e9)
    waiter = Waiter(hold)
    wait = Wait(cell, deadline is not None, frame.f_code, frame.f_lasti)
    wait.token, wait.waiter, wait.user = hold, waiter, user
    row = statistics_row(record, cell.cls.serial) if recorded else None
    state, waiters, turn, waits = cell.state, cell.waiters, cell.turn, record.waits
    walked = due = False
    woken = True
    try:
        waits.append(wait)
        record.epoch += 1
        if _len(waits) == 1:
            waiters.append(waiter)
        else:
            _enqueue(cell, waiter, waits)
        while True:
            # Who only looked whether it is time to ask does not take the lock before those that wait longer.
            if (woken or not waiters or waiters[0] is waiter) and state.setdefault(0, hold) is hold:
                return True
            if waiter.victim is not None:
                raise waiter.victim
            if not walked:
                walked = True
                if recorded and deadline is None:
                    error = rings.walk(record)
                    if error is not None:
                        raise error
            now = _clock()
            left = -1 if deadline is None else deadline - now
            if deadline is not None and left <= 0:
                return state.setdefault(0, hold) is hold
            first = waiters and waiters[0] is waiter
            young = _FAIR_NS - (now - wait.since_ns)
            if young > 0:
                left = young if deadline is None or young < left else left
            elif first and not due and now - cell.asked_ns >= _FAIR_NS:
                due = True
                cell.asked_ns = now
            try:
                if first and due:
                    turn[0] = waiter
                    waiter.asked = True
                woken = waiter.parker.acquire() if left < 0 else waiter.parker.acquire(True, left / 1e9)
            finally:
                try:  # straight, as a release is: from here on the lock is ours, or nobody will give it to us
                    if waiter.asked:
                        waiter.asked = False
                        if turn[0] is waiter:
                            del turn[0]
                except KeyError:
                    while not waiter.given:  # under the GIL it is
                        pass
            if waiter.given:
                return True
    finally:
        # One C call a rung: an exception of a signal handler comes after the call, and the rest is done on the way out.
        record.epoch += 1
        wait.user = None
        try:
            if waits and waits[-1] is wait:
                del waits[-1]
            elif wait in waits:
                waits.remove(wait)
        finally:
            try:
                waiters.remove(waiter)
            except ValueError:  # a fork's child emptied the queue
                pass
            finally:
                # The wake-up may have been ours, and the lock may have been released again by somebody else since.
                if waiters and not state:
                    try:
                        waiters[0].parker.release()
                    except (RuntimeError, IndexError):  # already awake; already gone
                        pass
        if row is not None:
            waited_ns = _clock() - wait.since_ns
            row[0] += 1
            row[1] += waited_ns
            row[2 + bisect_left(WAIT_BUCKETS_NS, waited_ns)] += 1


def wake_victim(wait: Wait, error: BaseException) -> bool:
    """Make a blocked acquire raise ``error``; False if that wait cannot be woken (it is not for a lock of ours)."""
    waiter = wait.waiter
    if waiter is None:
        return False
    waiter.victim = error
    waiter.unpark()
    return True


def leave_queues(record: ThreadRecord) -> None:
    """Take a thread out of all queues: in a fork's child the parent's waiters would swallow wake-ups for ever."""
    for wait in record.waits:
        if wait.waiter is not None:
            cell = wait.resource
            ask_no_more(cell, wait.waiter)
            try:
                cell.waiters.remove(wait.waiter)
            except ValueError:
                pass
            if cell.state.get(0) is wait.token:  # it was given the lock and never came to know
                free(cell)
    record.waits.clear()
