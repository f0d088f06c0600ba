"""Lock classes and cells: what is known of the locks of one line, and of one lock.

A lock owns its cell, and its class finds the cell while the lock is alive; records, waits and reports refer to cells and never
to locks.  That a lock is gone is told by a weak reference whose callback is the ``append`` of a deque, so no Python code runs
where the lock went; what is to be said about it is said at the next chance (`collect_gone`).

Classes are found by code and instruction, but told apart by line: two calls on one line are one class.

Invariants see ``_pybase``, C1 and C5.
"""

from __future__ import annotations

import sys
import weakref
from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from concagent._pybase import Hold, core

if TYPE_CHECKING:
    from types import CodeType, FrameType

    from concagent._pyrecord import ThreadRecord
    from concagent._pywait import Wait, Waiter

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
_GONE_LIMIT: Final = 64
_ENDED_LIMIT: Final = 256

_len, _range = len, range

_serials = count(1)
_class_serials = count(1)
_classes: dict[tuple[str, CodeType | None, int], LockClass] = {}
lines: dict[tuple[str, str, int], LockClass] = {}
ended_stats: deque[dict[int, list[int]]] = deque()
totals: dict[int, list[int]] = {}
_gone: deque[_LockReference] = deque()
transparent: set[str] = set()  # files whose frames count as their caller's


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


def next_serial() -> int:
    """Return a serial for a resource; serials are never reused."""
    return next(_serials)


# ---------------------------------------------------------------- making and losing locks


def make_cell(lock: Any, kind: str, frame: FrameType | None) -> None:
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
    return name in transparent or (name == "<string>" and code.co_name == "__init__")


def _new_class(key: tuple[str, CodeType | None, int], frame: FrameType | None) -> LockClass:
    """Return the class of a line seen for the first time; two calls on one line are one class."""
    if _len(_classes) >= core.class_limit:
        key, frame = (key[0], None, 0), None
    line = (key[0], frame.f_code.co_filename, frame.f_lineno) if frame is not None else (key[0], "", 0)
    cls = lines.setdefault(line, LockClass(next(_class_serials), *key))
    return _classes.setdefault(key, cls)


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
                compact(cls)
        hold = cell.state.get(0)
        if hold is not None and core.recording and not cls.signal and not sys.is_finalizing():
            core.listener.misuse("destroy-held", cell, hold, None)


def compact(cls: LockClass) -> int:
    """Fold the counts of gone locks into one; each step is atomic, so finalizers may come in between."""
    total = 0
    for _ in _range(_len(cls.retired)):
        try:
            total += cls.retired.popleft()
        except IndexError:
            break
    cls.retired.append(total)
    return total


# ---------------------------------------------------------------- statistics of waits


def statistics_row(record: ThreadRecord, class_serial: int) -> list[int]:
    """Return a thread's row for a class: contentions, waited ns, counts per bucket."""
    row = record.stats.get(class_serial)
    if row is None:
        row = record.stats[class_serial] = [0, 0] + [0] * (_len(WAIT_BUCKETS_NS) + 1)
    return row


def fold_many() -> None:
    """Fold the statistics of ended threads, once there are many."""
    if _len(ended_stats) > _ENDED_LIMIT and core.totals_lock.acquire(False):
        try:
            fold_ended()
        finally:
            core.totals_lock.release()


def fold_ended() -> None:
    """Add the statistics of ended threads to the totals; the caller has ``totals_lock``."""
    for _ in _range(_len(ended_stats)):
        add_rows(totals, ended_stats.popleft())


def add_rows(into: dict[int, list[int]], rows: dict[int, list[int]]) -> None:
    """Add rows, by class serial, to others."""
    for serial, row in list(rows.items()):
        old = into.get(serial)
        into[serial] = list(row) if old is None else [a + b for a, b in zip(old, row, strict=True)]
