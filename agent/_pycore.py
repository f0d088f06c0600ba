"""Lock and RLock that record who holds them and who waits for them: the Python twin of the core.

The whole state of a lock is one dictionary entry.  ``state.setdefault(0, hold)`` either stores *this* acquisition's tuple
(holder, site, how) or returns the one that is there: under the GIL, and on free-threaded builds under the dict's
own lock, that is an atomic test-and-set that names the holder in the same instant.  So there is no moment at which a lock
is taken and nobody is its holder, and no moment at which a holder is named who has let go.  It also makes the lock safe
against asynchronous exceptions: whatever interrupted an ``acquire``, one look tells whether it is ours and must be undone.

Waiting is the classic two-step: put a waiter with a parker of its own into the lock's queue, try once more, park.  The
releaser frees first and unparks the first waiter afterwards, so either the waiter's second try sees the lock free or the
releaser sees the waiter.  A waiter that leaves without the lock passes the wake-up on.  The parker belongs to the wait and
not to the thread, because a signal handler can wait inside a wait and would eat the outer wake-up.

Assumes    dict.setdefault/pop and deque.append/remove of plain objects are atomic.
Invariants C1 ``cell.state`` is {} or {0: hold}; a hold is created by the thread that acquires and never changed.
           C2 ``record.held``, ``waits``, ``epoch``, ``chains`` are written by the record's own thread only.
           C3 a wait is published before the walk and before parking, and ended on every way out.
           C4 a wait whose own hold is in the cell has been satisfied: it is no edge, whatever the wait stack says.
           C5 nothing here refers to a user's lock object except its own waits (whose frames do so anyway).
Not here   no finding is made, nothing is logged, no user code runs: the listener is told and may return an exception.
Sources    parking_lot RawMutex (park/unpark protocol); CPython Modules/_threadmodule.c (semantics, messages).
"""

from __future__ import annotations

import os
import sys
from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NoReturn

from concagent import _real, rings
from concagent.rings import Listener

if TYPE_CHECKING:
    from types import CodeType, FrameType

NAME: Final = "python"
INSTANTIABLE: Final = sys.version_info >= (3, 13)  # ``type(Lock())()`` is refused before
ORDER_RING_SIZE: Final = 4096
WAIT_BUCKETS_NS: Final = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000, 10_000_000_000, 60_000_000_000)
_MASK: Final = (1 << 64) - 1

_getframe = _real.getframe
_clock = _real.monotonic_ns
_allocate = _real.allocate_lock
_ident = _real.get_ident
_tls: Any = _real.ThreadLocal()

RawSite = tuple["CodeType", int]
# record, code, offset, entered by ``with`` (or by the standard library, which releases what it takes)
Hold = tuple["ThreadRecord", "CodeType | None", int, bool]


class LockClass:
    """Locks created at one site: the unit by which locks are counted and judged."""

    __slots__ = ("cells", "code", "kind", "lasti", "name", "retired", "serial", "signal")

    def __init__(self, serial: int, kind: str, code: CodeType | None, lasti: int) -> None:
        self.serial = serial
        self.kind = kind
        self.code = code
        self.lasti = lasti
        self.signal = False  # set once, by a foreign release; never cleared
        self.cells: dict[int, LockCell] = {}
        self.retired: deque[int] = deque()  # acquisitions of locks that are gone
        self.name: str | None = None  # the name last given to one of its locks

    @property
    def alive(self) -> int:
        """Return how many locks of this class exist."""
        return len(self.cells)


class LockCell:
    """What is known of one lock; outlives it in records and reports, and never refers to it."""

    __slots__ = ("acquisitions", "cls", "depth", "name", "serial", "since_ns", "state", "waiters")

    def __init__(self, cls: LockClass) -> None:
        self.serial = next(_serials)
        self.cls = cls
        self.state: dict[int, Hold] = {}
        self.waiters: deque[Waiter] = deque()
        self.depth = 0  # re-entries of an RLock; the owner writes
        self.acquisitions = 0  # written while held, as is since_ns
        self.since_ns = 0
        self.name: str | None = None

    @property
    def kind(self) -> str:
        """Return ``lock`` or ``rlock``."""
        return self.cls.kind

    @property
    def hold(self) -> Hold | None:
        """Return the present hold; the same object for as long as it lasts."""
        return self.state.get(0)

    def hold_seen_by(self, wait: Wait) -> Hold | None:
        """Return the hold that a waiter waits for; None if it is free, its own, or may be ended by anybody."""
        hold = self.state.get(0)
        if hold is None or hold is wait.token or self.cls.signal:
            return None
        return hold


class Waiter:
    """One waiting acquire: its parker, and the exception that a victim is to raise."""

    __slots__ = ("parker", "victim")

    def __init__(self) -> None:
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


class ThreadRecord:
    """What one thread holds and waits for."""

    __slots__ = (
        "acquisitions", "agent", "chains", "daemon", "ended", "epoch", "held", "ident", "name", "native_id", "pid",
        "serial", "stats", "thread", "waits",
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
        """Return the innermost wait, None if the thread does not wait."""
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


_serials = count(1)
_thread_serials = count(1)
_class_serials = count(1)
_classes: dict[tuple[str, CodeType | None, int], LockClass] = {}
_lines: dict[tuple[str, str, int], LockClass] = {}
_records: dict[int, ThreadRecord] = {}
_by_ident: dict[int, ThreadRecord] = {}
_known_chains: set[int] = set()
_order_ring: deque[tuple[tuple[int, ...], int, CodeType | None, int, int, bool]] = deque()
_ended_stats: deque[dict[int, list[int]]] = deque()
_totals: dict[int, list[int]] = {}
_totals_lock = _allocate()
_counters = {"created": 0, "order-dropped": 0}
_transparent: set[str] = set()
_listener: Listener = Listener()
_recording = False
_class_limit = 8191


# ---------------------------------------------------------------- records


def current_record() -> ThreadRecord:
    """Return the calling thread's record, made on first use."""
    try:
        return _tls.record  # type: ignore[no-any-return]
    except AttributeError:
        return _new_record()


def _new_record() -> ThreadRecord:
    record = ThreadRecord()
    _records[record.serial] = record
    _by_ident[record.ident] = record
    _tls.record = record
    _tls.end = _ThreadEnd(record)
    return record


def thread_ended(record: ThreadRecord) -> None:
    """Mark a record's thread as ended; report what it still holds, and forget it if that is nothing."""
    if record.ended:
        return
    record.ended = True
    if _by_ident.get(record.ident) is record:
        _by_ident.pop(record.ident, None)
    if record.stats:
        _ended_stats.append(record.stats)
        record.stats = {}
    left = [cell for cell in record.held if _holds(record, cell)]
    if not left:
        _records.pop(record.serial, None)
    elif record.pid == os.getpid() and _recording and not sys.is_finalizing():  # a fork's child ends its parent's threads
        for cell in left:
            _listener.misuse("exit-held", cell, cell.state.get(0), None)


def _holds(record: ThreadRecord, cell: LockCell) -> bool:
    hold = cell.state.get(0)
    return hold is not None and hold[0] is record


def records() -> list[ThreadRecord]:
    """Return the records of live threads, and of ended ones that still hold something."""
    return list(_records.values())


def record_of_ident(ident: int) -> ThreadRecord | None:
    """Return the record of the live thread with this OS thread id, None if it has done nothing tracked yet."""
    return _by_ident.get(ident)


def next_serial() -> int:
    """Return a serial for a resource; serials are never reused."""
    return next(_serials)


def forget_record(record: ThreadRecord) -> None:
    """Drop an ended record from the table."""
    if record.ended:
        _records.pop(record.serial, None)


def mark_agent_thread() -> None:
    """Make the calling thread one of the agent's: nothing that it does is recorded."""
    current_record().agent = True


# ---------------------------------------------------------------- recording an acquisition


def _pushed(record: ThreadRecord, cell: LockCell, hold: Hold, blocking: bool) -> None:
    """Put a cell on the held stack and look its chain up; the first lock of a thread has no order to check."""
    held = record.held
    chain = cell.cls.serial
    if held:
        if len(held) > 32:  # foreign releases leave stale entries that only we may remove
            _purge(record)
        if record.chains:
            chain = (record.chains[-1] * 0x9E3779B97F4A7C15 + chain) & _MASK
        if blocking and chain not in _known_chains:  # a try-lock makes no order, and must not hide who does
            _new_chain(record, cell, hold, chain, blocking)
    held.append(cell)
    record.chains.append(chain)


def _new_chain(record: ThreadRecord, cell: LockCell, hold: Hold, chain: int, blocking: bool) -> None:
    if len(_known_chains) < 1 << 20:
        _known_chains.add(chain)
    if len(_order_ring) >= ORDER_RING_SIZE:
        _counters["order-dropped"] += 1
        return
    outer = tuple(c.cls.serial for c in record.held)
    _order_ring.append((outer, cell.cls.serial, hold[1], hold[2], record.serial, blocking))


def _popped(record: ThreadRecord, cell: LockCell) -> None:
    """Take a cell off the held stack: the last one nearly always, any other in hand-over-hand code."""
    held = record.held
    if held and held[-1] is cell:
        held.pop()
        record.chains.pop()
        return
    for index in range(len(held) - 1, -1, -1):
        if held[index] is cell:
            del held[index]
            _rechain(record)
            return


def _purge(record: ThreadRecord) -> None:
    record.held[:] = [cell for cell in record.held if _holds(record, cell)]
    _rechain(record)


def _rechain(record: ThreadRecord) -> None:
    chain = 0
    chains = []
    for cell in record.held:
        chain = (chain * 0x9E3779B97F4A7C15 + cell.cls.serial) & _MASK
        chains.append(chain)
    record.chains[:] = chains


# ---------------------------------------------------------------- waiting


def begin_wait(resource: Any, timed: bool, frame: FrameType | None) -> Wait:
    """Publish that the calling thread waits for something that is not a lock of ours; pair with ``end_wait``."""
    record = current_record()
    wait = Wait(resource, timed, frame.f_code if frame else None, frame.f_lasti if frame else 0)
    record.waits.append(wait)
    record.epoch += 1
    return wait


def end_wait(wait: Wait) -> None:
    """End a wait; the epoch moves, so nobody can take the next wait for this one."""
    record = current_record()
    record.epoch += 1
    waits = record.waits
    if waits and waits[-1] is wait:
        waits.pop()
    elif wait in waits:
        waits.remove(wait)


def check_wait(wait: Wait) -> None:
    """Walk from a wait that was just published; raises what the listener answers to a ring."""
    record = current_record()
    if record.agent or wait.timed or not _recording:
        return
    error = rings.walk(record)
    if error is not None:
        raise error


def wake_victim(wait: Wait, error: BaseException) -> bool:
    """Make a blocked acquire raise ``error``; False if that wait cannot be woken (it is not for a lock of ours)."""
    waiter = wait.waiter
    if waiter is None:
        return False
    waiter.victim = error
    waiter.unpark()
    return True


def _wait_for(cell: LockCell, hold: Hold, timeout: float, frame: FrameType, user: Any) -> bool:
    """Wait until ``hold`` is in the cell, the time is up, or somebody makes us a victim; True if the lock is ours."""
    record = hold[0]
    recorded = _recording and not record.agent
    deadline = None if timeout < 0 else _clock() + int(timeout * 1e9)
    waiter = Waiter()
    wait = Wait(cell, deadline is not None, frame.f_code, frame.f_lasti)
    wait.token, wait.waiter, wait.user = hold, waiter, user
    state, waiters = cell.state, cell.waiters
    got = False
    walked = False
    waiters.append(waiter)
    try:
        record.waits.append(wait)
        record.epoch += 1
        while True:
            if state.setdefault(0, hold) is hold:
                got = True
                return True
            if waiter.victim is not None:
                raise waiter.victim
            if not walked:
                walked = True
                if recorded and deadline is None:
                    error = rings.walk(record)
                    if error is not None:
                        raise error
            if deadline is None:
                waiter.parker.acquire()
            else:
                left = (deadline - _clock()) / 1e9
                if left <= 0 or not waiter.parker.acquire(True, left):
                    got = state.setdefault(0, hold) is hold
                    return got
    finally:
        record.epoch += 1
        if record.waits and record.waits[-1] is wait:
            record.waits.pop()
        elif wait in record.waits:
            record.waits.remove(wait)
        wait.user = None
        try:
            waiters.remove(waiter)
        except ValueError:  # a fork's child emptied the queue
            pass
        if not got and state.get(0) is not hold and not state:
            _unpark_first(waiters)
        if recorded:
            _count_wait(record, cell.cls.serial, _clock() - wait.since_ns)


def _unpark_first(waiters: deque[Waiter]) -> None:
    try:
        waiters[0].unpark()
    except IndexError:
        pass


def _count_wait(record: ThreadRecord, class_serial: int, waited_ns: int) -> None:
    row = record.stats.get(class_serial)
    if row is None:
        row = record.stats[class_serial] = [0, 0] + [0] * (len(WAIT_BUCKETS_NS) + 1)
    row[0] += 1
    row[1] += waited_ns
    for index, bound in enumerate(WAIT_BUCKETS_NS):
        if waited_ns <= bound:
            row[2 + index] += 1
            return
    row[-1] += 1


# ---------------------------------------------------------------- Lock


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
        frame = _getframe(1)
        if args or kwargs:
            blocking, timeout = _arguments(args, kwargs)
            return _acquire_lock(self, frame, blocking, timeout, False)
        return _acquire_lock(self, frame, True, -1, False)

    def __enter__(self) -> bool:
        """Take the lock for a ``with`` block: the holder, and nobody else, is going to release it."""
        return _acquire_lock(self, _getframe(1), True, -1, True)

    def release(self) -> None:
        """Release the lock; RuntimeError if it is not held.  Any thread may do it, as with the original."""
        _release_lock(self, _getframe(1))

    def __exit__(self, *exc: object) -> None:
        """Release at the end of a ``with`` block."""
        _release_lock(self, _getframe(1))

    def locked(self) -> bool:
        """Return whether the lock is held."""
        return bool(self._cell.state)

    acquire_lock = acquire
    release_lock = release
    locked_lock = locked

    def _at_fork_reinit(self) -> None:
        _reinit(self._cell)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("cannot pickle '_thread.lock' object")

    def __del__(self) -> None:
        try:
            _destroyed(self._cell)
        except Exception:  # noqa: BLE001 - at interpreter end our own globals may be gone
            pass

    def __repr__(self) -> str:
        status = "locked" if self._cell.state else "unlocked"
        return f"<{status} _thread.lock object at {id(self):#x}>"


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, float]:
    """Parse acquire's arguments; the original itself, on a free lock, raises what is to be raised."""
    _allocate().acquire(*args, **kwargs)
    blocking = args[0] if args else kwargs.get("blocking", True)
    timeout = args[1] if len(args) > 1 else kwargs.get("timeout", -1)
    return bool(blocking), float(timeout)


def _acquire_lock(lock: Lock, frame: FrameType, blocking: bool, timeout: float, entered: bool) -> bool:
    try:
        record = _tls.record
    except AttributeError:
        record = _new_record()
    while frame.f_code.co_filename in _transparent and frame.f_back is not None:
        frame, entered = frame.f_back, True
    cell = lock._cell
    state = cell.state
    hold: Hold = (record, frame.f_code, frame.f_lasti, entered)
    try:
        if state.setdefault(0, hold) is not hold:
            if not blocking or timeout == 0:
                return False
            if not _wait_for(cell, hold, timeout, frame, lock):
                return False
        cell.since_ns = _clock()
        cell.acquisitions += 1
        if _recording and not cell.cls.signal and not record.agent:
            _pushed(record, cell, hold, blocking and timeout < 0)
        return True
    except BaseException:
        # Whatever interrupted us (KeyboardInterrupt, a victim's error, MemoryError): the caller will not release.
        if state.get(0) is hold:
            _undo(record, cell, hold)
        raise


def _undo(record: ThreadRecord, cell: LockCell, hold: Hold) -> None:
    _popped(record, cell)
    if cell.state.get(0) is hold:
        cell.state.pop(0, None)
        _unpark_first(cell.waiters)


def _release_lock(lock: Lock, frame: FrameType) -> None:
    cell = lock._cell
    hold = cell.state.pop(0, None)
    if hold is None:
        if _recording:
            _listener.misuse("double-release", cell, None, frame)
        raise RuntimeError("release unlocked lock")
    if cell.waiters:
        _unpark_first(cell.waiters)
    holder = hold[0]
    if holder.ident == _ident():
        if holder.held:
            _popped(holder, cell)
    elif _recording and not holder.agent:
        cell.cls.signal = True  # an event, not a mutex; the holder drops its stale entry itself


def _destroyed(cell: LockCell) -> None:
    cls = cell.cls
    cls.cells.pop(cell.serial, None)
    if cell.acquisitions:
        cls.retired.append(cell.acquisitions)
        if len(cls.retired) > 4096:
            _compact(cls)
    hold = cell.state.get(0)
    if hold is not None and _recording and not cls.signal and not sys.is_finalizing():
        _listener.misuse("destroy-held", cell, hold, None)


def _compact(cls: LockClass) -> int:
    """Fold the counts of gone locks into one; each step is atomic, so finalizers may come in between."""
    total = 0
    for _ in range(len(cls.retired)):
        try:
            total += cls.retired.popleft()
        except IndexError:
            break
    cls.retired.append(total)
    return total


# ---------------------------------------------------------------- RLock


class RLock:
    """A reentrant lock; drop-in for ``_thread.RLock`` of the running version, with a cell that names its owner."""

    __slots__ = ("__weakref__", "_cell")
    _cell: LockCell

    def __new__(cls, *args: Any, **kwargs: Any) -> RLock:
        """Return a new lock; arguments are accepted and ignored as the original does."""
        lock = object.__new__(cls)
        lock._cell = _make_cell("rlock", _getframe(1))
        return lock

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Ignore what the original ignores."""

    def acquire(self, /, *args: Any, **kwargs: Any) -> bool:
        """Take the lock, once more if it is ours; ``acquire(blocking=True, timeout=-1)`` as in ``threading``."""
        frame = _getframe(1)
        if args or kwargs:
            blocking, timeout = _arguments(args, kwargs)
            return _acquire_rlock(self, frame, blocking, timeout, False)
        return _acquire_rlock(self, frame, True, -1, False)

    def __enter__(self) -> bool:
        """Take the lock for a ``with`` block."""
        return _acquire_rlock(self, _getframe(1), True, -1, True)

    def release(self) -> None:
        """Release the lock once; RuntimeError unless the caller owns it."""
        _release_rlock(self._cell, _getframe(1))

    def __exit__(self, *exc: object) -> None:
        """Release at the end of a ``with`` block."""
        _release_rlock(self._cell, _getframe(1))

    def _is_owned(self) -> bool:
        hold = self._cell.state.get(0)
        return hold is not None and hold[0].ident == _ident()

    def _recursion_count(self) -> int:
        return self._cell.depth if self._is_owned() else 0

    if sys.version_info >= (3, 14):

        def locked(self) -> bool:
            """Return whether anybody holds the lock."""
            return bool(self._cell.state)

    def _release_save(self) -> tuple[int, int]:
        cell = self._cell
        if not cell.state:
            raise RuntimeError("cannot release un-acquired lock")
        depth = cell.depth
        hold = cell.state[0]
        cell.depth = 0
        cell.state.pop(0, None)
        if cell.waiters:
            _unpark_first(cell.waiters)
        _popped(hold[0], cell)
        return depth, hold[0].ident

    def _acquire_restore(self, state: tuple[int, int], /) -> None:
        depth, _owner = state
        _acquire_rlock(self, _getframe(1), True, -1, True)
        self._cell.depth = depth

    def _at_fork_reinit(self) -> None:
        self._cell.depth = 0
        _reinit(self._cell)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        name = _type_name(self) if type(self) is RLock else type(self).__name__
        raise TypeError(f"cannot pickle '{name}' object")

    def __del__(self) -> None:
        try:
            _destroyed(self._cell)
        except Exception:  # noqa: BLE001 - at interpreter end our own globals may be gone
            pass

    def __repr__(self) -> str:
        hold = self._cell.state.get(0)
        status = "locked" if hold is not None else "unlocked"
        owner = hold[0].ident if hold is not None else 0
        depth = self._cell.depth if hold is not None else 0
        return f"<{status} {_type_name(self)} object owner={owner} count={depth} at {id(self):#x}>"


def _type_name(lock: RLock) -> str:
    """Return the name that the original shows: qualified for the type itself, bare for a subclass's errors."""
    cls = type(lock)
    return f"{cls.__module__}.{cls.__qualname__}"


def _acquire_rlock(lock: RLock, frame: FrameType, blocking: bool, timeout: float, entered: bool) -> bool:
    try:
        record = _tls.record
    except AttributeError:
        record = _new_record()
    while frame.f_code.co_filename in _transparent and frame.f_back is not None:
        frame, entered = frame.f_back, True
    cell = lock._cell
    state = cell.state
    hold: Hold = (record, frame.f_code, frame.f_lasti, entered)
    try:
        present = state.setdefault(0, hold)
        if present is not hold:
            if present[0].ident == record.ident:
                cell.depth += 1
                return True
            if not blocking or timeout == 0:
                return False
            if not _wait_for(cell, hold, timeout, frame, lock):
                return False
        cell.depth = 1
        cell.since_ns = _clock()
        cell.acquisitions += 1
        if _recording and not record.agent:
            _pushed(record, cell, hold, blocking and timeout < 0)
        return True
    except BaseException:
        if state.get(0) is hold:
            _undo(record, cell, hold)
        raise


def _release_rlock(cell: LockCell, frame: FrameType) -> None:
    hold = cell.state.get(0)
    if hold is None or hold[0].ident != _ident():
        if _recording:
            _listener.misuse("foreign-release" if hold is not None else "double-release", cell, hold, frame)
        raise RuntimeError("cannot release un-acquired lock")
    if cell.depth > 1:
        cell.depth -= 1
        return
    cell.depth = 0
    _popped(hold[0], cell)
    cell.state.pop(0, None)
    if cell.waiters:
        _unpark_first(cell.waiters)


# ---------------------------------------------------------------- making locks


def _make_cell(kind: str, frame: FrameType | None) -> LockCell:
    """Return a cell of the class of the creating line; frames of transparent files (``threading`` itself) are skipped."""
    at = frame
    while at is not None and _skipped_at_creation(at.f_code):
        at = at.f_back
    if at is None:
        at = frame
    key = (kind, at.f_code, at.f_lasti) if at is not None else (kind, None, 0)
    cls = _classes.get(key)
    if cls is None:
        cls = _new_class(key, at)
    cell = LockCell(cls)
    cls.cells[cell.serial] = cell
    return cell


def _skipped_at_creation(code: CodeType) -> bool:
    """The caller is the creator: of what ``threading`` makes, and of defaults made by a dataclass's ``__init__``."""
    name = code.co_filename
    return name in _transparent or (name == "<string>" and code.co_name == "__init__")


def _new_class(key: tuple[str, CodeType | None, int], frame: FrameType | None) -> LockClass:
    """Return the class of a line seen for the first time; two calls on one line are one class."""
    if len(_classes) >= _class_limit:
        key, frame = (key[0], None, 0), None
    line = (key[0], frame.f_code.co_filename, frame.f_lineno) if frame is not None else (key[0], "", 0)
    cls = _lines.setdefault(line, LockClass(next(_class_serials), *key))
    return _classes.setdefault(key, cls)


def _make_lock(frame: FrameType | None) -> Lock:
    lock = object.__new__(Lock)
    lock._cell = _make_cell("lock", frame)
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

    def __new__(cls, *args: Any, **kwargs: Any) -> Lock:  # type: ignore[misc]
        """Return a new, free lock."""
        if args or kwargs:
            _real.allocate_lock(*args, **kwargs)  # raises as the original does
        return _make_lock(_getframe(1))


for _type, _name in ((Lock, "lock"), (RLock, "RLock"), (allocate_lock, "allocate_lock")):
    _type.__module__ = "_thread"
    _type.__name__ = _type.__qualname__ = _name


# ---------------------------------------------------------------- control


def start(listener: Listener, *, class_limit: int = 8191) -> None:
    """Begin to record; ``listener`` hears of rings, orphans and misuse."""
    global _listener, _recording, _class_limit
    _listener = listener
    _class_limit = class_limit
    _recording = True


def stop() -> None:
    """Stop recording; locks that exist go on as plain locks."""
    global _listener, _recording
    _recording = False
    _listener = Listener()


def is_recording() -> bool:
    """Return whether acquisitions are recorded."""
    return _recording


def add_transparent_file(filename: str) -> None:
    """Let locks created by code of this file count as created by its caller."""
    _transparent.add(filename)


def is_transparent(code: CodeType) -> bool:
    """Return whether frames of this code count as their caller's."""
    return code.co_filename in _transparent


def cell_of(lock: object) -> LockCell | None:
    """Return the cell of a lock of ours, None for anything else."""
    return lock._cell if isinstance(lock, (Lock, RLock)) and type(lock) is not _real.LockType else None


def name_lock(lock: object, name: str) -> bool:
    """Give a lock a name; False if it is not one of ours."""
    cell = cell_of(lock)
    if cell is None:
        return False
    cell.name = cell.cls.name = name
    return True


def classes() -> list[LockClass]:
    """Return all lock classes."""
    return list(_lines.values())


def acquisitions(cls: LockClass) -> int:
    """Return how often locks of a class were acquired, gone ones included."""
    alive = sum(cell.acquisitions for cell in list(cls.cells.values()))
    return alive + _compact(cls)


def wait_statistics() -> dict[int, list[int]]:
    """Return per class serial: contentions, waited ns, and counts per bucket of ``WAIT_BUCKETS_NS`` (last: longer)."""
    with _totals_lock:
        while _ended_stats:
            _add_rows(_totals, _ended_stats.popleft())
        result: dict[int, list[int]] = {serial: list(row) for serial, row in _totals.items()}
    for record in records():
        _add_rows(result, record.stats)
    return result


def _add_rows(into: dict[int, list[int]], rows: dict[int, list[int]]) -> None:
    for serial, row in list(rows.items()):
        old = into.get(serial)
        into[serial] = list(row) if old is None else [a + b for a, b in zip(old, row)]


def hold_statistics() -> dict[int, list[int]]:
    """Return {}: this twin has no cheap clock for holds and times none."""
    return {}


def tick() -> None:
    """Do nothing: every hold has its own time in this twin."""


def drain_order() -> list[tuple[tuple[int, ...], int, CodeType | None, int, int, bool]]:
    """Return the chains seen for the first time since the last call: held classes, new class, code, offset, thread, blocking."""
    result = []
    for _ in range(len(_order_ring)):
        result.append(_order_ring.popleft())
    return result


def order_dropped() -> int:
    """Return how many new chains were dropped because the ring was full."""
    return _counters["order-dropped"]


def _reinit(cell: LockCell) -> None:
    """Free a lock in a fork's child; whoever held or awaited it does not exist there."""
    hold = cell.state.get(0)
    cell.state.clear()
    cell.waiters.clear()
    if hold is not None:
        _popped(hold[0], cell)


def after_fork_in_child() -> None:
    """Keep the calling thread's record; every other thread has ended without releasing anything."""
    me = current_record()
    me.pid = os.getpid()
    me.ident = _ident()
    me.native_id = _real.get_native_id()
    me.refresh()
    _by_ident.clear()
    _by_ident[me.ident] = me
    for record in list(_records.values()):
        if record is not me:
            record.ended = True
            record.waits.clear()
            if not any(_holds(record, cell) for cell in record.held):
                _records.pop(record.serial, None)
    _order_ring.clear()
    global _totals_lock
    _totals_lock = _allocate()


def reset_for_tests() -> None:
    """Forget chains and statistics, so that one test's acquisitions do not show in the next."""
    _known_chains.clear()
    _order_ring.clear()
    _ended_stats.clear()
    _totals.clear()
    _counters["order-dropped"] = 0
    for record in records():
        record.stats.clear()

