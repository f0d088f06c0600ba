"""What the files of the Python twin share: its state, and how its code is kept from being torn apart.

The originals are C: no signal handler, no finalizer and no thread switch comes between their steps.  Ours are Python, and the
interpreter looks for all three when a function begins, after each call of a C function and at each jump backwards (3.10: at
any jump that is taken), but not between other instructions.  So everything that must not be torn apart is straight code with
at most one C call, which is its last act: a release takes the hold out with ``del`` and wakes with one call; what interrupted
an ``acquire`` finds in the cell whether there is something to undo; a queue is left by a ladder of ``finally``, one call a rung.
`uninterrupted` removes the look at the beginning of a function, so that a Ctrl-C cannot keep a ``with`` from releasing.
Objects that the garbage collector counts are made before the lock is taken: else it could run a finalizer that wants the
same lock inside of our acquire, where with the original there is no inside.

The files are those of the C twin, and so are the names in them: ``_pyclass`` is ``_core_class.c``, and this one ``_core.h``.
A name without an underscore is for the twin's other files, one with an underscore for its own.  Programs replace builtins, with
functions that take locks: so what is used of them is saved, as the originals are.

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
"""

from __future__ import annotations

import opcode
from typing import TYPE_CHECKING, Any, TypeVar

from concagent import _real
from concagent.rings import Listener

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType

    from concagent._pyclass import LockCell
    from concagent._pyrecord import ThreadRecord

    _Function = TypeVar("_Function", bound=Callable[..., Any])

tls: Any = _real.ThreadLocal()  # .record, and .end, which is destroyed with it


# record, code, offset, entered by ``with`` (or by the standard library, which releases what it takes)
Hold = tuple["ThreadRecord", "CodeType | None", int, bool]
# what a held stack grows by, made before the lock is taken: [cell], [chain], is the chain new
Links = tuple["list[LockCell]", "list[int]", bool]


class Core:
    """What changes in the whole twin.  One object, so that all its files see the same."""

    __slots__ = (
        "class_limit", "ending", "interrupted", "listener", "main_ident", "not_owned", "order_dropped", "recording",
        "totals_lock",
    )  # fmt: skip

    def __init__(self) -> None:
        self.recording = False
        self.listener = Listener()
        self.class_limit = 8191
        self.main_ident = 0  # of the thread that runs signal handlers
        self.ending = False  # the interpreter is about to end
        self.not_owned: Callable[[], object] = bool  # to be called where a lock is not its asker's
        self.order_dropped = 0
        self.interrupted = False  # some lock was taken by code that the interpreter called
        self.totals_lock = _real.allocate_lock()  # for `_pyclass.totals`


core = Core()


def uninterrupted(function: _Function) -> _Function:
    """Let the function begin, like one in C, without a look for signals, finalizers and other threads.

    Since 3.11 the look is part of the first instruction, RESUME, unless its argument says that the function goes on after a
    ``yield from``.  3.10 does not look if the first instruction enters a ``try``, so that is how such functions begin.
    """
    code = function.__code__
    resume = opcode.opmap.get("RESUME")
    if resume is not None and code.co_code[0] == resume and code.co_code[1] == 0:
        function.__code__ = code.replace(co_code=bytes((resume, 2)) + code.co_code[2:])
    return function
