"""In what circumstances a class of locks is taken: by whom the interpreter called.

A look at the stack costs too much for each acquisition.  So a class remembers by which functions it was taken, each with the
function below it, and only a new pair is looked at; of each class and circumstance a few rows go to the monitor.

Sources    ``_core_use.c``; ``interruptions`` for what a frame says about who called it.
"""

from __future__ import annotations

import gc
import os
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from concagent import _real, interruptions
from concagent._pybase import Hold, core
from concagent._pyrecord import holds

if TYPE_CHECKING:
    from types import CodeType, FrameType

    from concagent._pyclass import LockCell
    from concagent._pyrecord import ThreadRecord

_USE_RING: Final = 1024
_USES_LIMIT: Final = 1024
_ORDINARY_ROWS: Final = 2  # of a class and a circumstance
_INTERRUPTION_ROWS: Final = 16
_CALLER_LIMIT: Final = 4  # frames of evidence
_CHAIN_LIMIT: Final = 50
_OWN_FILES: Final = os.path.join(os.path.dirname(__file__), "_py")  # how the names of the twin's files begin

_getframe = _real.getframe
_len, _range = len, range

use_ring: deque[tuple[int, LockCell, int, bool, bool, int, list[int], list[tuple[CodeType, int]]]] = deque()


def note_use(cell: LockCell, hold: Hold, frame: FrameType, blocking: bool) -> None:
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
    while frame is not None and frame.f_code.co_filename.startswith(_OWN_FILES):
        frame = frame.f_back
    start, depth, kind = frame, 0, None
    while frame is not None and kind is None:
        kind = interruptions.kind_of(frame)
        frame, depth = frame.f_back, depth + 1
    number = interruptions.KINDS.index(kind)
    is_main, gc_enabled = record.ident == core.main_ident, gc.isenabled()
    circumstance = (number, is_main, gc_enabled or bool(number))
    told = cell.cls.uses_told
    limit = _INTERRUPTION_ROWS if number else _ORDINARY_ROWS
    if record.agent or (number and not blocking) or told.get(circumstance, 0) >= limit or _len(use_ring) >= _USE_RING:
        return
    told[circumstance] = told.get(circumstance, 0) + 1
    stack = []
    for _ in _range(min(depth + 1, _CHAIN_LIMIT) if number else _CALLER_LIMIT):
        if start is None:
            break
        stack.append((start.f_code, start.f_lasti))
        start = start.f_back
    held = [c.cls.serial for c in record.held if c is not cell and holds(record, c)]
    if number:
        core.interrupted = True
    use_ring.append((cell.cls.serial, cell, number, is_main, gc_enabled, record.serial, held, stack))


def drain_uses() -> list[tuple[Any, ...]]:
    """Return the new circumstances in which lock classes were taken, since the last call.

    Each is: class, cell, circumstance (`interruptions.KINDS`), by the main thread, garbage collector enabled, thread, classes
    held besides, stack as (code, offset), innermost first.
    """
    return [use_ring.popleft() for _ in _range(_len(use_ring))]
