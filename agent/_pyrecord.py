"""Per-thread records: what a thread holds, in which order it took that, what it waits for, and that it has ended.

A record is made when its thread first uses anything tracked, and its own thread writes it.  What others release stays on the
held stack of the holder until he looks; that an entry is true is seen in the cell.  A chain is the order in which the held
classes were taken, as a hash of 64 bits; one that was never seen is put into a ring, for the monitor.

Invariants see ``_pybase``, C2 and C6.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from concagent import _real
from concagent._pybase import Hold, Links, core, tls
from concagent._pyclass import ended_stats, fold_many
from concagent._pywait import leave_queues

if TYPE_CHECKING:
    from types import CodeType

    from concagent._pyclass import LockCell
    from concagent._pysync import WaiterLock
    from concagent._pywait import Wait

ORDER_RING_SIZE: Final = 4096
_MASK: Final = (1 << 64) - 1

_len, _range = len, range
_ident = _real.get_ident

_thread_serials = count(1)
_records: dict[int, ThreadRecord] = {}
_by_ident: dict[int, ThreadRecord] = {}
known_chains: set[int] = set()
order_ring: deque[tuple[tuple[int, ...], int, CodeType | None, int, int, bool]] = deque()


class ThreadRecord:
    """What one thread holds and waits for."""

    __slots__ = (
        "acquisitions", "agent", "chains", "daemon", "ended", "epoch", "held", "ident", "name", "native_id", "pid",
        "serial", "sleeps_on", "stats", "thread", "waits", "waker",
    )  # fmt: skip

    def __init__(self) -> None:
        self.serial = next(_thread_serials)
        self.pid = os.getpid()
        self.ident = _ident()
        self.native_id = _real.get_native_id()
        self.held: list[LockCell] = []
        self.chains: list[int] = []
        self.waits: list[Wait] = []
        self.epoch = 0
        self.ended = False
        self.agent = False
        self.sleeps_on: WaiterLock | None = None  # what the thread is asleep on, for its innermost wait
        self.waker: ThreadRecord | None = None  # who released the last waiter's lock that this thread took
        self.stats: dict[int, list[int]] = {}  # class serial -> contentions, wait ns, buckets...
        thread = _real.find_thread(self.ident)
        self.thread = _real.weak_reference(thread) if thread is not None else None
        self.name = thread.name if thread is not None else f"thread-{self.native_id}"
        self.daemon = thread.daemon if thread is not None else True

    def refresh(self) -> None:
        """Read the thread's name again: programs rename threads after start."""
        thread = self.thread() if self.thread is not None else None
        if thread is not None:
            self.name, self.daemon = thread.name, thread.daemon

    def waiting(self) -> Wait | None:
        """Return the innermost wait, None if the thread does not wait.

        A thread whose waiter's lock was released and that has not run since does not wait any more: nobody else need do
        anything for it to go on, and on a busy machine that may last.  (Who was woken for a lock of ours may find it taken
        once more; there the lock's holder tells.)
        """
        asleep = self.sleeps_on
        if asleep is not None and (asleep.is_given or not asleep.locked()):
            return None
        try:
            return self.waits[-1]
        except IndexError:
            return None


class _ThreadEnd:
    """Lies in the thread-local and is destroyed with it: the one way to see every thread end."""

    __slots__ = ("record",)

    def __init__(self, record: ThreadRecord) -> None:
        self.record = record

    def __del__(self) -> None:
        try:
            thread_ended(self.record)
        except Exception:  # noqa: BLE001 - the last thing at interpreter end: our own globals may be gone
            pass


def current_record() -> ThreadRecord:
    """Return the calling thread's record, made on first use."""
    try:
        return tls.record  # type: ignore[no-any-return]
    except AttributeError:
        return new_record()


def new_record() -> ThreadRecord:
    """Make the calling thread's record, unless a finalizer has done so meanwhile."""
    record = ThreadRecord()
    existing: ThreadRecord | None = getattr(tls, "record", None)
    if existing is not None:  # a finalizer came in between and needed one
        return existing
    old = _by_ident.get(record.ident)
    if old is not None:  # used a lock after its thread-local was gone, so nobody saw it end
        thread_ended(old)
    _records[record.serial] = record
    _by_ident[record.ident] = record
    tls.record = record
    tls.end = _ThreadEnd(record)
    return record


def thread_ended(record: ThreadRecord) -> None:
    """Mark a record's thread as ended; report what it still holds, and forget it if that is nothing."""
    if record.ended:
        return
    record.ended = True
    record.waker = None
    if _by_ident.get(record.ident) is record:
        _by_ident.pop(record.ident, None)
    leave_queues(record)
    if record.stats:
        ended_stats.append(record.stats)
        record.stats = {}
        fold_many()
    left = [cell for cell in record.held if holds(record, cell)]
    if not left:
        _records.pop(record.serial, None)
    elif (
        record.pid == os.getpid() and core.recording and not sys.is_finalizing()
    ):  # a fork's child ends its parent's threads
        for cell in left:
            core.listener.misuse("exit-held", cell, cell.state.get(0), None)


def holds(record: ThreadRecord, cell: LockCell) -> bool:
    """Return whether this thread is the present holder."""
    hold = cell.state.get(0)
    return hold is not None and hold[0] is record


def untracked(value: Any) -> Any:
    """Return a new value that is in no cycle, hidden from the garbage collector where the twin can do that."""
    return value


def readings(of: list[ThreadRecord]) -> list[tuple[int, Any, Any, tuple[Any, ...]]]:
    """Return (epoch, innermost wait, hold that it waits for, pairs of held cells and holds) of each record.

    In this order, as the argument of ``snapshots`` needs it; a hold is in the last only if the record still has it.
    """
    found = []
    for record in of:
        epoch = record.epoch
        wait = record.waiting()
        hold = wait.resource.hold_seen_by(wait) if wait is not None else None
        held = [(cell, cell.hold) for cell in record.held[:]]
        found.append((epoch, wait, hold, tuple([(cell, h) for cell, h in held if h is not None and h[0] is record])))
    return found


def records() -> list[ThreadRecord]:
    """Return the records of live threads, and of ended ones that still hold something."""
    return list(_records.values())


def record_of_ident(ident: int) -> ThreadRecord | None:
    """Return the record of the live thread with this OS thread id, None if it has done nothing tracked yet."""
    return _by_ident.get(ident)


def forget_record(record: ThreadRecord) -> None:
    """Drop an ended record from the table."""
    if record.ended:
        _records.pop(record.serial, None)


def mark_agent_thread() -> None:
    """Make the calling thread one of the agent's: nothing that it does is recorded."""
    current_record().agent = True
    try:  # for the kernel's lists of threads, and hooks/undrained.py
        descriptor = os.open("/proc/thread-self/comm", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(descriptor, b"concagent-agent")
    except OSError:
        pass
    finally:
        os.close(descriptor)


def forget_others(me: ThreadRecord) -> None:
    """Let every thread but the calling one have ended, as in a fork's child, without releasing anything."""
    _by_ident.clear()
    _by_ident[me.ident] = me
    for record in list(_records.values()):
        if record is not me:
            record.ended = True
            leave_queues(record)
            if not any(holds(record, cell) for cell in record.held):
                _records.pop(record.serial, None)


# ---------------------------------------------------------------- recording an acquisition


def links_for(record: ThreadRecord, cell: LockCell, hold: Hold, blocking: bool) -> Links | None:
    """Return what the held stack will grow by; None if this acquisition is not recorded.

    A chain that was never seen is put into the ring here if the lock looks free, and else after the wait: a thread that
    only tries has no order.  The first lock of a thread has no order to check.
    """
    cls = cell.cls
    if cls.signal or record.agent:
        return None
    held, chains = record.held, record.chains
    if _len(held) > 32:  # foreign releases leave stale entries that only we may remove
        _purge(record)
    if _len(chains) != _len(held):
        _rechain(record)
    if not held:
        return [cell], [cls.serial], False
    chain = (chains[-1] * 0x9E3779B97F4A7C15 + cls.serial) & _MASK
    fresh = chain not in known_chains
    if fresh and not cell.state:
        new_chain(record, cell, hold, chain, blocking)
        fresh = False
    return [cell], [chain], fresh


def new_chain(record: ThreadRecord, cell: LockCell, hold: Hold, chain: int, blocking: bool) -> None:
    """Remember a chain, and put it into the ring for the monitor."""
    if _len(known_chains) < 1 << 20:
        known_chains.add(chain)
    if _len(order_ring) >= ORDER_RING_SIZE:
        core.order_dropped += 1
        return
    outer = tuple(c.cls.serial for c in record.held if holds(record, c))
    if not outer:
        return
    order_ring.append((outer, cell.cls.serial, hold[1], hold[2], record.serial, blocking))


def popped(record: ThreadRecord, cell: LockCell) -> None:
    """Take a cell off the held stack: the last one nearly always, any other in hand-over-hand code."""
    held = record.held
    if held and held[-1] is cell:
        del held[-1]
        del record.chains[_len(held) :]
        return
    for index in _range(_len(held) - 1, -1, -1):
        if held[index] is cell:
            del held[index]
            _rechain(record)
            return


def _purge(record: ThreadRecord) -> None:
    """Drop entries that are no longer true: of locks that others released, or whose release was interrupted."""
    record.held[:] = [cell for cell in record.held if holds(record, cell)]
    _rechain(record)


def _rechain(record: ThreadRecord) -> None:
    chain = 0
    chains = []
    for cell in record.held:
        chain = (chain * 0x9E3779B97F4A7C15 + cell.cls.serial) & _MASK
        chains.append(chain)
    record.chains[:] = chains
