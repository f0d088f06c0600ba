"""A type in the place of ``_multiprocessing.SemLock`` that knows who holds it, and waits for it in the open.

It is derived from the original and calls it for everything that is done, so semantics, attributes, pickling (``_rebuild``),
resource tracking and ``isinstance`` are those of the original.  With the C core its methods are replaced by those of
``_core_semlock.c``, which do the same without a call of Python where nobody has to wait.

A lock that is free is taken at once and its holder noted; who has to wait publishes that first.  A wait that lasts longer
than `LONG_SECONDS` wakes the monitor, so that the other processes come to know of it; nobody else pays for the board's slots.

A semaphore (of more than one permit, or of which anybody may release) has no holder.  A lock given back by somebody who did
not take it is a signal from then on; see ``shared``.

Assumes    the original's ``acquire(False)`` neither waits nor runs Python code.
Limits     who is killed between taking a lock and noting it leaves one that nobody is known to have.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from concagent import _real, core, shared, state
from concagent.errors import DeadlockError
from concagent.hooks.undrained import Undrained
from concagent.model import Actor, AssignmentEdge, CallSite, RequestEdge, Resource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import CodeType, FrameType

    from concagent.board import Holder

LONG_SECONDS: Final = 0.3
_RECURSIVE: Final = 0
_LIBRARY: Final = "multiprocessing.synchronize"
_OURS: Final = frozenset({_LIBRARY, __name__, "multiprocessing.context"})
_PLAIN_BLOCK: Final = frozenset({bool, int})
_LONG_INT: Final = 1 << 62  # what the original makes of more seconds is its affair
_DEPTH: Final = 8  # frames between a wait in C and the function of the library that began it


def replacement(original: Any) -> Any:
    """Return our type, derived from this one."""
    getframe = _real.getframe
    plain_acquire, plain_release, count = original.acquire, original.release, original._count

    class SemLock(original):  # type: ignore[misc]
        """The original, watched."""

        __slots__ = ("__weakref__", "cell")

        def __new__(cls, kind: int, value: int, maxvalue: int, name: str, unlink: bool) -> Any:
            """Make the semaphore as the original does."""
            made = original.__new__(cls, kind, value, maxvalue, name, unlink)
            made.cell = _new_cell(made, kind, maxvalue, name, rebuilt=False)
            return made

        @classmethod
        def _rebuild(cls, handle: int, kind: int, maxvalue: int, name: Any) -> Any:
            """Open the semaphore that another process has made, as the original does."""
            made = super()._rebuild(handle, kind, maxvalue, name)
            made.cell = _new_cell(made, kind, maxvalue, name, rebuilt=True)
            return made

        def acquire(self, block: Any = True, timeout: Any = None) -> bool:
            """Take it as the original does."""
            cell = self.cell
            if cell is None or not core.is_recording():
                return plain_acquire(self, block, timeout)  # type: ignore[no-any-return]
            if type(block) not in _PLAIN_BLOCK or not (
                timeout is None or type(timeout) is float or (type(timeout) is int and abs(timeout) < _LONG_INT)
            ):
                return plain_acquire(self, block, timeout)  # type: ignore[no-any-return]
            return bool(_acquire(self, cell, block, timeout, getframe(1), entered=False))

        def __enter__(self) -> bool:
            cell = self.cell
            if cell is None or not core.is_recording():
                return plain_acquire(self)  # type: ignore[no-any-return]
            return bool(_acquire(self, cell, True, None, getframe(1), entered=True))

        def release(self) -> None:
            """Give it back as the original does."""
            cell = self.cell
            if cell is None:
                pass
            elif cell.kind == "mp-lock":
                if cell.hold is not None or self._get_value() < self.maxvalue:  # else it is free, and this an error
                    _drop(cell)
            elif cell.kind == "mp-rlock" and count(self) == 1 and self._is_mine():
                _drop(cell)
            plain_release(self)
            if cell is not None and cell.hold is None:
                _call(cell.done)

        def __exit__(self, exc_type: Any = None, exc_value: Any = None, exc_tb: Any = None, /) -> None:
            self.release()

        def _after_fork(self) -> None:
            if self.cell is not None:
                self.cell.hold = None
            super()._after_fork()

    def _acquire(self: Any, cell: shared.Cell, block: Any, timeout: Any, frame: FrameType, *, entered: bool) -> Any:
        _call(cell.attempt)
        got = plain_acquire(self, False)
        waited = not got and block
        if not got:
            _call(cell.done)
        if waited:
            got = _wait(self, cell, timeout)
        if got and (cell.kind == "mp-lock" or (cell.kind == "mp-rlock" and count(self) == 1)):
            _note(cell, frame, entered=entered)
            if waited:
                _call(cell.got)
        return got

    def _wait(self: Any, cell: shared.Cell, timeout: Any) -> bool:
        """Wait in the open; who has the lock then still has to sign, and to say that he ``got`` it."""
        timed = timeout is not None
        got, mark = False, core.wait_mark()
        _call(cell.want)
        try:
            _publish(cell, timed)
            if timed or not cell.place:
                got = plain_acquire(self, True, timeout)
            elif plain_acquire(self, True, LONG_SECONDS):
                got = True
            else:
                shared.on_long_wait()
                got = plain_acquire(self, True)
        finally:
            try:  # 3.10 looks for signals at the beginning of a handler, but for a ``try``
                core.end_waits(mark)
            finally:
                pass
            if not got:
                _call(cell.got)
        return got

    for name in ("__new__", "_rebuild", "acquire", "__enter__", "release", "__exit__", "_after_fork"):
        method = SemLock.__dict__[name]
        getattr(method, "__func__", method).__qualname__ = f"SemLock.{name}"
    SemLock.__module__, SemLock.__qualname__ = original.__module__, original.__qualname__
    SemLock.__doc__ = original.__doc__
    core.hasten_semlock(SemLock, original, shared.Cell, _wait, _drop, _resolve, _find_place, _got)
    return SemLock


def _new_cell(made: Any, kind: int, maxvalue: int, name: Any, *, rebuilt: bool) -> shared.Cell | None:
    try:
        frame: FrameType | None = _real.getframe(2)
        target = made
        while frame is not None and _is_makers(frame):
            if frame.f_code.co_name in {"__init__", "__setstate__"}:
                target = frame.f_locals.get("self", target)
            frame = frame.f_back
        word = "mp-rlock" if kind == _RECURSIVE else "mp-lock" if maxvalue == 1 else "mp-semaphore"
        key, place = (shared.key_of(name), 0) if isinstance(name, str) else (0, 0)
        if key and word != "mp-semaphore":
            place = shared.claim_place(key, fresh=not rebuilt)
        code, lasti = (frame.f_code, frame.f_lasti) if frame is not None and not rebuilt else (None, 0)
        cell = shared.Cell(word, key, place, target, code, lasti)
        shared.register(cell, made)
    except Exception as error:  # noqa: BLE001 - border: the program has its lock all the same
        state.count_error("hook", error)
        return None
    return cell


def _is_makers(frame: FrameType) -> bool:
    """Return whether this is code that makes locks for others: of queues, pools, managers."""
    name = frame.f_globals.get("__name__")
    return name == __name__ or (isinstance(name, str) and name.startswith("multiprocessing."))


def _is_library(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__") in _OURS


def _beyond(frame: FrameType) -> tuple[FrameType, bool]:
    """Return the program's frame behind those of the library, and whether it enters the lock."""
    entered = False
    while _is_library(frame) and frame.f_back is not None:
        entered = frame.f_code.co_name == "__enter__"
        frame = frame.f_back
    return frame, entered


def _library_files() -> set[str]:
    module = sys.modules.get(_LIBRARY)
    enter = getattr(getattr(module, "SemLock", None), "__enter__", None)
    return {getattr(getattr(each, "__code__", None), "co_filename", "") for each in (enter, _library_files)}


def _resolve(code: CodeType, lasti: int, entered: bool) -> int:
    """Return the number of a line on the board; -1 if it is the library's, and its caller counts."""
    return -1 if code.co_filename in _library_files() else shared.site_number(code, lasti, entered)


def _find_place(cell: shared.Cell) -> None:
    cell.find_place()


def _got(cell: shared.Cell) -> None:
    cell.got()


def _call(note: Callable[[], None]) -> None:
    try:
        note()
    except Exception as error:  # noqa: BLE001 - border: the lock is tried all the same
        state.count_error("hook", error)


def _note(cell: shared.Cell, frame: FrameType, *, entered: bool) -> None:
    try:
        if frame.f_globals.get("__name__") in _OURS:
            frame, entered = _beyond(frame)
        cell.take(frame, entered)
    except Exception as error:  # noqa: BLE001 - border: the lock is taken
        state.count_error("hook", error)


def _drop(cell: shared.Cell) -> None:
    try:
        cell.drop()
    except Exception as error:  # noqa: BLE001 - border: the lock is to be given back
        state.count_error("hook", error)


def _publish(cell: shared.Cell, timed: bool) -> None:
    try:
        wait = core.begin_wait(cell, timed, _beyond(_real.getframe(1))[0])
        core.check_wait(wait)
    except DeadlockError:
        raise
    except Exception as error:  # noqa: BLE001 - border: the wait goes on with plain semantics
        state.count_error("hook", error)


# ---------------------------------------------------------------- pictures


class SharedSource:
    """What pictures say of shared locks, and of threads that wait for a child's end (see ``state.Source``).

    Another process may give back a semaphore, and a lock of which the code does not show that its holder does; it counts as
    alive.  Whether it really is able to is asked where all processes are seen: see ``union``.
    """

    def __init__(self) -> None:
        """Know of nobody yet."""
        self._serials: dict[Any, int] = {}
        self._since: dict[int, tuple[int, int]] = {}  # actor -> (child, since when)
        self._undrained = Undrained()

    def has_work(self) -> bool:
        """Return whether a thread waits for a child."""
        return bool(self._joins())

    def marks(self) -> frozenset[Any]:
        """Return what is the same as long as the same waits for shared locks and for children last, empty without any.

        That is the question before a picture is taken.
        """
        waits = [(record, record.waiting()) for record in core.records()]
        locks = {(r.serial, r.epoch) for r, wait in waits if wait is not None and type(wait.resource) is shared.Cell}
        joins = {(shared.CHILD, serial, pid) for serial, (pid, _) in self._joins().items()}
        return frozenset(joins) | locks

    def signature(self) -> Any:
        """Return what is the same only while nobody begins or ends a wait for a child, and shared locks keep their holders."""
        waits, joins = self.read()
        return tuple((serial, holder) for serial, (_, holder) in waits.items()), tuple(joins.items())

    def read(self) -> tuple[dict[int, tuple[Any, Holder | None]], dict[int, tuple[int, int]]]:
        """Return actor -> (cell, its holder), and actor -> (child that it waits for, epoch)."""
        try:
            waits = {}
            for record in core.records():
                wait = record.waiting()
                if wait is not None and isinstance(wait.resource, shared.Cell):
                    waits[record.serial] = (wait.resource, wait.resource.holder())
            return waits, self._joins()
        except Exception as error:  # noqa: BLE001 - border
            state.count_error("hook", error)
            return {}, {}

    def add(self, builder: Any, one: Any, two: Any) -> None:
        """Add holders in other processes, and the waits for children."""
        for cell in shared.cells():
            hold = cell.hold
            if hold is not None and cell.kind != "mp-semaphore":
                builder.assign(cell, hold)
        for request in list(builder.requests):
            cell, holder = two[0].get(request.actor, (None, None))
            if cell is not None and cell.serial == request.resource:
                firm = one[0].get(request.actor) == (cell, holder)
                self._add_holder(builder, cell, holder if firm else None)
        blocked = {edge.actor for edge in builder.requests}
        since: dict[int, tuple[int, int]] = {}
        for serial, (pid, epoch) in two[1].items():
            actor = builder.actors.get(serial)
            if one[1].get(serial) != (pid, epoch) or actor is None or actor.state != "live" or serial in blocked:
                continue
            before = self._since.get(serial)
            since[serial] = before if before is not None and before[0] == pid else (pid, _real.monotonic_ns())
            self._add_join(builder, actor, pid, since[serial][1], epoch)
        self._since = since
        self._undrained.forget_all_but({pid for pid, _ in since.values()})

    def _add_holder(self, builder: Any, cell: shared.Cell, holder: Holder | None) -> None:
        resource = builder.resources[cell.serial]
        mine = holder is not None and (holder.pid, holder.start) == shared.me()
        if holder is not None and not cell.foreign:
            board = shared.board()
            habit = shared.site_of(holder.site)[0] if board is not None else "bare"
            firm = cell.kind == "mp-rlock" or shared.is_firm(habit)
            if mine and firm:
                return
            if not mine and firm:
                builder.add_actor(self._process(holder.pid, f"pid {holder.pid}"))
                site = shared.site_of(holder.site)[1]
                serial = self._serial(("process", holder.pid))
                builder.hold(AssignmentEdge(cell.serial, serial, holder.since_ns, 1, site))
                return
        builder.put_resource(replace(resource, ended_by="any-holder"))
        others = self.others()
        builder.add_actor(others)
        builder.hold(AssignmentEdge(cell.serial, others.serial, None, 1, None))

    def others(self) -> Actor:
        """Return the actor that stands for all other processes."""
        return self._process(0, "other processes")

    def _process(self, pid: int, name: str) -> Actor:
        return Actor(self._serial(("process", pid)), "process", pid, pid or None, name, False, "live")

    def _add_join(self, builder: Any, actor: Actor, pid: int, since_ns: int, epoch: int) -> None:
        name = _child_name(pid)
        end, process = self._serial(("end", pid)), self._process(pid, name)
        shared.ends[end] = pid
        stuck = self._undrained.pipe(pid)
        builder.add_actor(replace(process, state="blocked") if stuck else process)
        builder.add_actor(replace(actor, state="blocked"))
        builder.put_resource(Resource(end, "process", name, None))
        builder.hold(AssignmentEdge(end, process.serial, None, 1, None))
        ident = next((record.ident for record in core.records() if record.serial == actor.serial), 0)
        site = _join_site(builder.frames.get(ident))
        builder.request(RequestEdge(actor.serial, end, since_ns, epoch, False, site))
        if stuck is not None:
            pipe, asleep_ns = stuck
            full = self._serial(("pipe", pid))
            words = f"full, {pipe.filled_bytes} of {pipe.size_bytes} bytes"
            builder.put_resource(Resource(full, "pipe", None, None, detail=words))
            builder.hold(AssignmentEdge(full, actor.serial, None, 1, site))
            builder.request(RequestEdge(process.serial, full, asleep_ns, asleep_ns, False, None))

    def _serial(self, key: tuple[str, int]) -> int:
        if key not in self._serials:
            self._serials[key] = core.next_serial() + (state.ACTOR_SERIALS if key[0] == "process" else 0)
        return self._serials[key]

    def _joins(self) -> dict[int, tuple[int, int]]:
        codes = _poll_codes()
        found: dict[int, tuple[int, int]] = {}
        if not codes:
            return found
        frames = _real.current_frames()
        try:
            for ident, frame in frames.items():
                pid = _awaited_child(frame, codes)
                record = core.record_of_ident(ident) if pid else None
                if record is not None and not record.agent and not record.waits:
                    found[record.serial] = (pid, record.epoch)
        finally:
            frames.clear()
        return found


def _poll_codes() -> set[Any]:
    """Return the code of the functions in which ``Process.join`` waits."""
    modules: Iterable[Any] = (
        sys.modules.get("multiprocessing.popen_fork"),
        sys.modules.get("multiprocessing.popen_forkserver"),
    )
    polls = [getattr(getattr(module, "Popen", None), "poll", None) for module in modules]
    codes = {getattr(poll, "__code__", None) for poll in polls}
    return codes - {None}


def _awaited_child(frame: FrameType | None, codes: set[Any]) -> int:
    """Return the pid of the child that a thread waits for without a time limit, 0 for none."""
    depth = 0
    while frame is not None and frame.f_code not in codes:
        frame, depth = frame.f_back, depth + 1
        if depth > _DEPTH:
            return 0
    if frame is None or frame.f_locals.get("flag") != 0:
        return 0
    process = frame.f_locals.get("self")
    return int(getattr(process, "pid", 0) or 0) if getattr(process, "returncode", 0) is None else 0


def _child_name(pid: int) -> str:
    """Return what the program calls a child, and its pid."""
    process = sys.modules.get("multiprocessing.process")
    children: set[Any] = getattr(process, "_children", set())
    for child in children.copy():
        if getattr(getattr(child, "_popen", None), "pid", None) == pid:
            return f"{child.name} (pid {pid})"
    return f"pid {pid}"


def _join_site(frame: FrameType | None) -> CallSite | None:
    """Return the program's line that waits."""
    while frame is not None and str(frame.f_globals.get("__name__", "")).split(".")[0] in {
        "multiprocessing",
        "selectors",
    }:
        frame = frame.f_back
    if frame is None:
        return None
    code = frame.f_code
    return CallSite(code.co_filename, frame.f_lineno or 0, getattr(code, "co_qualname", code.co_name))
