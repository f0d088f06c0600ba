"""Finds results of a ``multiprocessing.Pool`` that never come: the worker that had the task was killed.

The pool replaces a worker that has died, but not the task that it had taken; who waits for the result waits for ever.  Nothing
is replaced here and no death has to be seen: when the task is in no queue and all workers wait for work, nobody has it.

    no task is queued        the pool's own queue is empty, its thread waits there, the workers' pipe is empty
    no result is under way   the pipe of results is empty, and its thread waits there: it is not in a callback
    no worker has the task   the main thread of each sleeps in a read of the workers' pipe, or in the lock that who reads it
                             holds; and has slept on for a second

Assumes    Linux: ``/proc/PID/wchan``, ``syscall``, ``maps`` of the workers.  Where they cannot be read a result may come.
           The fields of ``multiprocessing.pool`` of 3.10 to 3.15; with others, too.
Cost       with a pool loaded, a look at the stacks once a second; with a thread that waits for a result, some small files.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

from concagent import _real, core, state
from concagent.hooks.children import SETTLE_NS, pipe_of, read_file
from concagent.hooks.patching import PatchSet, Switch
from concagent.tuples import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import CodeType, FrameType

_MODULE: Final = "multiprocessing.pool"
_DEPTH: Final = 8  # frames between a wait and the pool's function that began it


class _Lost(NamedTuple):
    """A result that nobody works on, and since when that is known."""

    workers: int
    since_ns: int


class PoolSource:
    """The waits for results that never come, for snapshots (see ``state.Source``)."""

    def __init__(self) -> None:
        """Know of no pool yet."""
        self._idle: dict[int, tuple[tuple[str, ...], int]] = {}  # pool's id -> how its workers sleep, since when
        self._serials: dict[int, tuple[int, int]] = {}  # resource -> the actor that is gone, the result

    def has_work(self) -> bool:
        """Return whether a thread waits for a result of a pool."""
        return bool(self._waits())

    def read(self) -> dict[int, _Lost]:
        """Return actor's serial -> what is known of a result that it waits for in vain."""
        found = {}
        pools: set[int] = set()
        try:
            for serial, result in self._waits().items():
                pool = getattr(result, "_pool", None)
                if pool is None or result._job not in pool._cache:
                    continue
                pools.add(id(pool))
                since_ns = self._idle_since(pool)
                if since_ns:
                    found[serial] = _Lost(len(pool._pool), since_ns)
        except Exception as error:  # noqa: BLE001 - border: pools of the program may look otherwise than CPython's
            state.count_error("hook", error)
            return {}
        self._idle = {pool: idle for pool, idle in self._idle.items() if pool in pools}
        return found

    def add(self, builder: Any, one: dict[int, _Lost], two: dict[int, _Lost]) -> None:
        """Let who waits for such a result wait for somebody who has ended."""
        if not two:
            return
        from dataclasses import replace  # with all value types; most programs never take a picture

        from concagent.model import Actor, AssignmentEdge

        serials = {}
        for at, edge in enumerate(builder.requests):
            lost = two.get(edge.actor)
            resource = builder.resources.get(edge.resource)
            if lost is None or edge.actor not in one or edge.timed or resource is None:
                continue
            known = self._serials.get(edge.resource) or (state.ACTOR_SERIALS + core.next_serial(), core.next_serial())
            gone, result = serials[edge.resource] = known
            words = f"lost with its worker: none of {lost.workers} workers has it"
            # One of its own: the condition, too, has been notified before, of other results.
            builder.put_resource(replace(resource, serial=result, kind="future", ended_by="all-holders", detail=words))
            builder.requests[at] = replace(edge, resource=result)
            builder.add_actor(Actor(gone, "process", os.getpid(), None, "a worker that is gone", True, "ended"))
            builder.hold(AssignmentEdge(result, gone, None, 1, None))
        self._serials = serials

    def _waits(self) -> dict[int, Any]:
        """Return actor's serial -> the result that it waits for without a time limit."""
        codes = _waiting_codes()
        found: dict[int, Any] = {}
        if not codes:
            return found
        frames = _real.current_frames()
        try:
            for ident, frame in frames.items():
                record = core.record_of_ident(ident)
                if record is not None and not record.agent and record.waits:
                    result = _awaited(frame, codes)
                    if result is not None:
                        found[record.serial] = result
        finally:
            frames.clear()  # our own frame is among them
        return found

    def _idle_since(self, pool: Any) -> int:
        """Return since when (ns) a pool is known to have nothing to do; 0 if it may have."""
        sleep = _sleep_of(pool)
        now_ns = _real.monotonic_ns()
        if sleep is None:
            self._idle.pop(id(pool), None)
            return 0
        before, since_ns = self._idle.get(id(pool), (None, now_ns))
        if before != sleep:
            self._idle[id(pool)] = (sleep, now_ns)
            return 0
        return since_ns if now_ns - since_ns >= SETTLE_NS else 0


def _waiting_codes() -> frozenset[CodeType]:
    module = sys.modules.get(_MODULE)
    waits = (("ApplyResult", "wait"), ("IMapIterator", "next"))
    codes = (getattr(getattr(getattr(module, cls, None), name, None), "__code__", None) for cls, name in waits)
    return frozenset(code for code in codes if code is not None)


def _awaited(frame: FrameType | None, codes: frozenset[CodeType]) -> Any:
    for _ in range(_DEPTH):
        if frame is None:
            return None
        if frame.f_code in codes:
            values = frame.f_locals
            return values.get("self") if values.get("timeout") is None else None
        frame = frame.f_back
    return None


# ---------------------------------------------------------------- a pool that has nothing to do


def _sleep_of(pool: Any) -> tuple[str, ...] | None:
    """Return how the workers of a pool sleep while there is nothing to do; None if there is, or may be, something."""
    if not all(hasattr(queue, "_reader") for queue in (pool._inqueue, pool._outqueue)):
        return None  # a pool of threads
    tasks = pipe_of("tasks", pool._inqueue._reader.fileno())
    results = pipe_of("results", pool._outqueue._reader.fileno())
    if tasks is None or results is None or tasks.filled_bytes or results.filled_bytes or not pool._taskqueue.empty():
        return None
    if not _is_in(pool._task_handler, {"_handle_tasks"}, ()) or not _is_in(
        pool._result_handler, {"_handle_results"}, ("multiprocessing.connection", "multiprocessing.queues")
    ):
        return None
    semaphore = _mapped_at("self", int(pool._inqueue._rlock._semlock.handle))
    workers = [worker._popen.pid for worker in list(pool._pool) if worker._popen.returncode is None]
    if semaphore is None or not workers or len(workers) < pool._processes:
        return None
    sleeps = [_sleep_of_worker(pid, tasks.inode, semaphore) for pid in workers]
    found = tuple(sleep for sleep in sleeps if sleep is not None)
    return found if len(found) == len(sleeps) else None


def _is_in(thread: Any, names: set[str], modules: Iterable[str]) -> bool:
    """Return whether a thread of the pool is in this function itself, or in these modules below it, and not in code of others."""
    frame = _real.current_frames().get(thread.ident)
    while frame is not None:
        module, code = str(frame.f_globals.get("__name__")), frame.f_code
        if module == _MODULE:
            return code.co_name in names
        if module not in modules and not code.co_filename.startswith(state.own_folders):
            return False
        frame = frame.f_back
    return False


def _sleep_of_worker(pid: int, tasks: int, semaphore: str) -> str | None:
    """Return how often a worker has gone to sleep, if it waits for work now; else None."""
    where, call = read_file(f"/proc/{pid}/wchan"), read_file(f"/proc/{pid}/syscall").split()
    if len(call) < 2:
        return None
    if "pipe_read" in where:
        try:
            if os.stat(f"/proc/{pid}/fd/{int(call[1], 16)}").st_ino != tasks:
                return None
        except (OSError, ValueError):
            return None
    elif "futex" not in where or _mapped_at(str(pid), int(call[1], 16)) != semaphore:
        return None
    lines = [line for line in read_file(f"/proc/{pid}/status").splitlines() if line.startswith("voluntary_ctxt")]
    return f"{pid}:{''.join(lines)}"


def _mapped_at(process: str, address: int) -> str | None:
    """Return the device and inode of the file that is mapped at an address of a process; None if there is none."""
    try:
        with _real.open_file(f"/proc/{process}/maps", encoding="utf-8", errors="replace") as file:
            for line in file:
                fields = line.split()
                low, _, high = fields[0].partition("-")
                if int(low, 16) <= address < int(high, 16):
                    return f"{fields[3]}:{fields[4]}" if fields[4] != "0" else None
    except OSError:
        pass
    return None


def add_patches(patches: PatchSet) -> None:
    """Append the step that makes snapshots know of results that never come; nothing is replaced."""
    source = PoolSource()
    patches.add(Switch("pools", lambda: state.add_source(source), lambda: state.remove_source(source)))
