"""What changes while a program runs and is not in the core: resources other than locks, events on their way, counters.

Hooks run on the program's threads, at any moment, inside finalizers and signal handlers too.  So everything here is a
single atomic operation on a built-in container, no lock is taken, and nothing is called back.  What a hook has to say is
put into a bounded queue, with the evidence that will be gone later (a stack as pairs of code and offset); the monitor
turns it into findings on its own thread.

Writers    the event queue: any thread appends, the monitor pops.  A sync cell: see each field.  Error counters: any
           thread; two increments at once may count as one, which a diagnostic can afford.
Bound      ``EVENT_LIMIT`` events; what does not fit is counted in ``dropped``.
"""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

from concagent import _real, core, interruptions
from concagent.discipline import discipline, has_another_way
from concagent.tuples import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import CodeType, FrameType

EVENT_LIMIT: Final = 10_000
SIGNALLER_LIMIT: Final = 16  # remembered for one resource
ACTOR_SERIALS: Final = 1_000_000_000  # threads' serials are below; those of other actors are above
STACK_LIMIT: Final = 100
CELL: Final = "_concagent_cell"
_ASSERTIONS: Final = frozenset({"assertRaises", "assertRaisesRegex", "raises"})
_ASSERTION_DEPTH: Final = 3  # functions between the one that says so and the call

# Kinds of locks that anybody may release: of their holds the code has to say who does.
PLAIN_KINDS: Final = frozenset({"lock", "file-lock"})

RawStack = tuple[tuple[Any, int], ...]


class SyncCell:
    """A condition, semaphore, event, barrier or queue that somebody waited for; an attribute of the object itself."""

    __slots__ = (
        "code",
        "detail",
        "ended_by",
        "foreign",
        "has_many_signallers",
        "holders",
        "kind",
        "lasti",
        "name",
        "reference",
        "serial",
        "signallers",
    )

    def __init__(self, kind: str, target: object) -> None:
        """Describe ``target``, without keeping it alive."""
        self.serial = core.next_serial()
        self.kind = kind
        self.code: CodeType | None = None
        self.lasti = 0
        self.name: str | None = None
        self.reference = _real.weak_reference(target)
        # Permits of a semaphore: each key is written by its own thread only.
        self.holders: dict[Any, int] = {}
        # Who has ended waits here before, and how often; whoever was woken writes.
        self.signallers: dict[Any, int] = {}
        self.has_many_signallers = False  # set once: so many that nobody in particular is waited for
        self.ended_by: str | None = None  # where it differs from what `words.ENDED_BY` says of the kind
        self.detail: Callable[[Any], str | None] | None = None  # target -> what a report should add to its name
        self.foreign = False  # set once: somebody gave back a permit that he had not taken

    def hold_seen_by(self, wait: Any) -> None:
        """Return None: no single holder can end such a wait, the walk stops here."""

    def learn(self, signaller: Any) -> None:
        """Count who has ended a wait; called by the thread that was woken.

        Records of ended threads stay, for it matters that all who ever signalled have ended, but not at the cost of others.
        """
        signallers = self.signallers
        if signaller not in signallers and len(signallers) >= SIGNALLER_LIMIT:
            for known in list(signallers):
                if known.ended:
                    signallers.pop(known, None)
            if len(signallers) >= SIGNALLER_LIMIT:
                self.has_many_signallers = True
        if self.has_many_signallers:
            signallers.clear()
        else:
            signallers[signaller] = signallers.get(signaller, 0) + 1


class ThreadCell(core.ThreadCell):
    """A thread as a resource: whoever joins it waits for its end.  ``code`` and ``lasti`` say where it was started."""

    __slots__ = ()

    def record(self) -> Any:
        """Return the record of the thread, None if it has ended or has done nothing tracked yet."""
        thread = self.reference()
        if thread is None or thread.ident is None or not thread.is_alive():
            return None
        return core.record_of_ident(thread.ident)

    def hold_seen_by(self, wait: Any) -> Any:
        """Return a hold by the thread itself; one tuple for the whole wait, since readings compare identity."""
        record = self.record()
        if record is None or record.ended:
            return None
        if wait.token is None or wait.token[0] is not record:
            wait.token = (record, None, 0, True)
        return wait.token


class ExitCell:
    """What the main thread waits for when it is over and the interpreter waits for all threads that are no daemons."""

    __slots__ = ("serial",)
    kind: Final = "thread"
    ended_by: Final = "all-holders"
    name: Final = "all but daemons"
    code: Final = None
    lasti: Final = 0

    def __init__(self) -> None:
        """Say nothing of which threads: that changes while it is waited for."""
        self.serial = core.next_serial()

    @property
    def holders(self) -> dict[Any, int]:
        """Return the records of the threads that are waited for; those that did nothing tracked have none and are alive."""
        waited_for = [thread.ident for thread in _real.known_threads() if not thread.daemon]
        records = [core.record_of_ident(ident) for ident in waited_for if ident not in {None, _real.main_ident()}]
        return {record: 1 for record in records if record is not None and not record.ended}

    def hold_seen_by(self, wait: Any) -> None:
        """Return None: no single holder can end such a wait, the walk stops here."""


def sync_cell(target: Any, kind: str) -> SyncCell:
    """Return the cell of a condition, semaphore ..., made on first use."""
    cell = core.find_cell(target, CELL)
    return cell if cell is not None else core.keep_cell(target, CELL, SyncCell(kind, target))  # type: ignore[no-any-return]


def condition_cell(condition: Any, target: Any, kind: str, detail: Callable[[Any], str | None] | None) -> SyncCell:
    """Return the cell for waits on a condition that a ``target`` of this kind waits with, made on first use.

    A queue has a cell for each of its conditions: who puts does not end a wait to put.  Everything else has one.
    """
    cell = core.find_cell(condition, CELL)
    if cell is None:
        cell = SyncCell(kind, target) if kind == "queue" else sync_cell(target, kind)
        cell.detail = detail
        cell = core.keep_cell(condition, CELL, cell)
    return cell  # type: ignore[no-any-return]


def thread_cell(thread: Any) -> ThreadCell:
    """Return the cell of a ``Thread`` object, made on first use."""
    cell = core.find_cell(thread, CELL)
    return cell if cell is not None else core.keep_cell(thread, CELL, ThreadCell(thread))  # type: ignore[no-any-return]


def existing_cell(target: Any) -> Any:
    """Return the cell of a lock, condition, thread ... if it has one, else None."""
    cell = core.cell_of(target)
    return cell if cell is not None else core.find_cell(target, CELL)


def make_room_for_cells(*classes: Any) -> None:
    """Let instances of these classes have a cell beside their other attributes, not in a dictionary of their own.

    Instances of a class share the table of their attributes' names, which has room for new ones only while few instances have
    been made (CPython 3.11+); who adds a name later gets a dictionary and loses the interpreter's shortcuts.
    """
    for cls in classes:
        try:
            object.__setattr__(cls.__new__(cls), CELL, None)
        except (AttributeError, TypeError):  # somebody put something else there: it may be slower, that is all
            continue


# ---------------------------------------------------------------- actors and resources that the core does not know


class Source(Protocol):
    """Adds actors, resources and edges to each snapshot: tasks, other processes.  Called on the snapshot's thread.

    `read` is called twice and copies what may change meanwhile; `add` gets both readings and adds a wait only if they agree
    on it.  Neither may take a lock, wait, or run code of the program.  A source may have these methods, too:

    - ``has_work()``: whether a picture may show waits of its though no thread of the core's waits;
    - ``target_of(serial)``, ``actor_of(serial)``: the live object of a resource's serial, the live task of an actor's, or None;
    - ``own_objects()``: what of its own refers to objects of the program: `reach` does not count that.
    """

    def read(self) -> Any:
        """Return what is to be compared."""

    def add(self, builder: Any, one: Any, two: Any) -> None:
        """Add what both readings agree on to a ``snapshots.Builder``."""


_sources: tuple[Source, ...] = ()


def sources() -> tuple[Source, ...]:
    """Return the sources that snapshots are made from, beside the core."""
    return _sources


def sources_have_work() -> bool:
    """Return whether a picture may show waits though no thread of the core's waits: a source with ``has_work()`` knows."""
    return any(source.has_work() for source in _sources if hasattr(source, "has_work"))


def add_source(source: Source) -> None:
    """Add a source; hooks do this when they are installed."""
    global _sources
    _sources = (*_sources, source)


def remove_source(source: Source) -> None:
    """Remove a source, if it is there."""
    global _sources
    _sources = tuple(one for one in _sources if one is not source)


# ---------------------------------------------------------------- events


class MisuseEvent(NamedTuple):
    """A wrong use of a lock, seen at the moment it happened; ``record`` is the thread that is to blame."""

    detail: str
    cell: Any
    record: Any
    hold: Any
    stack: RawStack
    time_ns: int


class RingEvent(NamedTuple):
    """A ring of waits closed by ``records[0]``; the epochs say whether it still is the same ring when it is read."""

    records: tuple[Any, ...]
    epochs: tuple[int, ...]
    time_ns: int


class OrphanEvent(NamedTuple):
    """``record`` began to wait for a lock whose holder has ended."""

    record: Any
    epoch: int
    time_ns: int


class LastLook(NamedTuple):
    """The program is at its end: what was only to be foretold is to be told now."""


class ForkEvent(NamedTuple):
    """This process is the child of a fork at which others held locks; ``fork`` is a `forks.Fork`."""

    fork: Any


class CheckEvent(NamedTuple):
    """Somebody wants to know now what can be known of waits that may never end."""


class CallEvent(NamedTuple):
    """The monitor is to call this on its own thread."""

    function: Callable[[], None]


_events: deque[Any] = deque()
_errors: dict[str, int] = {}
_dropped: dict[str, int] = {}
_error_texts: deque[tuple[str, str]] = deque(maxlen=20)
untracked_locks = 0
own_folders: tuple[str, ...] = (os.path.dirname(os.path.abspath(__file__)) + os.sep,)
pid = os.getpid()


def set_own_folders(folders: Iterable[str]) -> None:
    """Say where concagent's packages lie; frames of code below these folders are left out of stacks."""
    global own_folders
    own_folders = tuple(sorted({os.path.abspath(folder) + os.sep for folder in folders} | set(own_folders)))


def post(event: Any) -> bool:
    """Queue an event for the monitor; False (and counted) if the queue is full."""
    if len(_events) >= EVENT_LIMIT:
        count_drop("events")
        return False
    _events.append(event)
    return True


def has_events() -> bool:
    """Return whether something waits to be judged."""
    return bool(_events)


def take_events() -> list[Any]:
    """Return the queued events, oldest first, and forget them; the monitor calls this."""
    core.collect_gone()  # locks destroyed while held say so here
    return [_events.popleft() for _ in range(len(_events))]


def count_drop(queue: str) -> None:
    """Count something that did not fit into a bounded queue."""
    _dropped[queue] = _dropped.get(queue, 0) + 1


def count_error(border: str, error: BaseException) -> None:
    """Count an internal failure at one of the borders (hook, sink, monitor ...); its text is kept for the report.

    Raises:
        The error itself, where a signal handler of the program has raised it in the midst of our code: it is the program's, and
        goes where it would have gone without us.
    """
    if interruptions.is_of_handler(error):
        raise error
    _errors[border] = _errors.get(border, 0) + 1
    _error_texts.append((border, f"{type(error).__name__}: {error}"))


def errors() -> tuple[tuple[str, int], ...]:
    """Return (border, count) sorted by border."""
    return tuple(sorted(_errors.items()))


def error_texts() -> tuple[tuple[str, str], ...]:
    """Return the last failures as (border, text)."""
    return tuple(_error_texts)


def dropped() -> tuple[tuple[str, int], ...]:
    """Return (queue, count) sorted by queue; the core's order ring included."""
    counts = dict(_dropped)
    if core.order_dropped():
        counts["order"] = core.order_dropped()
    return tuple(sorted(counts.items()))


def raw_stack(frame: FrameType | None) -> RawStack:
    """Return a stack as (code, offset) pairs, innermost first: cheap, and it keeps no local variable alive."""
    stack: list[tuple[CodeType, int]] = []
    while frame is not None and len(stack) < STACK_LIMIT:
        stack.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return tuple(stack)


def expects_refusal(stack: RawStack, method: str) -> bool:
    """Return whether who called a method that is about to refuse reckons with just that.

    That is a test (``assertRaises``, ``pytest.raises``), and a function that catches the error and then does it otherwise.
    """
    for code, _ in stack[:_ASSERTION_DEPTH]:
        if code.co_name in _ASSERTIONS or not _ASSERTIONS.isdisjoint(code.co_names):
            return True
    return has_another_way(*stack[0], method)


def hold_discipline(cell: Any, hold: Any) -> str:
    """Return what is known of who releases a hold: ``owned``, ``finally``, ``later``, ``try`` or ``bare``."""
    if cell.kind not in {"lock", "file-lock", "mp-lock"} or hold[3]:
        return "owned"
    return discipline(hold[1], hold[2])


def is_running(frame: FrameType | None, hold: Any) -> bool:
    """Return whether the function that took a hold is among the frames of its thread, and has it already.

    A frame that is at the very instruction is about to take the lock, and is not the one that has it.
    """
    while frame is not None and (frame.f_code is not hold[1] or frame.f_lasti == hold[2]):
        frame = frame.f_back
    return frame is not None


def unless_running(habit: str, cell: Any, hold: Any, *, running: bool) -> str:
    """Return a hold's discipline: only a function that is still running can be expected to release by itself."""
    if cell.kind not in PLAIN_KINDS or habit == "try" or running:
        return habit
    return "lent" if hold[3] else "bare"


def after_fork_in_child() -> None:
    """Start a child with empty queues: what the parent saw, the parent reports."""
    global pid
    pid = os.getpid()
    _events.clear()
    _dropped.clear()
    _errors.clear()
    _error_texts.clear()


def reset_for_tests() -> None:
    """Forget events and counters."""
    after_fork_in_child()
