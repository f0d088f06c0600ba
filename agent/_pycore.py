"""Lock and RLock that record who holds them and who waits for them: the Python twin of the core.

The whole state of a lock is one dictionary entry.  ``state.setdefault(0, hold)`` either stores *this* acquisition's tuple
(holder, site, how) or returns the one that is there: under the GIL, and on free-threaded builds under the dict's
own lock, that is an atomic test-and-set that names the holder in the same instant.  So there is no moment at which a lock
is taken and nobody is its holder, and no moment at which a holder is named who has let go.

The originals are C: no signal handler, no finalizer and no thread switch comes between their steps.  Ours are Python, and the
interpreter looks for all three when a function begins, after each call of a C function and at each jump backwards (3.10: at
any jump that is taken), but not between other instructions.  So everything that must not be torn apart is straight code with
at most one C call, which is its last act: a release takes the hold out with ``del`` and wakes with one call; what interrupted
an ``acquire`` finds in the cell whether there is something to undo; a queue is left by a ladder of ``finally``, one call a rung.
`_uninterrupted` removes the look at the beginning of a function, so that a Ctrl-C cannot keep a ``with`` from releasing.
Objects that the garbage collector counts are made before the lock is taken: else it could run a finalizer that wants the
same lock inside of our acquire, where with the original there is no inside.

Waiting is the classic two-step: put a waiter with a parker of its own into the lock's queue, try once more, park.  The
releaser frees first and unparks the first waiter afterwards, so either the waiter's second try sees the lock free or the
releaser sees the waiter.  A waiter that leaves without the lock passes the wake-up on.  The parker belongs to the wait and
not to the thread, because a signal handler can wait inside a wait and would eat the outer wake-up.

Whoever comes by in between may take the lock first: that is faster, but a thread that holds it nearly always would let nobody
else in, since a waiter needs the GIL to try.  So the first waiter, after 2 ms, and once in 2 ms per lock, asks for the next
turn while it is parked: the releaser then puts the waiter's hold in the place of its own instead of taking that out.

Assumes    dict.setdefault, del and deque.append/remove of plain objects are atomic.
Invariants C1 ``cell.state`` is {} or {0: hold}; a hold is created by the thread that acquires and never changed.
           ``cell.extra`` is 0 whenever the state is {}; only the owner changes it.
           C2 ``record.held``, ``waits``, ``epoch``, ``chains`` are written by the record's own thread only.
           C3 a wait is published before it stands in the lock's queue, before the walk and before parking, and ended on
              every way out.  So a fork's child finds all waiters that it must take out of queues.
           C4 a wait whose own hold is in the cell has been satisfied: it is no edge, whatever the wait stack says.
           C5 nothing here refers to a user's lock object except its own waits (whose frames do so anyway).
           C6 ``chains`` is as long as ``held``, or was cut short by an exception and is made anew at the next acquire.
           C7 ``cell.turn`` is {} or {0: waiter}, and that one is parked or about to be, first in the queue.  The releaser
           that takes it out gives it the lock; the waiter that takes itself out can be given nothing any more.
Not here   no finding is made, nothing is logged, no user code runs: the listener is told and may return an exception.
Sources    parking_lot RawMutex (park/unpark protocol); CPython Modules/_threadmodule.c (semantics, messages).
"""

from __future__ import annotations

import atexit
import copyreg
import gc
import opcode
import os
import sys
import weakref
from bisect import bisect_left
from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from concagent import _real, interruptions, rings
from concagent.errors import DeadlockError
from concagent.rings import Listener

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

    _Function = TypeVar("_Function", bound=Callable[..., Any])

NAME: Final = "python"
INSTANTIABLE: Final = sys.version_info >= (3, 13)  # ``type(Lock())()`` is refused before
ORDER_RING_SIZE: Final = 4096
WAIT_BUCKETS_NS: Final = (
    10_000,
    100_000,
    1_000_000,
    10_000_000,
    100_000_000,
    1_000_000_000,
    10_000_000_000,
    60_000_000_000,
)
_MASK: Final = (1 << 64) - 1
_FAIR_NS: Final = 2_000_000  # a waiter of so long may ask for the next turn, once in so long

_getframe = _real.getframe
_len, _range = len, range  # programs replace builtins, with functions that take locks
_clock = _real.monotonic_ns
_allocate = _real.allocate_lock
_ident = _real.get_ident
_tls: Any = _real.ThreadLocal()

# record, code, offset, entered by ``with`` (or by the standard library, which releases what it takes)
Hold = tuple["ThreadRecord", "CodeType | None", int, bool]
# what a held stack grows by, made before the lock is taken: [cell], [chain], is the chain new
Links = tuple["list[LockCell]", "list[int]", bool]


def _uninterrupted(function: _Function) -> _Function:
    """Let the function begin, like one in C, without a look for signals, finalizers and other threads.

    Since 3.11 the look is part of the first instruction, RESUME, unless its argument says that the function goes on after a
    ``yield from``.  3.10 does not look if the first instruction enters a ``try``, so that is how such functions begin.
    """
    code = function.__code__
    resume = opcode.opmap.get("RESUME")
    if resume is not None and code.co_code[0] == resume and code.co_code[1] == 0:
        function.__code__ = code.replace(co_code=bytes((resume, 2)) + code.co_code[2:])
    return function


class LockClass:
    """Locks created at one site: the unit by which locks are counted and judged."""

    __slots__ = ("cells", "code", "kind", "lasti", "name", "retired", "serial", "signal", "uses", "uses_told")

    def __init__(self, serial: int, kind: str, code: CodeType | None, lasti: int) -> None:
        self.serial = serial
        self.kind = kind
        self.code = code
        self.lasti = lasti
        self.signal = False  # set once, by a foreign release; never cleared
        self.cells: dict[int, LockCell] = {}
        self.retired: deque[int] = deque()  # acquisitions of locks that are gone
        self.name: str | None = None  # the name last given to one of its locks
        self.uses: set[tuple[int, int, bool]] = set()  # ways of use that were looked at
        self.uses_told: dict[tuple[int, bool, bool], int] = {}  # rows in the use ring, by circumstance

    @property
    def alive(self) -> int:
        """Return how many locks of this class exist."""
        return _len(self.cells)


class LockCell:
    """What is known of one lock; outlives it in records and reports, and never refers to it."""

    __slots__ = (
        "acquisitions", "asked_ns", "cls", "extra", "guard", "name", "serial", "since_ns", "state", "turn", "waiters",
    )  # fmt: skip

    def __init__(self, cls: LockClass) -> None:
        self.serial = next(_serials)
        self.cls = cls
        self.state: dict[int, Hold] = {}
        self.waiters: deque[Waiter] = deque()
        self.turn: dict[int, Waiter] = {}
        self.asked_ns = 0  # when a waiter last asked for the next turn; a waiter writes
        self.extra = 0  # how often an RLock was taken again; the owner writes
        self.acquisitions = 0  # written while held, as is since_ns
        self.since_ns = 0
        self.name: str | None = None
        self.guard: _LockReference | None = None

    @property
    def kind(self) -> str:
        """Return ``lock`` or ``rlock``."""
        return self.cls.kind

    @property
    def alive(self) -> bool:
        """Return whether the lock exists."""
        return self.guard is not None and self.guard() is not None

    @property
    def depth(self) -> int:
        """Return how often the holder has taken the lock, 0 if it is free."""
        return self.extra + 1 if self.state else 0

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


class _LockReference(weakref.ref):  # type: ignore[type-arg]  # generic only for the type checker
    """Tells that a lock is gone without running Python code where it went: the callback is a deque's ``append``."""

    __slots__ = ("cell",)
    cell: LockCell


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


class SharedCell:
    """What a shared lock's cell has in both twins; see ``shared.Cell``.

    ``key`` is the lock's identity in all processes, ``place`` its cell on the board (0: none), ``hold`` the hold by a thread of
    this process, or None.
    """

    __slots__ = ("hold", "key", "place")

    hold: Any
    key: int
    place: int


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
_counters = {"order-dropped": 0, "interrupted": 0}
_use_ring: deque[tuple[int, LockCell, int, bool, bool, int, list[int], list[tuple[CodeType, int]]]] = deque()
_USE_RING: Final = 1024
_USES_LIMIT: Final = 1024
_ORDINARY_ROWS: Final = 2  # of a class and a circumstance
_INTERRUPTION_ROWS: Final = 16
_CALLER_LIMIT: Final = 4  # frames of evidence
_CHAIN_LIMIT: Final = 50
_main_ident = 0
_gone: deque[_LockReference] = deque()
_GONE_LIMIT: Final = 64
_ENDED_LIMIT: Final = 256
_transparent: set[str] = set()
_listener: Listener = Listener()
_recording = False
_class_limit = 8191
_ending = False


# ---------------------------------------------------------------- records


def current_record() -> ThreadRecord:
    """Return the calling thread's record, made on first use."""
    try:
        return _tls.record  # type: ignore[no-any-return]
    except AttributeError:
        return _new_record()


def _new_record() -> ThreadRecord:
    record = ThreadRecord()
    existing: ThreadRecord | None = getattr(_tls, "record", None)
    if existing is not None:  # a finalizer came in between and needed one
        return existing
    old = _by_ident.get(record.ident)
    if old is not None:  # used a lock after its thread-local was gone, so nobody saw it end
        thread_ended(old)
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
    record.waker = None
    if _by_ident.get(record.ident) is record:
        _by_ident.pop(record.ident, None)
    _leave_queues(record)
    if record.stats:
        _ended_stats.append(record.stats)
        record.stats = {}
        if _len(_ended_stats) > _ENDED_LIMIT and _totals_lock.acquire(False):
            try:
                _fold_ended()
            finally:
                _totals_lock.release()
    left = [cell for cell in record.held if _holds(record, cell)]
    if not left:
        _records.pop(record.serial, None)
    elif (
        record.pid == os.getpid() and _recording and not sys.is_finalizing()
    ):  # a fork's child ends its parent's threads
        for cell in left:
            _listener.misuse("exit-held", cell, cell.state.get(0), None)


def _leave_queues(record: ThreadRecord) -> None:
    """Take a thread out of all queues: in a fork's child the parent's waiters would swallow wake-ups for ever."""
    for wait in record.waits:
        if wait.waiter is not None:
            cell = wait.resource
            _ask_no_more(cell, wait.waiter)
            try:
                cell.waiters.remove(wait.waiter)
            except ValueError:
                pass
            if cell.state.get(0) is wait.token:  # it was given the lock and never came to know
                _free(cell)
    record.waits.clear()


def _holds(record: ThreadRecord, cell: LockCell) -> bool:
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


# ---------------------------------------------------------------- recording an acquisition


def _links(record: ThreadRecord, cell: LockCell, hold: Hold, blocking: bool) -> Links | None:
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
    fresh = chain not in _known_chains
    if fresh and not cell.state:
        _new_chain(record, cell, hold, chain, blocking)
        fresh = False
    return [cell], [chain], fresh


def _new_chain(record: ThreadRecord, cell: LockCell, hold: Hold, chain: int, blocking: bool) -> None:
    if _len(_known_chains) < 1 << 20:
        _known_chains.add(chain)
    if _len(_order_ring) >= ORDER_RING_SIZE:
        _counters["order-dropped"] += 1
        return
    outer = tuple(c.cls.serial for c in record.held if _holds(record, c))
    if not outer:
        return
    _order_ring.append((outer, cell.cls.serial, hold[1], hold[2], record.serial, blocking))


def _note_use(cell: LockCell, hold: Hold, frame: FrameType, blocking: bool) -> None:
    """Look how a lock comes to be taken, if its class was not taken so before: by this function, called by that one."""
    below = frame.f_back
    use = (id(hold[1]), id(below.f_code) if below is not None else 0, blocking)
    uses = cell.cls.uses
    if use not in uses:
        if _len(uses) < _USES_LIMIT:
            uses.add(use)
        _look(cell, hold[0], blocking)


def _look(cell: LockCell, record: ThreadRecord, blocking: bool) -> None:
    """Note in what circumstance the calling thread takes a lock, if that is new for its class; see ``_core_use.c``."""
    frame: FrameType | None = _getframe(1)
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    start, depth, kind = frame, 0, None
    while frame is not None and kind is None:
        kind = interruptions.kind_of(frame)
        frame, depth = frame.f_back, depth + 1
    number = interruptions.KINDS.index(kind)
    is_main, gc_enabled = record.ident == _main_ident, gc.isenabled()
    circumstance = (number, is_main, gc_enabled or bool(number))
    told = cell.cls.uses_told
    limit = _INTERRUPTION_ROWS if number else _ORDINARY_ROWS
    if record.agent or (number and not blocking) or told.get(circumstance, 0) >= limit or _len(_use_ring) >= _USE_RING:
        return
    told[circumstance] = told.get(circumstance, 0) + 1
    stack = []
    for _ in _range(min(depth + 1, _CHAIN_LIMIT) if number else _CALLER_LIMIT):
        if start is None:
            break
        stack.append((start.f_code, start.f_lasti))
        start = start.f_back
    held = [c.cls.serial for c in record.held if c is not cell and _holds(record, c)]
    if number:
        _counters["interrupted"] = 1
    _use_ring.append((cell.cls.serial, cell, number, is_main, gc_enabled, record.serial, held, stack))


def _popped(record: ThreadRecord, cell: LockCell) -> None:
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


def find_cell(target: Any, name: str) -> Any:
    """Return the cell that was laid into an object, or None; asks no ``__getattr__`` of the program."""
    try:
        return object.__getattribute__(target, name)
    except AttributeError:
        return None


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


@_uninterrupted
def end_waits(mark: int) -> None:
    """End the waits published since the mark; the epoch moves, so nobody can take the next wait for this one."""
    try:
        record = _tls.record
        record.epoch += 1
        del record.waits[mark:]
    except AttributeError:  # the thread-local is gone: the thread is at its end
        pass


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


def _ask_no_more(cell: LockCell, waiter: Waiter) -> None:
    """Take back what a waiter asked for that cannot do so itself just now: its thread is gone, or in a signal handler."""
    if cell.turn.get(0) is waiter:
        waiter.asked = False
        cell.turn.clear()


def _enqueue(cell: LockCell, waiter: Waiter, waits: list[Wait]) -> None:
    """Put a waiter into the queue: last, but before those of the same thread, which runs a signal handler in them."""
    mine = [wait.waiter for wait in waits[:-1] if wait.resource is cell and wait.waiter is not None]
    for outer in mine:
        _ask_no_more(cell, outer)
    if mine:
        cell.waiters.appendleft(waiter)
    else:
        cell.waiters.append(waiter)


def _wait_for(cell: LockCell, hold: Hold, timeout: float, frame: FrameType, user: Any) -> bool:
    """Wait until ``hold`` is in the cell, the time is up, or somebody makes us a victim; True if the lock is ours."""
    record = hold[0]
    recorded = _recording and not record.agent
    deadline = None if timeout < 0 else _clock() + int(timeout * 1e9)
    waiter = Waiter(hold)
    wait = Wait(cell, deadline is not None, frame.f_code, frame.f_lasti)
    wait.token, wait.waiter, wait.user = hold, waiter, user
    row = _statistics_row(record, cell.cls.serial) if recorded else None
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


def _statistics_row(record: ThreadRecord, class_serial: int) -> list[int]:
    row = record.stats.get(class_serial)
    if row is None:
        row = record.stats[class_serial] = [0, 0] + [0] * (_len(WAIT_BUCKETS_NS) + 1)
    return row


def _caller(frame: FrameType) -> FrameType:
    """Return the frame on whose behalf transparent code acts."""
    while frame.f_code.co_filename in _transparent and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, float]:
    """Parse acquire's arguments; the original itself, on a free lock, raises what is to be raised."""
    _allocate().acquire(*args, **kwargs)
    blocking = args[0] if args else kwargs.get("blocking", True)
    timeout = args[1] if _len(args) > 1 else kwargs.get("timeout", -1)
    return bool(blocking), float(timeout)


@_uninterrupted
def _undo(cell: LockCell, hold: Hold, extra: int) -> None:
    """Give back what an interrupted acquire has taken: its caller will not release.

    ``extra`` is what the cell said before: a re-entry of an RLock has no hold of its own.
    """
    try:
        present = cell.state[0]
    except KeyError:
        present = None
    if present is hold:
        cell.extra = 0
        _free(cell)
    elif present is not None and present[0] is hold[0] and cell.cls.kind == "rlock":
        cell.extra = extra
        return
    _popped(hold[0], cell)


# ---------------------------------------------------------------- Lock


def _refuse_exit(exc: tuple[object, ...]) -> NoReturn:
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
        blocking, timeout = _arguments(args, kwargs) if args or kwargs else (True, -1)
        cell = self._cell
        frame = _getframe(1)
        hold, frame = _hold(frame, False)
        try:
            return _take_lock(self, cell, hold, frame, blocking, timeout)
        except BaseException:
            _undo(cell, hold, 0)
            raise

    def __enter__(self) -> bool:
        """Take the lock for a ``with`` block: the holder, and nobody else, is going to release it."""
        cell = self._cell
        hold, frame = _hold(_getframe(1), True)
        try:
            return _take_lock(self, cell, hold, frame, True, -1)
        except BaseException:
            _undo(cell, hold, 0)
            raise

    @_uninterrupted
    def release(self) -> None:
        """Release the lock; RuntimeError if it is not held.  Any thread may do it, as with the original."""
        try:
            _release_lock(self._cell)
        finally:
            pass

    @_uninterrupted
    def __exit__(self, *exc: object) -> None:
        """Release at the end of a ``with`` block."""
        try:
            _release_lock(self._cell)
        finally:
            pass

    # 3.15 counts its arguments.  Before, a jump would let signals in here, and the lock would stay held.
    if sys.version_info >= (3, 15):

        @_uninterrupted
        def __exit__(self, *exc: object) -> None:
            """Release at the end of a ``with`` block."""
            try:
                if not exc[2:] or exc[3:]:  # no call: nobody may interrupt before the release
                    _refuse_exit(exc)
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
        _reinit(self._cell)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if protocol in (0, 1):
            if not INSTANTIABLE:  # pickle fails to find the type, and says so
                return copyreg._reconstructor, (type(self), object, None)  # type: ignore[attr-defined]
            raise TypeError("cannot pickle 'lock' object")
        raise TypeError("cannot pickle '_thread.lock' object")

    def __repr__(self) -> str:
        status = "locked" if self._cell.state else "unlocked"
        return f"<{status} _thread.lock object at {id(self):#x}>"


def _hold(frame: FrameType, entered: bool) -> tuple[Hold, FrameType]:
    """Return what an acquisition will put into the cell, and the frame that it is for."""
    try:
        record = _tls.record
    except AttributeError:
        record = _new_record()
    if frame.f_code.co_filename in _transparent:
        frame, entered = _caller(frame), True
    return (record, frame.f_code, frame.f_lasti, entered), frame


def _take_lock(lock: Lock, cell: LockCell, hold: Hold, frame: FrameType, blocking: bool, timeout: float) -> bool:
    """Put the hold into the cell; the caller undoes that if an exception comes."""
    if _recording:
        _note_use(cell, hold, frame, blocking and timeout < 0)
    links = _links(hold[0], cell, hold, blocking and timeout < 0) if _recording else None
    since_ns = _clock()  # and by the way the last look for pending finalizers before the lock is taken
    if cell.state.setdefault(0, hold) is not hold:
        if not blocking or timeout == 0:
            return False
        if not _wait_for(cell, hold, timeout, frame, lock):
            return False
        since_ns = _clock()
    cell.since_ns = since_ns
    cell.acquisitions += 1
    if links is not None:
        _grow(cell, hold, links, blocking and timeout < 0)
    return True


@_uninterrupted
def _grow(cell: LockCell, hold: Hold, links: Links, blocking: bool) -> None:
    """Put a cell onto the held stack."""
    try:
        record = hold[0]
        record.held += links[0]
        record.chains += links[1]
    finally:
        pass
    if links[2]:
        _new_chain(record, cell, hold, links[1][0], blocking)


@_uninterrupted
def _free(cell: LockCell) -> Hold | None:
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
                if not _ending:
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


@_uninterrupted
def _release_lock(cell: LockCell) -> None:
    try:
        hold = _free(cell)
    finally:
        pass
    if hold is None:
        if _recording:
            _listener.misuse("double-release", cell, None, _getframe(2))
        raise RuntimeError("release unlocked lock")
    holder = hold[0]
    if holder.ident == _ident():
        if holder.held:
            _popped(holder, cell)
    elif _recording and not holder.agent:
        cell.cls.signal = True  # an event, not a mutex; the holder drops its stale entry itself


def collect_gone() -> None:
    """Drop the cells of locks that are gone; report those that were held."""
    while _gone:
        try:
            cell = _gone.popleft().cell
        except IndexError:
            return
        cell.guard = None  # the two refer to each other
        cls = cell.cls
        cls.cells.pop(cell.serial, None)
        if cell.acquisitions:
            cls.retired.append(cell.acquisitions)
            if _len(cls.retired) > 4096:
                _compact(cls)
        hold = cell.state.get(0)
        if hold is not None and _recording and not cls.signal and not sys.is_finalizing():
            _listener.misuse("destroy-held", cell, hold, None)


def _compact(cls: LockClass) -> int:
    """Fold the counts of gone locks into one; each step is atomic, so finalizers may come in between."""
    total = 0
    for _ in _range(_len(cls.retired)):
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
        """Return a new lock; arguments are refused where the original refuses them."""
        # A subclass with an __init__ of its own may take what it likes.
        if (args or kwargs) and cls.__init__ is object.__init__:
            _real.RLockType(*args, **kwargs)
        lock = object.__new__(cls)
        _make_cell(lock, "rlock", _getframe(1))
        return lock

    def acquire(self, /, *args: Any, **kwargs: Any) -> bool:
        """Take the lock, once more if it is ours; ``acquire(blocking=True, timeout=-1)`` as in ``threading``."""
        blocking, timeout = _arguments(args, kwargs) if args or kwargs else (True, -1)
        cell = self._cell
        extra = cell.extra
        hold, frame = _hold(_getframe(1), False)
        try:
            return _take_rlock(self, cell, hold, frame, blocking, timeout)
        except BaseException:
            _undo(cell, hold, extra)
            raise

    def __enter__(self) -> bool:
        """Take the lock for a ``with`` block."""
        cell = self._cell
        extra = cell.extra
        hold, frame = _hold(_getframe(1), True)
        try:
            return _take_rlock(self, cell, hold, frame, True, -1)
        except BaseException:
            _undo(cell, hold, extra)
            raise

    @_uninterrupted
    def release(self) -> None:
        """Release the lock once; RuntimeError unless the caller owns it."""
        try:
            _release_rlock(self._cell)
        finally:
            pass

    @_uninterrupted
    def __exit__(self, *exc: object) -> None:
        """Release at the end of a ``with`` block."""
        try:
            _release_rlock(self._cell)
        finally:
            pass

    # 3.15 counts its arguments.  Before, a jump would let signals in here, and the lock would stay held.
    if sys.version_info >= (3, 15):

        @_uninterrupted
        def __exit__(self, *exc: object) -> None:
            """Release at the end of a ``with`` block."""
            try:
                if not exc[2:] or exc[3:]:  # no call: nobody may interrupt before the release
                    _refuse_exit(exc)
                _release_rlock(self._cell)
            finally:
                pass

    def _is_owned(self) -> bool:
        hold = self._cell.state.get(0)
        return hold is not None and hold[0].ident == _ident()

    def _recursion_count(self) -> int:
        return self._cell.depth if self._is_owned() else 0

    if sys.version_info >= (3, 14):

        def locked(self) -> bool:
            """Return whether anybody holds the lock."""
            return bool(self._cell.state)

    @_uninterrupted
    def _release_save(self) -> tuple[int, int]:
        try:
            cell = self._cell
            depth = cell.extra + 1
            cell.extra = 0
            hold = _free(cell)
        finally:
            pass
        if hold is None:
            raise RuntimeError("cannot release un-acquired lock")
        _popped(hold[0], cell)
        return depth, hold[0].ident

    def _acquire_restore(self, state: tuple[int, int], /) -> None:
        """Take the lock as deep as it was.  A condition's caller relies on having it, so no signal handler ends this wait."""
        depth, _owner = state
        cell = self._cell
        interrupted: BaseException | None = None
        hold, frame = _hold(_getframe(1), True)
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
        _reinit(self._cell)

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
    if _recording:
        _note_use(cell, hold, frame, blocking and timeout < 0)
    links = _links(hold[0], cell, hold, blocking and timeout < 0) if _recording else None
    since_ns = _clock()  # and by the way the last look for pending finalizers before the lock is taken
    if cell.state.setdefault(0, hold) is not hold:
        if not blocking or timeout == 0:
            return False
        if not _wait_for(cell, hold, timeout, frame, lock):
            return False
        since_ns = _clock()
    cell.since_ns = since_ns
    cell.acquisitions += 1
    if links is not None:
        _grow(cell, hold, links, blocking and timeout < 0)
    return True


@_uninterrupted
def _release_rlock(cell: LockCell) -> None:
    try:
        hold: Hold | None = cell.state[0]
        mine = hold[0] is _tls.record  # type: ignore[index]
    except (KeyError, AttributeError):  # free; the thread-local is gone
        hold, mine = cell.state.get(0), False
    if mine:
        if not cell.extra:
            _free(cell)
            _popped(hold[0], cell)  # type: ignore[index]
        else:
            cell.extra -= 1
    elif hold is not None and hold[0].ident == _ident():
        if not cell.extra:
            _free(cell)
        else:
            cell.extra -= 1
    else:
        if _recording:
            _listener.misuse("foreign-release" if hold is not None else "double-release", cell, hold, _getframe(2))
        raise RuntimeError("cannot release un-acquired lock")


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
            record = _tls.record
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

    @_uninterrupted
    def release(self) -> None:
        """Release the lock, and be remembered for it."""
        try:
            self._releaser = _tls.record if _recording else None
        except AttributeError:
            self._releaser = None
        self.is_given = self.locked()
        self._lock.release()

    @_uninterrupted
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


# ---------------------------------------------------------------- making locks


def _make_cell(lock: Any, kind: str, frame: FrameType | None) -> None:
    """Give a lock a cell of the class of the creating line; frames of transparent files (``threading`` itself) are skipped."""
    if _len(_gone) >= _GONE_LIMIT:
        collect_gone()
    at = frame
    while at is not None and _skipped_at_creation(at.f_code):
        at = at.f_back
    if at is None:
        at = frame
    key = (kind, at.f_code, at.f_lasti) if at is not None else (kind, None, 0)
    cls = _classes.get(key)
    if cls is None:
        cls = _new_class(key, at)
    lock._cell = cell = LockCell(cls)
    cell.guard = guard = _LockReference(lock, _gone.append)
    guard.cell = cell
    cls.cells[cell.serial] = cell


def _skipped_at_creation(code: CodeType) -> bool:
    """The caller is the creator: of what ``threading`` makes, and of defaults made by a dataclass's ``__init__``."""
    name = code.co_filename
    return name in _transparent or (name == "<string>" and code.co_name == "__init__")


def _new_class(key: tuple[str, CodeType | None, int], frame: FrameType | None) -> LockClass:
    """Return the class of a line seen for the first time; two calls on one line are one class."""
    if _len(_classes) >= _class_limit:
        key, frame = (key[0], None, 0), None
    line = (key[0], frame.f_code.co_filename, frame.f_lineno) if frame is not None else (key[0], "", 0)
    cls = _lines.setdefault(line, LockClass(next(_class_serials), *key))
    return _classes.setdefault(key, cls)


def _make_lock(frame: FrameType | None) -> Lock:
    lock = object.__new__(Lock)
    _make_cell(lock, "lock", frame)
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


for _type, _name in ((Lock, "lock"), (RLock, "RLock"), (allocate_lock, "allocate_lock")):
    _type.__module__ = "_thread"
    _type.__name__ = _type.__qualname__ = _name


# ---------------------------------------------------------------- control


@atexit.register
def _begin_end() -> None:
    """Give nobody a lock any more: a daemon thread that is parked when the interpreter ends never comes back."""
    global _ending
    _ending = True


def start(listener: Listener, *, class_limit: int = 8191, main_ident: int = 0) -> None:
    """Begin to record; ``listener`` hears of rings, orphans and misuse.  ``main_ident``: who runs signal handlers."""
    global _listener, _recording, _class_limit, _main_ident
    collect_gone()  # who went before is not told
    _main_ident = main_ident
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


def hasten_semlock(*_: Any) -> bool:
    """Return that there are no faster methods here."""
    return False


def share(words: Any, start: int) -> None:
    """Need not know where the board is."""


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
    collect_gone()
    return list(_lines.values())


def acquisitions(cls: LockClass) -> int:
    """Return how often locks of a class were acquired, gone ones included."""
    collect_gone()
    alive = sum(cell.acquisitions for cell in list(cls.cells.values()))
    return alive + _compact(cls)


def wait_statistics() -> dict[int, list[int]]:
    """Return per class serial: contentions, waited ns, and counts per bucket of ``WAIT_BUCKETS_NS`` (last: longer)."""
    with _totals_lock:
        _fold_ended()
        result: dict[int, list[int]] = {serial: list(row) for serial, row in _totals.items()}
    for record in records():
        _add_rows(result, record.stats)
    return result


def _fold_ended() -> None:
    for _ in _range(_len(_ended_stats)):
        _add_rows(_totals, _ended_stats.popleft())


def _add_rows(into: dict[int, list[int]], rows: dict[int, list[int]]) -> None:
    for serial, row in list(rows.items()):
        old = into.get(serial)
        into[serial] = list(row) if old is None else [a + b for a, b in zip(old, row, strict=True)]


def hold_statistics() -> dict[int, list[int]]:
    """Return {}: this twin has no cheap clock for holds and times none."""
    return {}


def tick() -> None:
    """Do nothing: every hold has its own time in this twin."""


def drain_order() -> list[tuple[tuple[int, ...], int, CodeType | None, int, int, bool]]:
    """Return the chains seen for the first time since the last call: held classes, new class, code, offset, thread, blocking."""
    return [_order_ring.popleft() for _ in _range(_len(_order_ring))]


def drain_uses() -> list[tuple[Any, ...]]:
    """Return the new circumstances in which lock classes were taken, since the last call.

    Each is: class, cell, circumstance (`interruptions.KINDS`), by the main thread, garbage collector enabled, thread, classes
    held besides, stack as (code, offset), innermost first.
    """
    return [_use_ring.popleft() for _ in _range(_len(_use_ring))]


def was_interrupted() -> bool:
    """Return whether code that the interpreter called took a lock."""
    return bool(_counters["interrupted"])


def order_dropped() -> int:
    """Return how many new chains were dropped because the ring was full."""
    return _counters["order-dropped"]


def environment() -> list[bytes]:
    """Return the environment that a child inherits, as C code has it: a list of ``NAME=value``."""
    import ctypes

    entries = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.pythonapi, "environ")
    pairs: list[bytes] = []
    while entries and (pair := entries[_len(pairs)]) is not None:
        pairs.append(pair)
    return pairs


def _reinit(cell: LockCell) -> None:
    """Free a lock in a fork's child; whoever held or awaited it does not exist there."""
    hold = cell.state.get(0)
    cell.extra = 0
    cell.state.clear()
    cell.waiters.clear()
    for waiter in list(cell.turn.values()):
        _ask_no_more(cell, waiter)
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
            _leave_queues(record)
            if not any(_holds(record, cell) for cell in record.held):
                _records.pop(record.serial, None)
    _order_ring.clear()
    _use_ring.clear()
    global _totals_lock, _main_ident
    _main_ident = me.ident
    _totals_lock = _allocate()


def reset_for_tests() -> None:
    """Forget chains and statistics, so that one test's acquisitions do not show in the next."""
    _known_chains.clear()
    _order_ring.clear()
    _ended_stats.clear()
    _totals.clear()
    _counters["order-dropped"] = _counters["interrupted"] = 0
    _use_ring.clear()
    for cls in _lines.values():
        cls.uses.clear()
        cls.uses_told.clear()
    for record in records():
        record.stats.clear()
