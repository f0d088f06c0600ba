"""Shows waits for what ``multiprocessing`` makes of semaphores and pipes as what they are: an event, a queue, a connection.

An event of ``multiprocessing`` is a condition, a condition is four semaphores and a lock, a queue is a pipe and three more.  The
wait of a thread shows as that of the innermost of these, or not at all, as a read from a pipe is a call of the system.  Both
are told from the thread's stack: the library's functions on it say on whose behalf it waits.  Nothing is replaced, so it
costs the program nothing; who waits long is looked at once a second.

A consumer in ``Queue.get`` sleeps in a read and holds the lock of the readers, and the other consumers wait for that lock.  All
of them wait for an item, and so it is said; but of a lock whose holder has died it is said that they wait for it.

Who could end such a wait is a matter of all processes: in the picture of one, others can, and are alive.  What all of
them have in common is written to ``shared.awaited`` for that; see ``whohas`` and ``standstill``.

Argument   a wait for a semaphore is the core's, with its epoch.  A read or write is one wait while the thread was asleep in it
           all the time: the number of its sleeps is part of the epoch, and the pipe must not be ready.
Assumes    Linux's ``/proc/self/task``; elsewhere, who reads from a pipe counts as alive.  The functions and fields of
           ``multiprocessing`` of 3.10 to 3.15; others are not understood and count as alive.
Limits     sockets of other machines; connections that wait for somebody to connect.
Cost       with ``multiprocessing`` loaded, a look at the stacks once a second; for each thread in a read, some small files.
"""

from __future__ import annotations

import re
import select
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from concagent import _real, core, shared, state, whohas
from concagent.framevalues import values_of
from concagent.model import AssignmentEdge, CallSite, RequestEdge, Resource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType

    from concagent.model import Actor

_LIBRARY: Final = "multiprocessing."
_COMPARED: Final = 4  # fields of `Awaited` that two readings have to agree on
_DEPTH: Final = 16  # functions of the library on one stack
_MOST_PIPES: Final = (
    32  # threads in reads and writes that are looked at; a server has hundreds, and the others count as alive
)
_MOST_ENDS: Final = 64  # objects that one wait is for
_CALL: Final = re.compile(r"([A-Za-z_][\w.\[\]]*)\.(?:recv|recv_bytes|recv_bytes_into|send|send_bytes|poll)\(")

# Functions of the library that wait, or on whose behalf others do: module, class, name -> what they are to us.
_FUNCTIONS: Final = {
    ("multiprocessing.synchronize", "Condition", "wait"): "condition",
    ("multiprocessing.synchronize", "Condition", "notify"): "notify",
    ("multiprocessing.synchronize", "Event", "wait"): "event",
    ("multiprocessing.synchronize", "Event", "set"): "event",
    ("threading", "Barrier", "wait"): "barrier",
    ("multiprocessing.queues", "Queue", "put"): "put",
    ("multiprocessing.queues", "Queue", "get"): "get",
    ("multiprocessing.queues", "JoinableQueue", "put"): "put",
    ("multiprocessing.queues", "JoinableQueue", "join"): "tasks",
    ("multiprocessing.queues", "SimpleQueue", "get"): "get",
    ("multiprocessing.queues", "SimpleQueue", "put"): "send to",
    ("multiprocessing.connection", "Connection", "_recv"): "recv",
    ("multiprocessing.connection", "Connection", "_send"): "send",
    ("multiprocessing.connection", "", "wait"): "any",
    ("multiprocessing.managers", "BaseProxy", "_callmethod"): "call",
}
_KINDS: Final = {
    "condition": "mp-condition",
    "notify": "mp-condition",
    "event": "mp-event",
    "barrier": "mp-barrier",
    "put": "mp-queue",
    "get": "mp-queue",
    "send to": "mp-queue",
    "tasks": "mp-queue",
    "call": "mp-manager",
}


class Awaited(NamedTuple):
    """What a thread waits for: as both readings have to find it, and as it is said."""

    identity: tuple[str, ...]  # in all processes: the ends that it needs
    kind: str
    inner: int  # serial of the semaphore whose wait it is, 0 for a pipe's
    turns: int  # how often the thread has gone to sleep; 0 where the core knows the wait
    detail: str | None
    target: Any
    made: Any  # a cell that knows where it was made, None
    frame: Any  # the program's


class WaitSource:
    """The waits for what multiprocessing is made of, for snapshots (see ``state.Source``)."""

    def __init__(self, others: Callable[[], Actor]) -> None:
        """Know of nobody yet; ``others`` makes the actor that stands for all other processes."""
        self._others = others
        self._serials: dict[tuple[str, ...], int] = {}
        self._since: dict[int, tuple[Any, int]] = {}  # actor -> (what it waits for, since when)
        self._codes: dict[CodeType, str] = {}
        self._modules: tuple[Any, ...] = ()
        self._seen = frozenset[tuple[int, int]]()

    # ------------------------------------------------------------ is there anything to see

    def has_work(self) -> bool:
        """Return whether a thread is in a read or write that was not looked at yet; what lasts is for all processes to judge."""
        before, self._seen = self._seen, self._in_pipes()
        return bool(self._seen - before)

    def marks(self) -> frozenset[Any]:
        """Return what is the same as long as the same threads are in the same reads and writes."""
        return self._in_pipes()

    def _in_pipes(self) -> frozenset[tuple[int, int]]:
        codes = self._known_codes()
        found = set()
        if codes:
            frames = _real.current_frames()
            try:
                for ident, frame in frames.items():
                    first = next(self._steps(frame), None)
                    if first is not None and first[0] in {"recv", "send", "any"}:
                        found.add((ident, id(first[1])))
            finally:
                frames.clear()  # our own frame is among them
        return frozenset(found)

    # ------------------------------------------------------------ two readings

    def read(self) -> dict[int, Awaited]:
        """Return actor's serial -> what it waits for."""
        found: dict[int, Awaited] = {}
        if not self._known_codes():
            return found
        frames = _real.current_frames()
        pipes = 0
        try:
            for ident, frame in frames.items():
                record = core.record_of_ident(ident)
                if record is None or record.agent:
                    continue
                wait = record.waiting()
                try:
                    if wait is None:
                        awaited = self._pipe_of(record, frame) if pipes < _MOST_PIPES else None
                        pipes += awaited is not None
                    elif type(wait.resource) is shared.Cell:
                        awaited = self._semaphore_of(wait.resource, frame)
                    else:
                        continue
                except Exception as error:  # noqa: BLE001 - border: objects of the program may look otherwise than CPython's
                    state.count_error("hook", error)
                    continue
                if awaited is not None:
                    found[record.serial] = awaited
        finally:
            frames.clear()
        return found

    def _semaphore_of(self, cell: shared.Cell, frame: FrameType) -> Awaited | None:
        """Return what waits for this semaphore are for; None for the semaphore itself, or the lock."""
        steps = list(self._steps(frame))
        if not steps:
            return None
        (role, first), outer = steps[0], steps[-1][0]
        target = _self_of(first)
        ends: tuple[str | None, ...] = ()
        if role == "condition":
            inner = target._wait_semaphore
        elif role == "notify":
            inner = target._woken_count
        elif role == "put":
            inner = target._sem
        elif role == "get":
            inner, ends = target._rlock, (whohas.other_end(target._reader.fileno(), writing=False),)
        elif role == "send to":
            inner, ends = target._wlock, (whohas.other_end(target._writer.fileno(), writing=True),)
        else:
            return None
        if getattr(inner._semlock, "cell", None) is not cell:
            return None  # the lock of a condition, say
        if role in {"get", "send to"}:
            if not cell.is_held_by_the_living():
                return None
        elif not cell.is_taken():
            return None  # about to go on
        if len(steps) > 1:
            target = _self_of(steps[-1][1])
        keys = [key for key in (shared.file_of(cell), *ends) if key is not None]
        if len(keys) < 1 + len(ends):
            return None
        detail, beyond = _detail(outer, role, target), self._beyond(steps[-1][1])
        return Awaited(tuple(keys), _KINDS[outer], cell.serial, 0, detail, target, cell, beyond)

    def _pipe_of(self, record: Any, frame: FrameType) -> Awaited | None:
        steps = list(self._steps(frame))
        if not steps or steps[0][0] not in {"recv", "send", "any"}:
            return None
        role, first = steps[0]
        outer, last = steps[-1]
        numbers = _of_any(first) if role == "any" else [_self_of(first)._handle]
        ends = [(number, role == "send") for number in numbers]
        if not ends or len(ends) > _MOST_ENDS or any(type(number) is not int for number, _ in ends):
            return None
        before = _sleep_of(record.native_id)
        children = _children() if role == "any" else {}
        found = [children.get(number) or whohas.other_end(number, writing=writing) for number, writing in ends]
        keys = tuple(sorted({key for key in found if key is not None}))
        if before is None or None in found or _are_ready(ends) or _sleep_of(record.native_id) != before:
            return None
        target = made = None
        if outer in {"get", "send to"}:  # who waits for the queue's lock waits for the same thing
            target = _self_of(last)
            lock = target._rlock if outer == "get" else target._wlock
            made = getattr(lock._semlock, "cell", None)
            file = shared.file_of(made) if made is not None else None
            if file is None:  # made before us
                return None
            keys = (file, *keys)
        detail = f"none of {len(ends)} is ready" if role == "any" else _detail(outer, role, target or last)
        return Awaited(keys, _KINDS.get(outer, "pipe"), 0, before, detail, target, made, self._beyond(last))

    # ------------------------------------------------------------ stacks

    def _known_codes(self) -> dict[CodeType, str]:
        """Return the code of the library's functions -> what it is to us; made anew when another module was loaded."""
        modules = tuple(sys.modules.get(module) for module, _, _ in _FUNCTIONS)
        if modules != self._modules:
            codes, is_whole = {}, True
            for (module, cls, name), role in _FUNCTIONS.items():
                place: Any = sys.modules.get(module)
                code = getattr(getattr(getattr(place, cls, None) if cls else place, name, None), "__code__", None)
                if code is not None:
                    codes[code] = role
                elif place is not None:
                    is_whole = False  # it is just being loaded
            self._codes, self._modules = codes, modules if is_whole else ()
        return self._codes if "multiprocessing.connection" in sys.modules else {}

    def _steps(self, frame: FrameType | None) -> Iterator[tuple[str, FrameType]]:
        """Yield the functions that we know at the top of a stack, innermost first, up to the program's own."""
        at = frame
        for _ in range(_DEPTH):
            if at is None:
                return
            role = self._codes.get(at.f_code)
            if role is not None:
                yield role, at
            elif not self._is_library(at):
                return
            at = at.f_back

    def _beyond(self, frame: FrameType) -> FrameType | None:
        """Return the program's frame behind those of the library."""
        beyond = frame.f_back
        while beyond is not None and self._is_library(beyond):
            beyond = beyond.f_back
        return beyond

    def _is_library(self, frame: FrameType) -> bool:
        name = frame.f_globals.get("__name__")
        return (
            frame.f_code in self._codes
            or name in {"selectors", "threading"}
            or (isinstance(name, str) and name.startswith(_LIBRARY))
            or frame.f_code.co_filename.startswith(state.own_folders)
        )

    # ------------------------------------------------------------ pictures

    def add(self, builder: Any, one: dict[int, Awaited], two: dict[int, Awaited]) -> None:
        """Let threads wait for what both readings found."""
        requests = {edge.actor: index for index, edge in enumerate(builder.requests)}
        since: dict[int, tuple[Any, int]] = {}
        told: dict[int, tuple[str, ...]] = {}
        serials: dict[tuple[str, ...], int] = {}
        for serial, now in two.items():
            before, index, actor = one.get(serial), requests.get(serial), builder.actors.get(serial)
            if before is None or before[:_COMPARED] != now[:_COMPARED] or actor is None:
                continue
            resource = serials[now.identity] = self._serials.get(now.identity) or core.next_serial()
            if now.inner:
                if index is None or builder.requests[index].resource != now.inner:
                    continue
                edge = builder.requests[index]
                builder.requests[index] = replace(edge, resource=resource, site=_site(now.frame) or edge.site)
            else:
                if index is not None or actor.state != "live":
                    continue
                same = (now.identity, now.turns)
                known = self._since.get(serial)
                since[serial] = known if known is not None and known[0] == same else (same, _real.monotonic_ns())
                builder.add_actor(replace(actor, state="blocked"))
                epoch = now.turns << 32 | _epoch_of(serial)
                site = _site(now.frame)
                builder.request(RequestEdge(serial, resource, since[serial][1], epoch, False, site))
            told[resource] = now.identity
            others = self._others()
            builder.add_actor(others)
            builder.put_resource(_resource(builder, resource, now))
            builder.hold(AssignmentEdge(resource, others.serial, None, 1, None))
        self._since, self._serials, shared.awaited = since, serials, told


def _epoch_of(serial: int) -> int:
    return next((record.epoch & 0xFFFFFFFF for record in core.records() if record.serial == serial), 0)


def _resource(builder: Any, serial: int, awaited: Awaited) -> Resource:
    made, name, created = awaited.made, None, None
    if made is not None:
        stand_in = state.SyncCell(awaited.kind, awaited.target)
        stand_in.code, stand_in.lasti = made.code, made.lasti
        described = builder.describe(stand_in, None)
        name, created = described.name, described.created
    elif awaited.frame is not None and awaited.kind == "pipe" and builder.named:
        name = _expression(awaited.frame)
    elif awaited.kind == "mp-manager":
        name, awaited = awaited.detail, awaited._replace(detail=None)
    return Resource(serial, awaited.kind, name, created, ended_by="any-holder", detail=awaited.detail)


def _expression(frame: FrameType) -> str | None:
    """Return what the program's line calls the connection."""
    from concagent.sources import source_line

    match = _CALL.search(source_line(frame.f_code.co_filename, frame.f_lineno or 0))
    return match[1] if match is not None else None


def _site(frame: FrameType | None) -> CallSite | None:
    if frame is None:
        return None
    code = frame.f_code
    return CallSite(code.co_filename, frame.f_lineno or 0, getattr(code, "co_qualname", code.co_name))


def _self_of(frame: FrameType) -> Any:
    return values_of(frame, ("self",))["self"]


def _of_any(frame: FrameType) -> list[Any]:
    """Return the descriptors that ``connection.wait`` waits for; none if it has a time limit, or they cannot be told."""
    values = values_of(frame, ("object_list", "timeout", "deadline"))
    objects: Any = values.get("object_list")
    if values.get("timeout") is not None or "deadline" in values or type(objects) not in {list, tuple}:
        return []
    connection = getattr(sys.modules.get("multiprocessing.connection"), "Connection", None)
    return [one if type(one) is int else one._handle if type(one) is connection else None for one in list(objects)]


def _children() -> dict[int, str]:
    """Return sentinel -> key, of multiprocessing's children: whoever else keeps the sentinel's pipe, it is the child's end."""
    module = sys.modules.get("multiprocessing.process")
    children: set[Any] = getattr(module, "_children", set())
    popens = [getattr(child, "_popen", None) for child in children.copy()]
    return {one.sentinel: whohas.child_key(one.pid) for one in popens if one is not None and one.returncode is None}


def _detail(outer: str, role: str, target: Any) -> str | None:
    if role == "notify":
        return "somebody who was notified has not woken"
    if outer == "event":
        return "not set"
    if outer == "barrier":
        missing = target._parties - target._count
        return f"{missing} of {target._parties} {'is' if missing == 1 else 'are'} missing"
    if outer == "put":
        return f"full, {target._maxsize} of {target._maxsize}"
    if outer == "tasks":
        tasks = target._unfinished_tasks._semlock._get_value()
        return f"{tasks} task{'s' * (tasks != 1)} not done"
    if outer == "call":
        values = values_of(target, ("self", "methodname"))
        return f"{values['self']._token.typeid}.{values['methodname']}()"
    return {"get": "empty", "recv": "empty", "send": "full", "send to": "full"}.get(outer)


# ---------------------------------------------------------------- what the kernel says of our own threads


def _sleep_of(native_id: int) -> int | None:
    """Return how often a thread has gone to sleep, if it sleeps now, and not for Python's own lock; else None."""
    try:
        with _real.open_file(f"/proc/self/task/{native_id}/status", "rb", buffering=0) as file:
            lines = dict(line.split(b":", 1) for line in file.read(8192).splitlines() if b":" in line)
        with _real.open_file(f"/proc/self/task/{native_id}/wchan", "rb", buffering=0) as file:
            where = file.read(64)
    except OSError:
        return None
    asleep = lines.get(b"State", b"").strip().startswith(b"S")
    if not asleep or b"futex" in where or where in {b"", b"0"}:
        return None
    return int(lines.get(b"voluntary_ctxt_switches", b"-1"))


def _are_ready(ends: list[tuple[Any, bool]]) -> bool:
    """Return whether one of these descriptors could be read from, or written to, now."""
    poll = select.poll()
    for number, writing in ends:
        poll.register(number, select.POLLOUT if writing else select.POLLIN)
    return bool(poll.poll(0))
