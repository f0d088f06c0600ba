"""Says who can complete a future that somebody waits for; reads it off the pool, and costs the program nothing.

``Future.result``, ``wait`` and ``as_completed`` wait on conditions and events, which are published already; the code that the
wait was published for tells that it is a future's.  What is missing is who ends it, and that needs no record on the way of
a task: it can be seen when somebody asks.

running  The frame of ``_WorkItem.run`` on a worker's stack holds the future: that worker completes it, and nobody else.
queued   The work item lies in the queue of a pool: any worker that gets free ends the wait.  While the pool may start another
         worker, whoever submits the next task starts it, so anybody alive ends the wait, too.  A worker that has no task at
         the moment is about to take one.
else     A future that the program made itself, or an executor that we do not know: anybody alive may complete it.  So it is
         with ``ProcessPoolExecutor``, too: its management thread, which completes the futures, waits for processes and counts
         as alive until it has ended.

Of several futures, ``as_completed`` and FIRST_COMPLETED need any one, so they are ended by anybody who ends one of them;
FIRST_EXCEPTION is treated so, too, since one that fails suffices.  ALL_COMPLETED needs all: whoever runs one of them has to
go on.  Those that are queued in the same pool then follow from those that run; where none runs yet, any worker of
the first pool has to.  What is left out makes a wait easier to end, never harder.

A pool's ``shutdown(wait=True)`` and the interpreter's exit join the workers: these are joins like all others.

Assumes    a future of a pool is completed by its work item alone.  A task that is still queued could also be cancelled by a live
           thread that kept its future; no program counts on that to come out of a pool that is full of its own waiters.
Argument   each reading falls between two readings of the waits (see ``snapshots``).  A worker that was in one wait all the time
           had the same stack all the time, so it ran what both readings found; anybody else is alive, and nothing depends on
           what was read of him.
Limits     a worker whose pool cannot be told; work items of subclasses that wrap or sort them: they count as "else".
           Before 3.13 reading a frame's locals leaves a copy with it, here in ``run`` of a blocked worker, until it returns.
Cost       only if somebody waits for a future: the frames of blocked workers; the pools' queues, if one is not running.
"""

from __future__ import annotations

import gc
import sys
import types
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from concagent import _real, core, state
from concagent.hooks.patching import PatchSet, Switch
from concagent.tuples import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import CodeType, FrameType

    from concagent.model import CallSite

_BASE: Final = "concurrent.futures._base"
_THREAD: Final = "concurrent.futures.thread"
_FOLDER: Final = "concurrent.futures."
_QUEUE_LIMIT: Final = 100_000  # queued tasks looked at; what lies behind counts as anybody's


class Ends(NamedTuple):
    """What ends one wait: `model.Resource.ended_by` and who holds it, each with the code that he runs for it."""

    how: str
    holders: tuple[tuple[Any, CodeType | None], ...] = ()
    growing: bool = False  # the pool may start another worker
    detail: str | None = None
    name: str | None = None  # the function that the task calls

    @property
    def soon(self) -> bool:
        """Return whether it ends by itself: done already, or a worker is about to take it."""
        return self.how == "any-holder" and not self.holders


ANYBODY: Final = Ends("signal")
SOON: Final = Ends("any-holder")


class Waiting(NamedTuple):
    """A thread's wait for futures: what it waits for, where, and the frame that waits."""

    wait: Any
    ends: Ends
    site: CallSite | None


class FutureSource:
    """The waits for futures, for snapshots (see ``state.Source``)."""

    def has_work(self) -> bool:
        """Return False: who waits for a future waits for a condition, and the core knows that."""
        return False

    def read(self) -> dict[int, Waiting]:
        """Return actor's serial -> what it waits for, of all threads that wait for futures."""
        try:
            return self._read()
        except Exception as error:  # noqa: BLE001 - border: futures of the program may look otherwise than CPython's
            state.count_error("hook", error)
            return {}

    def _read(self) -> dict[int, Waiting]:
        base = sys.modules.get(_BASE)
        codes = _waiting_codes(base) if base is not None else {}
        waits = [
            (record, wait)
            for record in core.records()
            if record.waits and not record.agent and (wait := record.waiting()) is not None and wait.code in codes
        ]
        if not waits:
            return {}
        frames = _real.current_frames()
        try:
            pools = _Pools(frames)
            found = {}
            for record, wait in waits:
                frame = frames.get(record.ident)
                found[record.serial] = Waiting(wait, _ends(pools, wait, codes[wait.code], frame), _site(frame))
            return found
        finally:
            frames.clear()  # our own frame is among them

    def add(self, builder: Any, one: dict[int, Waiting], two: dict[int, Waiting]) -> None:
        """Turn the conditions and events that were waited for into futures, with their holders."""
        from dataclasses import replace  # with all value types; most programs never take a picture

        requests = {edge.actor: index for index, edge in enumerate(builder.requests)}
        for serial, now in two.items():
            index = requests.get(serial)
            cell = now.wait.resource
            if index is None or builder.requests[index].resource != cell.serial:
                continue  # that wait is over
            before = one.get(serial)
            agreed = before is not None and before.wait is now.wait and before.ends[:3] == now.ends[:3]
            ends = now.ends if agreed else SOON
            known = all(record.serial in builder.actors for record, _ in ends.holders)
            _describe(builder, cell, ends if known else SOON)
            builder.requests[index] = replace(builder.requests[index], site=now.site or builder.requests[index].site)


def _describe(builder: Any, cell: Any, ends: Ends) -> None:
    from dataclasses import replace

    from concagent.model import AssignmentEdge, CallSite

    one = ends.how == "any-holder" and len(ends.holders) == 1 and not ends.growing
    builder.put_resource(
        replace(
            builder.resources[cell.serial],
            kind="future",
            name=builder.resources[cell.serial].name or ends.name,
            signal_mode=ends.growing,
            permits=1 if ends.soon else None,
            ended_by="holder" if one else ends.how,
            detail=ends.detail,
        )
    )
    for record, code in ends.holders:
        site = CallSite(code.co_filename, code.co_firstlineno, _name(code)) if code is not None else None
        builder.hold(AssignmentEdge(cell.serial, record.serial, None, 1, site))


def _name(code: CodeType) -> str:
    return getattr(code, "co_qualname", code.co_name)


def _waiting_codes(base: Any) -> dict[CodeType, str]:
    """Return the code of the functions that wait for futures -> their names; subclasses call these, or are none of ours."""
    future = base.Future.__dict__
    functions = (future.get("result"), future.get("exception"), base.wait, base.as_completed)
    return {f.__code__: f.__name__ for f in functions if isinstance(f, types.FunctionType)}


def _site(frame: FrameType | None) -> CallSite | None:
    """Return the program's line that waits: the innermost one that is neither ours nor the standard library's."""
    from concagent.model import CallSite

    inside = False
    while frame is not None:
        of_futures = str(frame.f_globals.get("__name__", "")).startswith(_FOLDER)
        if inside and not of_futures:
            return CallSite(frame.f_code.co_filename, frame.f_lineno or 0, _name(frame.f_code))
        inside = inside or of_futures
        frame = frame.f_back
    return None


# ---------------------------------------------------------------- what ends a wait


def _ends(pools: _Pools, wait: Any, function: str, frame: FrameType | None) -> Ends:
    target = wait.resource.reference()
    if target is None or frame is None:
        return SOON
    if function in {"result", "exception"}:
        return pools.ends_of(target)
    while frame is not None and frame.f_code is not wait.code:
        frame = frame.f_back
    values = frame.f_locals if frame is not None else {}
    waiter, futures = values.get("waiter"), values.get("fs" if function == "wait" else "pending")
    if getattr(waiter, "event", None) is not target or not isinstance(futures, (set, frozenset)):
        return ANYBODY
    pending = [future for future in tuple(futures) if future._state in {"PENDING", "RUNNING", "CANCELLED"}]
    if not pending:
        return SOON
    ends = [pools.ends_of(future._condition) for future in pending]
    done = len(futures) - len(pending)
    count = f"{len(pending)} of {len(futures)} futures not done" if done else f"{len(futures)} futures, none done"
    everything = function == "wait" and values.get("return_when") == "ALL_COMPLETED"
    return (_all_of if everything else _any_of)(ends)._replace(detail=count, name=None)


def _any_of(ends: list[Ends]) -> Ends:
    """Return what ends the first of several waits."""
    easiest = [one for one in ends if one.soon] or [one for one in ends if one.how == "signal"]
    if easiest:
        return easiest[0]
    return Ends("any-holder", _union(ends), any(one.growing for one in ends))


def _all_of(ends: list[Ends]) -> Ends:
    """Return what ends the last of several waits, or what has to happen for that in any case."""
    running = [one for one in ends if one.how == "any-holder" and len(one.holders) == 1 and not one.growing]
    if running:
        return Ends("all-holders", _union(running))
    hardest = [one for one in ends if one.holders] or [one for one in ends if one.how == "signal"]
    return hardest[0] if hardest else SOON


def _union(ends: Iterable[Ends]) -> tuple[tuple[Any, CodeType | None], ...]:
    found = {record.serial: (record, code) for one in ends for record, code in one.holders}
    return tuple(found[serial] for serial in sorted(found))


# ---------------------------------------------------------------- pools


class _Pools:
    """The thread pools at one moment; each part is read when it is first asked for."""

    def __init__(self, frames: dict[int, FrameType]) -> None:
        self._module: Any = sys.modules.get(_THREAD)
        self._frames = frames
        self._running: dict[int, Ends] | None = None
        self._queued: dict[int, Ends] | None = None
        self._kept: list[Any] = []  # objects whose ids are keys

    def ends_of(self, condition: Any) -> Ends:
        """Return what ends the wait for a future, by its condition."""
        if self._module is None:
            return ANYBODY
        if self._running is None:
            self._running = self._read_running()
        ends = self._running.get(id(condition))
        if ends is not None:
            return ends
        if self._queued is None:
            self._queued = self._read_queued()
        return self._queued.get(id(condition), ANYBODY)

    def _read_running(self) -> dict[int, Ends]:
        """Return what the blocked workers run: one of them that is not blocked is alive, and so anybody."""
        run = self._module._WorkItem.run.__code__
        found = {}
        for thread, _ in self._threads():
            record = _record_of(thread)
            if record is None or not record.waits:
                continue
            inner: CodeType | None = None
            frame = self._frames.get(record.ident)
            while frame is not None:
                if frame.f_code is run:
                    item = frame.f_locals.get("self")
                    condition = self._condition_of(item)
                    holders, detail = ((record, inner),), f"run by {thread.name}"
                    found[id(condition)] = Ends("any-holder", holders, False, detail, _task_name(item))
                inner = frame.f_code
                frame = frame.f_back
        found.pop(id(None), None)
        return found

    def _read_queued(self) -> dict[int, Ends]:
        queues: dict[int, tuple[Any, list[Any]]] = {}
        for thread, work in self._threads():
            queues.setdefault(id(work), (work, []))[1].append(thread)
        found = {}
        for work, threads in queues.values():
            items = _items_of(work, self._module._WorkItem)
            if items:
                ends = self._ends_of_queued(work, threads, len(items))
                for item in items:
                    found[id(self._condition_of(item))] = ends._replace(name=_task_name(item))
        found.pop(id(None), None)
        return found

    def _condition_of(self, item: Any) -> Any:
        condition = getattr(getattr(item, "future", None), "_condition", None)
        self._kept.append(condition)
        return condition

    def _ends_of_queued(self, work: Any, threads: list[Any], number: int) -> Ends:
        executor = next(filter(None, map(_executor_of, threads)), None)
        growing = any(not _tells_executor(thread) for thread in threads)
        if executor is not None:
            if executor._work_queue is not work:
                return ANYBODY
            threads = list({*threads, *tuple(executor._threads)})
            growing = growing or _may_grow(executor, self._module.ThreadPoolExecutor)
        holders = []
        for thread in threads:
            if thread.ident is not None and _real.find_thread(thread.ident) is not thread:
                continue  # ended
            record = _record_of(thread)
            if record is None or not record.waits or self._is_between_tasks(record):
                return SOON
            holders.append((record, None))
        if not holders:
            return ANYBODY
        tasks = f"{number} task" + "s" * (number > 1)
        workers = "the only worker is" if len(holders) == 1 else f"all {len(holders)} workers are"
        holders.sort(key=lambda pair: pair[0].serial)
        return Ends("any-holder", tuple(holders), growing, f"{tasks} queued, {workers} busy")

    def _is_between_tasks(self, record: Any) -> bool:
        """Return whether a worker is neither in a task nor in its initializer, so that the queue is all it waits for."""
        frame = self._frames.get(record.ident)
        while frame is not None and frame.f_code.co_filename.startswith(state.own_folders):
            frame = frame.f_back
        worker = getattr(self._module._worker, "__code__", None)
        while frame is not None and core.is_transparent(frame.f_code):
            frame = frame.f_back
        return frame is None or frame.f_code is worker

    def _threads(self) -> Iterator[tuple[Any, Any]]:
        """Yield each worker of a pool with its queue."""
        for reference, work in list(self._module._threads_queues.data.items()):
            thread = reference()
            if thread is not None:
                yield thread, work


def _task_name(item: Any) -> str | None:
    function = getattr(item, "fn", None) or next(iter(getattr(item, "task", ())), None)  # 3.14 has a tuple
    return f"{function.__qualname__}()" if isinstance(function, (types.FunctionType, types.MethodType)) else None


def _record_of(thread: Any) -> Any:
    """Return the record of a live thread; None if it has ended, is just being born, or has used nothing that we track."""
    ident = thread.ident
    if ident is None or _real.find_thread(ident) is not thread:
        return None
    return core.record_of_ident(ident)


def _first_argument(thread: Any) -> Any:
    arguments = getattr(thread, "_args", None)
    return arguments[0] if isinstance(arguments, tuple) and arguments else None


def _tells_executor(thread: Any) -> bool:
    return isinstance(_first_argument(thread), weakref.ref)


def _executor_of(thread: Any) -> Any:
    """Return the executor that a worker was started by; None if it is gone or cannot be told."""
    reference = _first_argument(thread)
    executor = reference() if isinstance(reference, weakref.ref) else None
    return executor if hasattr(executor, "_threads") and hasattr(executor, "_work_queue") else None


def _may_grow(executor: Any, original: type) -> bool:
    """Return whether the next task that is submitted may start another worker."""
    if executor._shutdown or getattr(executor, "_broken", False):
        return False
    starts = getattr(type(executor), "_adjust_thread_count", None)
    if starts is not original.__dict__.get("_adjust_thread_count"):
        return True
    return bool(len(executor._threads) < executor._max_workers)


def _items_of(work: Any, item_type: type) -> list[Any]:
    """Return the work items in a queue, without taking them out.

    ``SimpleQueue`` in C has no way to look into it but the collector's: a list up to 3.12, the items themselves since.
    """
    inner = getattr(work, "__dict__", {})
    referents = [inner.get("queue"), inner.get("_queue"), *gc.get_referents(work)]
    found: list[Any] = []
    for one in {id(one): one for one in referents}.values():  # from 3.13 on an instance's attributes are among them
        if isinstance(one, (list, deque)):
            found += [item for item in list(one)[:_QUEUE_LIMIT] if isinstance(item, item_type)]
        elif isinstance(one, item_type):
            found.append(one)
    return found


def add_patches(patches: PatchSet) -> None:
    """Append the step that makes snapshots know of futures; nothing is replaced."""
    source = FutureSource()
    patches.add(Switch("futures", lambda: state.add_source(source), lambda: state.remove_source(source)))
