"""Lock and RLock that record who holds them and who waits for them: the Python twin of the core.

This is the module: what the rest of the agent may ask of the core.  What it argues is in the files beside it, which are called
like those of the C twin: ``_pybase`` (what must not be torn apart, and the invariants), ``_pyclass``, ``_pywait``, ``_pyrecord``,
``_pyuse``, ``_pylock``, ``_pyrlock``, ``_pysync``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from concagent import _real
from concagent._pybase import Hold, Links, core
from concagent._pyclass import (
    WAIT_BUCKETS_NS,
    LockCell,
    LockClass,
    add_rows,
    collect_gone,
    compact,
    ended_stats,
    fold_ended,
    lines,
    next_serial,
    totals,
    transparent,
)
from concagent._pylock import Lock, allocate_lock
from concagent._pyrecord import (
    ORDER_RING_SIZE,
    ThreadRecord,
    current_record,
    forget_others,
    forget_record,
    known_chains,
    mark_agent_thread,
    order_ring,
    readings,
    record_of_ident,
    records,
    thread_ended,
    untracked,
)
from concagent._pyrlock import RLock
from concagent._pysync import (
    ThreadCell,
    WaiterLock,
    begin_wait,
    check_wait,
    configure_not_owned,
    end_waits,
    find_cell,
    keep_cell,
    wait_mark,
    waiter_lock,
)
from concagent._pyuse import drain_uses, use_ring
from concagent._pywait import Wait, Waiter, wake_victim
from concagent._real import INSTANTIABLE
from concagent.rings import Listener

if TYPE_CHECKING:
    from types import CodeType

NAME: Final = "python"

_len, _range = len, range
_allocate = _real.allocate_lock
_ident = _real.get_ident

__all__ = [
    "INSTANTIABLE", "NAME", "ORDER_RING_SIZE", "WAIT_BUCKETS_NS", "Hold", "Links", "Lock", "LockCell", "LockClass", "RLock",
    "SharedCell", "ThreadCell", "ThreadRecord", "Wait", "Waiter", "WaiterLock", "acquisitions", "add_transparent_file",
    "after_fork_in_child", "allocate_lock", "begin_wait", "cell_of", "check_wait", "classes", "collect_gone",
    "configure_not_owned", "current_record", "drain_order", "drain_uses", "end_waits", "environment",
    "find_cell", "forget_record",
    "hasten_semlock", "hold_statistics", "is_recording", "is_transparent", "keep_cell", "mark_agent_thread", "name_lock",
    "next_serial", "order_dropped", "readings", "record_of_ident", "records", "reset_for_tests", "share", "start", "stop",
    "thread_ended", "tick", "untracked", "wait_mark", "wait_statistics", "waiter_lock", "wake_victim", "was_interrupted",
]  # fmt: skip


class SharedCell:
    """What a shared lock's cell has in both twins; see ``shared.Cell``.

    ``key`` is the lock's identity in all processes, ``place`` its cell on the board (0: none), ``hold`` the hold by a thread of
    this process, or None.
    """

    __slots__ = ("hold", "key", "place")

    hold: Any
    key: int
    place: int


def start(listener: Listener, *, class_limit: int = 8191, main_ident: int = 0) -> None:
    """Begin to record; ``listener`` hears of rings, orphans and misuse.  ``main_ident``: who runs signal handlers."""
    collect_gone()  # who went before is not told
    core.main_ident = main_ident
    core.listener = listener
    core.class_limit = class_limit
    core.recording = True


def stop() -> None:
    """Stop recording; locks that exist go on as plain locks."""
    core.recording = False
    core.listener = Listener()


def is_recording() -> bool:
    """Return whether acquisitions are recorded."""
    return core.recording


def hasten_semlock(*_: Any) -> bool:
    """Return that there are no faster methods here."""
    return False


def open_function(*_: Any) -> None:
    """Return that there is no faster ``open`` here: `hooks.files.Open` stands in for it."""


def record_openings(hook: Any, ignore: Any, asks_by_name: bool) -> None:
    """Need not know: what stands in for ``open`` records by itself."""


def ignore_openings(hook: Any) -> None:
    """Need not know: what stands in for ``open`` asks its table."""


def forget_openings() -> None:
    """Keep no sites here."""


def share(words: Any, start: int) -> None:
    """Need not know where the board is."""


def add_transparent_file(filename: str) -> None:
    """Let locks created by code of this file count as created by its caller."""
    transparent.add(filename)


def is_transparent(code: CodeType) -> bool:
    """Return whether frames of this code count as their caller's."""
    return code.co_filename in transparent


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
    return list(lines.values())


def acquisitions(cls: LockClass) -> int:
    """Return how often locks of a class were acquired, gone ones included."""
    collect_gone()
    alive = sum(cell.acquisitions for cell in list(cls.cells.values()))
    return alive + compact(cls)


def wait_statistics() -> dict[int, list[int]]:
    """Return per class serial: contentions, waited ns, and counts per bucket of ``WAIT_BUCKETS_NS`` (last: longer)."""
    with core.totals_lock:
        fold_ended()
        result: dict[int, list[int]] = {serial: list(row) for serial, row in totals.items()}
    for record in records():
        add_rows(result, record.stats)
    return result


def hold_statistics() -> dict[int, list[int]]:
    """Return {}: this twin has no cheap clock for holds and times none."""
    return {}


def tick() -> None:
    """Do nothing: every hold has its own time in this twin."""


def drain_order() -> list[tuple[tuple[int, ...], int, CodeType | None, int, int, bool]]:
    """Return the chains seen for the first time since the last call: held classes, new class, code, offset, thread, blocking."""
    return [order_ring.popleft() for _ in _range(_len(order_ring))]


def was_interrupted() -> bool:
    """Return whether code that the interpreter called took a lock."""
    return core.interrupted


def order_dropped() -> int:
    """Return how many new chains were dropped because the ring was full."""
    return core.order_dropped


def environment() -> list[bytes]:
    """Return the environment that a child inherits, as C code has it: a list of ``NAME=value``."""
    import ctypes

    entries = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.pythonapi, "environ")
    pairs: list[bytes] = []
    while entries and (pair := entries[_len(pairs)]) is not None:
        pairs.append(pair)
    return pairs


def after_fork_in_child() -> None:
    """Keep the calling thread's record; every other thread has ended without releasing anything."""
    me = current_record()
    me.pid = os.getpid()
    me.ident = _ident()
    me.native_id = _real.get_native_id()
    me.refresh()
    forget_others(me)
    order_ring.clear()
    use_ring.clear()
    core.main_ident = me.ident
    core.totals_lock = _allocate()


def reset_for_tests() -> None:
    """Forget chains and statistics, so that one test's acquisitions do not show in the next."""
    known_chains.clear()
    order_ring.clear()
    ended_stats.clear()
    totals.clear()
    core.order_dropped = 0
    core.interrupted = False
    use_ring.clear()
    for cls in lines.values():
        cls.uses.clear()
        cls.uses_told.clear()
    for record in records():
        record.stats.clear()
