"""An immutable picture of who waits for whom.

The cells change while we read them, and we take no lock, so one reading can join edges that never existed together.  We
therefore read every wait and its holder twice and keep only what is equal in both, of threads whose epoch is equal in
both.  Such a thread was inside one wait all the time between the readings, and a blocked thread can neither release nor
acquire; so a cycle of such edges was real at the moment between them.  Epochs alone do not suffice: the holder read first
may have released before its wait began.

Stacks are read once, after the second reading, for the threads that the caller asks for.  A thread that is blocked cannot
change its stack; for the others a stack is a sample, as in every profiler.

The parts of a picture are values that are in no cycle, and there may be some ten thousand of them.  The garbage collector is not
shown them (`core.untracked`), or a picture of many threads makes it go through the whole heap of the program.

Invariants P1-P3 of ``model``.
Cost       O(threads + held locks) per reading, plus the frames of the wanted stacks; the monitor's thread only, except for
           a victim, who reads the few threads of its own ring.
Sources    parking_lot core/src/parking_lot.rs (fast and exact pass); Holt, ACM Comput. Surv. 4(3), 1972.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from concagent import _real, calls, core, forks, interruptions, lastresort, naming, state
from concagent.model import (
    Actor,
    AssignmentEdge,
    CallSite,
    RequestEdge,
    Resource,
    SignalEdge,
    Snapshot,
    StackFrame,
)
from concagent.sources import source_line

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from types import CodeType, FrameType

EMPTY: Final[Mapping[int, str]] = {}
_runner = os.path.join(os.path.dirname(os.path.abspath(state.__file__)), "runner.py")


def is_own_code(code: CodeType) -> bool:
    """Return whether a frame is one of ours, and so left out of stacks."""
    return code.co_filename.startswith(state.own_folders)


def call_site(code: CodeType | None, lasti: int) -> CallSite | None:
    """Return file, line and function of an instruction; None for no code."""
    if code is None:
        return None
    return CallSite(code.co_filename, line_of(code, lasti), _function_name(code))


def line_of(code: CodeType, lasti: int) -> int:
    """Return the source line (from 1) of an instruction offset."""
    line = code.co_firstlineno
    for start, end, number in code.co_lines():
        if start <= lasti < end and number is not None:
            return number
        if start <= lasti and number is not None:
            line = number
    return line


def _function_name(code: CodeType) -> str:
    return getattr(code, "co_qualname", code.co_name)


def stack_frames(frame: FrameType | None, limit: int = 100, marks: Mapping[int, str] = EMPTY) -> tuple[StackFrame, ...]:
    """Return a live stack, outermost first, our own frames left out; ``marks`` as of `interruptions.find`."""
    raw: list[tuple[CodeType, int | None]] = []
    while frame is not None and len(raw) < limit:
        raw.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return _resolve(raw, marks)


def resolve_stack(raw: state.RawStack) -> tuple[StackFrame, ...]:
    """Return a recorded stack (innermost first) as frames, outermost first."""
    return _resolve([(code, line_of(code, lasti)) for code, lasti in raw])


def _resolve(pairs: Iterable[tuple[CodeType, int | None]], marks: Mapping[int, str] = EMPTY) -> tuple[StackFrame, ...]:
    frames = []
    for at, (code, line) in enumerate(pairs):
        if code.co_filename == _runner:
            break  # what lies outside of it started us, not the program
        if not is_own_code(code):
            number = line or code.co_firstlineno
            source = source_line(code.co_filename, number)
            frames.append(StackFrame(code.co_filename, number, _function_name(code), source, marks.get(at, "")))
    frames.reverse()
    return tuple(frames)


def take(
    *,
    stacks: bool | Collection[int] = False,
    only: Collection[int] | None = None,
    stack_limit: int = 100,
    named: bool = True,
) -> Snapshot:
    """Return a consistent picture of this process.

    Args:
        stacks: True for the stack of every actor, or the serials of the actors whose stacks are wanted.
        only: Serials of the actors to look at; None for all.  Resources are those that they hold or wait for.
        stack_limit: Innermost frames kept of each stack.
        named: False for a picture that is only judged and shown to nobody: finding names costs more than all the rest.
    """
    records = [r for r in core.records() if only is None or r.serial in only]
    sources = state.sources() if only is None else ()
    first = core.readings(records)
    read_once = [source.read() for source in sources]
    second = core.readings(records)
    read_twice = [source.read() for source in sources]
    now_ns, wall = _real.monotonic_ns(), _real.wall_seconds()
    frames = _real.current_frames()
    try:
        builder = Builder(frames, stacks, stack_limit, named)
        for record, one, two in zip(records, first, second, strict=True):
            builder.add_record(record, two, _same(one, two))
        for source, once, twice in zip(sources, read_once, read_twice, strict=True):
            source.add(builder, once, twice)
        if only is None:
            builder.add_unknown_threads({record.ident for record in records})
        return builder.build(now_ns, wall)
    finally:
        # Our own frame is among them and refers to the dictionary: a cycle, in which the frames of threads that end would
        # live, with all their locals, until the collector comes.
        frames.clear()


def of_event(event: state.MisuseEvent) -> Snapshot:
    """Return the small picture of one misuse: the thread to blame with its stack then, the lock, and its holder."""
    builder = Builder({}, False, 0)
    record = event.record
    builder.actors[record.serial] = Actor(
        record.serial,
        "thread",
        builder.pid,
        record.native_id,
        record.name,
        record.daemon,
        "ended" if record.ended else "live",
        resolve_stack(event.stack),
    )
    builder.add_resource(event.cell, _User(event.stack[0][0]) if event.stack else None)
    builder.put_resource(_with_creation(builder.resources[event.cell.serial], event.cell))
    if event.hold is not None:
        builder.assign(event.cell, event.hold)
    return builder.build(_real.monotonic_ns(), _real.wall_seconds())


class _User:
    """Stands for a wait where the name of what somebody uses is looked for: the code that uses it."""

    __slots__ = ("code", "user")

    def __init__(self, code: CodeType) -> None:
        self.code = code
        self.user = None


def _with_creation(resource: Resource, cell: Any) -> Resource:
    """Return a condition with the place where its lock was made, if that line makes a condition: its lock is its own then."""
    if resource.kind != "condition" or resource.created is not None:
        return resource
    lock = core.cell_of(getattr(cell.reference(), "_lock", None))
    site = call_site(lock.cls.code, lock.cls.lasti) if lock is not None else None
    if site is None or "Condition(" not in source_line(site.file, site.line):
        return resource
    return replace(resource, created=site, name=resource.name or naming.name_of(None, site))


def of_fork(fork: Any, holds: Iterable[Any]) -> Snapshot:
    """Return the small picture of a fork, in its child: who forked, and what threads of the parent held then."""
    builder = Builder({}, True, 100)
    builder.assign_inherited(holds)
    me = fork.record
    builder.actors[me.serial] = Actor(
        me.serial, "thread", builder.pid, me.native_id, me.name, me.daemon, "live", resolve_stack(fork.stack)
    )
    return builder.build(_real.monotonic_ns(), _real.wall_seconds())


def _same(one: tuple[Any, ...], two: tuple[Any, ...]) -> bool:
    return one[0] == two[0] and one[1] is two[1] and one[2] is two[2]


class Builder:
    """Collects the parts of one snapshot; a source (see `state.add_source`) adds what the core does not know.

    Serials of actors that are not threads, and of resources, come from ``core.next_serial()``; an actor's must be more than
    ``state.ACTOR_SERIALS``, where those of threads end.
    """

    def __init__(
        self, frames: dict[int, FrameType], stacks: bool | Collection[int], limit: int, named: bool = True
    ) -> None:
        """Begin with the frames of the moment; the rest is as in `take`."""
        self.frames = frames
        self.stacks = stacks
        self.limit = limit
        self.named = named
        self.pid = os.getpid()
        self.actors: dict[int, Actor] = {}
        self.resources: dict[int, Resource] = {}
        self.requests: list[RequestEdge] = []
        self.assignments: dict[tuple[int, int], AssignmentEdge] = {}
        self.signals: dict[tuple[int, int], SignalEdge] = {}
        self.unknown = 0
        self._names = naming.Namer()
        self._sites: dict[tuple[int, int], CallSite | None] = {}
        self._holds: dict[tuple[int, int], Any] = {}

    def _site(self, code: CodeType | None, lasti: int) -> CallSite | None:
        """Return `call_site`, looked up once: thousands of threads block in few places."""
        key = (id(code), lasti)  # waits and holds keep their code, and the readings keep them
        try:
            return self._sites[key]
        except KeyError:
            return self._sites.setdefault(key, call_site(code, lasti))

    def add_actor(self, actor: Actor) -> None:
        """List an actor that is no thread of ours."""
        self.actors[actor.serial] = actor

    def put_resource(self, resource: Resource) -> None:
        """List a resource as it is described."""
        self.resources[resource.serial] = resource

    def request(self, edge: RequestEdge) -> None:
        """Add what a listed actor waits for; the resource is listed by its caller."""
        self.requests.append(edge)

    def hold(self, edge: AssignmentEdge) -> None:
        """Add who holds a resource; both are listed by the caller."""
        self.assignments[edge.resource, edge.holder] = edge

    def signal(self, edge: SignalEdge) -> None:
        """Add who has ended waits for a resource before; both are listed by the caller."""
        self.signals[edge.resource, edge.actor] = edge

    def add_record(self, record: Any, reading: tuple[Any, ...], stable: bool) -> None:
        """Add an actor with what it holds and, if both readings agree, what it waits for."""
        epoch, wait, hold, held = reading
        record.refresh()
        frame = self.frames.get(record.ident)
        gone = record.ended or frame is None
        actor = Actor(
            record.serial,
            "thread",
            record.pid,
            record.native_id,
            record.name,
            record.daemon,
            self._state(record, wait, stable, gone),
            *self._stack(record, None if gone else frame, interrupted=bool(held) and wait is not None),
        )
        self.actors[record.serial] = core.untracked(actor)
        for cell, own in held:
            self.assign(cell, own)
        if wait is None or not stable or gone:
            return
        resource = wait.resource
        self.add_resource(resource, wait)
        site = self._site(wait.code, wait.lasti)
        own = hold is not None and hold[0] is record and wait.token is not None
        habit = state.hold_discipline(resource, wait.token) if own else "bare"
        over = interruptions.over(frame, hold[1], hold[2], is_own_code) if own else None
        request = RequestEdge(record.serial, resource.serial, wait.since_ns, epoch, wait.timed, site, habit, over)
        self.requests.append(core.untracked(request))
        if hold is not None:
            self.assign(resource, hold)
        for holder, depth in list(getattr(resource, "holders", {}).items()):
            if depth > 0 and not getattr(resource, "foreign", False):  # of a signal the holders say nothing
                self.hold(AssignmentEdge(resource.serial, holder.serial, None, depth, None))
                self._add_holder(holder)
        for signaller, times in list(getattr(resource, "signallers", {}).items()):
            self.signal(SignalEdge(resource.serial, signaller.serial, times))
            self._add_holder(signaller)

    def _state(self, record: Any, wait: Any, stable: bool, gone: bool) -> str:
        if record.agent:
            return "agent"
        if gone:
            return "ended"
        if wait is None or not stable:
            return "live"
        return "timed" if wait.timed else "blocked"

    def _stack(
        self, record: Any, frame: FrameType | None, *, interrupted: bool = False
    ) -> tuple[tuple[StackFrame, ...], tuple[str, ...]]:
        """Return a thread's stack, if it is wanted, and calls; who holds something and waits is looked at more closely."""
        if self.stacks is False or (self.stacks is not True and record.serial not in self.stacks):
            return (), ()
        if frame is None:
            return resolve_stack(forks.stack_of(record)), ()
        marks = interruptions.find(frame, record.ident) if interrupted else EMPTY
        return stack_frames(frame, self.limit, marks), calls.signalling_calls(frame)

    def assign(self, cell: Any, hold: Any) -> None:
        """Add an assignment edge, with its resource and holder."""
        holder = hold[0]
        key = (cell.serial, holder.serial)
        if self._holds.get(key) is hold:
            return  # its holder and each of its waiters come with the same one
        self._holds[key] = hold
        self.add_resource(cell, None)
        depth = max(1, getattr(cell, "depth", 1))
        since = getattr(cell, "since_ns", None)
        site = self._site(hold[1], hold[2])
        edge = AssignmentEdge(cell.serial, holder.serial, since, depth, site, self._discipline(cell, hold))
        self.assignments[key] = core.untracked(edge)
        self._add_holder(holder)

    def assign_inherited(self, holds: Iterable[Any]) -> None:
        """Add locks that threads of the parent process held at the fork."""
        for each in holds:
            self.assign(each.cell, each.hold)

    def _discipline(self, cell: Any, hold: Any) -> str:
        """Return what is known of who releases: only a function that is still running can be expected to do it itself."""
        habit = state.hold_discipline(cell, hold)
        inherited = forks.inherited(cell, hold)
        if inherited is not None:
            return inherited.discipline()
        if cell.kind not in state.PLAIN_KINDS or habit == "try":
            return habit
        running = state.is_running(self.frames.get(hold[0].ident), hold)
        return state.unless_running(habit, cell, hold, running=running)

    def _add_holder(self, holder: Any) -> None:
        """List a holder that is not among the records looked at: ended, or outside ``only``."""
        if holder.serial not in self.actors:
            ended = holder.ended or holder.ident not in self.frames
            wait = holder.waiting()
            self.actors[holder.serial] = Actor(
                holder.serial,
                "thread",
                holder.pid,
                holder.native_id,
                holder.name,
                holder.daemon,
                self._state(holder, wait, True, ended),
                *self._stack(holder, None if ended else self.frames.get(holder.ident)),
            )

    def add_resource(self, cell: Any, wait: Any) -> None:
        """Add a resource; a wait for it may tell its name."""
        known = self.resources.get(cell.serial)
        if known is not None and (known.name or wait is None or not self.named):
            return
        self.resources[cell.serial] = core.untracked(self.describe(cell, wait))

    def describe(self, cell: Any, wait: Any) -> Resource:
        """Return the frozen description of a lock, condition, thread ...; a wait for it may tell its name."""
        cls = getattr(cell, "cls", None)
        created = self._site(cell.code, cell.lasti) if cls is None else self._site(cls.code, cls.lasti)
        kind = cell.kind
        target = wait.user if wait is not None else None
        permits = text = ended_by = given = None
        if cls is not None:
            signal = cls.signal
        else:
            if target is None and hasattr(cell, "reference"):
                target = cell.reference()
            given = _given_name(target)
            signal = bool(getattr(cell, "foreign", True) and kind != "thread")
            permits = _permits(kind, target)
            ended_by, text = getattr(cell, "ended_by", None), _detail(cell, target)
        name = cell.name or given or (self._names.name_of(target, created, wait) if self.named else None)
        return Resource(cell.serial, kind, name, created, signal, permits, ended_by, text)

    def add_unknown_threads(self, known: set[int]) -> None:
        """List threads that never used anything tracked; serials from the far end, they have no record."""
        for ident, frame in self.frames.items():
            if ident in known:
                continue
            self.unknown += 1
            thread = _real.find_thread(ident)
            native = getattr(thread, "native_id", None)
            name = thread.name if thread is not None else f"thread-{native or ident}"
            serial = state.ACTOR_SERIALS - self.unknown
            stack = stack_frames(frame, self.limit) if self.stacks is True else ()
            daemon = thread.daemon if thread is not None else True
            self.actors[serial] = Actor(serial, "thread", self.pid, native, name, daemon, "live", stack)

    def build(self, now_ns: int, wall: float) -> Snapshot:
        """Return the snapshot, sorted as P3 wants it."""
        return Snapshot(
            pid=self.pid,
            monotonic_ns=now_ns,
            wall_seconds=wall,
            actors=tuple(sorted(self.actors.values(), key=lambda a: a.serial)),
            resources=tuple(sorted(self.resources.values(), key=lambda r: r.serial)),
            requests=tuple(sorted(self.requests, key=lambda e: e.actor)),
            assignments=tuple(sorted(self.assignments.values(), key=lambda e: (e.resource, e.holder))),
            signals=tuple(sorted(self.signals.values(), key=lambda e: (e.resource, e.actor))),
            untracked_locks=state.untracked_locks,
            foreign_threads=max(0, _native_threads() - lastresort.native_threads() - len(self.frames)),
        )


def describe_resource(cell: Any) -> Resource:
    """Return the frozen description of one resource."""
    return Builder({}, False, 0).describe(cell, None)


def _given_name(target: Any) -> str | None:
    """Return the name that the program gave to an object of which the cell stands for a part: one of a queue's conditions."""
    cell = state.existing_cell(target) if target is not None else None
    return cell.name if cell is not None else None


def _detail(cell: Any, target: Any) -> str | None:
    detail = getattr(cell, "detail", None)
    if detail is None or target is None:
        return None
    text: str | None = None
    try:
        text = detail(target)
    except Exception as error:  # noqa: BLE001 - border: attributes of an object of the program, which may be anything
        state.count_error("detail", error)
    return text


def _permits(kind: str, target: Any) -> int | None:
    if kind == "semaphore":
        value = getattr(target, "_value", None)
        return value if isinstance(value, int) else None
    if kind == "barrier":
        parties, count = getattr(target, "_parties", None), getattr(target, "_count", None)
        return parties - count if isinstance(parties, int) and isinstance(count, int) else None
    return None


def _native_threads() -> int:
    """Return the number of the process's OS threads, 0 where it cannot be told."""
    try:
        with _real.open_file("/proc/self/stat", "rb", buffering=0) as file:
            text: bytes = file.read(4096)
        return int(text.rpartition(b")")[2].split()[17])  # num_threads; a listing takes 10 us for each
    except (OSError, ValueError, IndexError):
        return 0
