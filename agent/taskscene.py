"""The tasks of one picture: what each waits for, who holds that, and who might end it otherwise.

Who holds a lock or a permit is read from suspended functions, too (see ``taskholds``).

A task goes on only when its loop's thread does.  Where that thread is blocked, its tasks wait for the event loop, which the
thread holds; so rings through threads and tasks are rings like others: a coroutine that keeps a thread's lock over an
``await`` holds it, not the thread that happened to run it.

A task can be cancelled, which ends any wait.  A wait that a timer of its loop might end is a timed one, and so is the wait of a
task that is awaited with a time limit.  Where a task that goes on knows another one and calls ``cancel``, the other's wait
proves nothing.

Invariants T3 the serial of a task is that of its entry, the same in every picture.
Cost       ten to sixty microseconds a task that is described.
"""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from concagent import _real, awaits, core, loops, naming, snapshots, state, taskholds
from concagent.model import Actor, AssignmentEdge, CallSite, RequestEdge, Resource
from concagent.taskname import called

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from types import CodeType

    from concagent.tasks import Entry, TaskSource

_NAMES: Final = 3
_LOCKS: Final = frozenset({"asyncio-lock", "asyncio-semaphore"})
_HOLDER_KINDS: Final = frozenset({"asyncio-lock", "asyncio-semaphore", "task", "tasks"})


class _Code(NamedTuple):
    code: CodeType


class View:
    """One task in one picture; ``wait`` is None for one that can go on."""

    __slots__ = ("chain", "coroutine", "entered", "entry", "loop", "task", "timed", "wait")

    def __init__(self, task: Any, entry: Entry, waiter: Any) -> None:
        """Read a task; ``waiter`` is the future that both readings saw it wait for, None if they did not agree."""
        own = awaits.task_class(task)
        self.task = task
        self.entry = entry
        self.loop = own.get_loop(task)
        self.coroutine = own.get_coro(task)
        self.chain: list[awaits.Link] = []
        self.entered: list[Any] = []
        self.wait: awaits.Wait | None = None
        self.timed = False
        if not awaits.is_running(self.coroutine):
            self.chain = awaits.chain_of(self.coroutine)
            self.entered = awaits.entered(self.chain)
            if waiter is not None:
                self.wait = awaits.wait_of(self.chain, waiter)
                self.timed = self.wait.timed

    @property
    def serial(self) -> int:
        """Return the serial of the task."""
        return self.entry.serial


class Scene:
    """The tasks of one picture on their way into it."""

    def __init__(
        self, source: TaskSource, builder: Any, one: list[tuple[Any, Any]], two: list[tuple[Any, Any]]
    ) -> None:
        """Describe the tasks that may matter; all of them for a report.

        Args:
            source: Knows the tasks from earlier pictures.
            builder: The picture, to which the core's threads have been added.
            one: The first reading of `TaskSource.read`.
            two: The second.
        """
        self.source = source
        self.builder = builder
        self.full = builder.stacks is True
        before = {id(task): waiter for task, waiter in one}
        self.views: dict[int, View] = {}
        self.loops = {id(view.loop): view for view in loops.running_loops(builder.frames)}
        self.stuck_threads: dict[int, Any] = {}  # ident -> the loop's thread's own wait
        self.tasks = [task for task, _ in two]
        everything = self.full or self._somebody_cannot_turn()
        for task, waiter in two:
            entry = source.entry(task)
            if waiter is not None:
                entry.waits_for(waiter, task)
            if everything or (waiter is not None and entry.held):
                same = waiter is not None and before.get(id(task)) is waiter and awaits.is_pending(waiter)
                self.views[id(task)] = View(task, entry, waiter if same else None)

    def _somebody_cannot_turn(self) -> bool:
        """Return whether a loop's thread is blocked or has nothing to do; else tasks that wait for signals can go on."""
        waiting = {edge.actor for edge in self.builder.requests if not edge.timed}
        for view in self.loops.values():
            record = core.record_of_ident(view.ident)
            if record is not None and record.serial in waiting:
                return True
            if view.turn is None and not loops.may_wake_by_itself(view.loop):
                return True
        return False

    def add(self) -> None:
        """Add actors, resources and edges to the picture."""
        for view in self.views.values():
            if view.wait is not None and not awaits.is_pending(_waiter(view.task)):
                view.wait = None  # it was woken while we were reading
        self._find_stuck_loops()
        self._mark_timed()
        for view in self.views.values():
            self._add_actor(view)
        for view in self.views.values():
            self._add_thread_locks(view)
            self._add_request(view)
        self._add_locks_held()
        self._add_threadsafe_results()
        self._doubt_what_may_be_cancelled()

    # ------------------------------------------------------------ loops

    def _find_stuck_loops(self) -> None:
        """Find the threads that wait while they run a loop, and those whose loop nothing that it knows of will wake."""
        waiting = {edge.actor: edge for edge in self.builder.requests}
        for view in self.loops.values():
            record = core.record_of_ident(view.ident)
            if record is None:
                continue
            edge = waiting.get(record.serial)
            if edge is not None:
                if not edge.timed:
                    self.stuck_threads[view.ident] = edge
                    self._add_loop(view, "holder")
                    self._hold(self._loop_serial(view.loop), record.serial)
            elif view.turn is None and not loops.may_wake_by_itself(view.loop):
                self._add_loop(view, "signal")
                actor = self.builder.actors[record.serial]
                if actor.state == "live":
                    self.builder.actors[record.serial] = replace(actor, state="blocked")
                    serial = self._loop_serial(view.loop)
                    self.builder.request(RequestEdge(record.serial, serial, self._now(), record.epoch, False, None))

    def _now(self) -> int:
        return _real.monotonic_ns()

    def _loop_serial(self, loop: Any) -> int:
        return self.source.serial_of(loop)

    def _add_loop(self, view: loops.LoopView, ends: str) -> None:
        serial = self._loop_serial(view.loop)
        thread = _real.find_thread(view.ident)
        name = thread.name if thread is not None else None
        self.builder.put_resource(Resource(serial, "event-loop", name, None, ended_by=ends))

    # ------------------------------------------------------------ tasks

    def _mark_timed(self) -> None:
        """Mark the tasks whose wait a timer may end, and those that are awaited by one of these."""
        by_loop: dict[int, list[View]] = {}
        for view in self.views.values():
            if view.wait is not None and not view.timed and view.wait.kind in _HOLDER_KINDS:
                by_loop.setdefault(id(view.loop), []).append(view)
        for views in by_loop.values():
            loop = views[0].loop
            if loops.is_readable(loop):
                found = loops.with_timers(loop, {id(view.task) for view in self.views.values()})
                for key in found:
                    self.views[key].timed = True
        work = [view for view in self.views.values() if view.timed]
        while work:
            wait = work.pop().wait
            for future in wait.futures if wait is not None else ():
                awaited = self.views.get(id(future))
                if awaited is not None and not awaited.timed:
                    awaited.timed = True
                    work.append(awaited)

    def _thread_of(self, view: View) -> Any:
        """Return the wait that the thread of a task's loop is in, None if the loop turns."""
        running = self.loops.get(id(view.loop))
        return self.stuck_threads.get(running.ident) if running is not None else None

    def _add_actor(self, view: View) -> None:
        stuck = self._thread_of(view)
        if stuck is not None:
            now = "blocked"
        elif view.wait is None or id(view.loop) not in self.loops:
            now = "live"
        else:
            now = "timed" if view.timed else "blocked"
        own = awaits.task_class(view.task)
        running = self.loops.get(id(view.loop))
        record = core.record_of_ident(running.ident) if running is not None else None
        native = record.native_id if record is not None else None
        name = own.get_name(view.task) if hasattr(own, "get_name") else "task"
        stack = self._stack(view, running)
        self.builder.add_actor(Actor(view.serial, "task", self.builder.pid, native, name, True, now, stack))

    def _stack(self, view: View, running: loops.LoopView | None) -> tuple[Any, ...]:
        wanted = self.builder.stacks
        if wanted is False or (wanted is not True and view.serial not in wanted):
            return ()
        if view.chain:
            pairs = [(link.frame.f_code, link.frame.f_lasti) for link in reversed(view.chain)]
            return snapshots.resolve_stack(tuple(pairs[: self.builder.limit]))
        if running is not None and awaits.is_running(view.coroutine):
            return snapshots.stack_frames(self.builder.frames.get(running.ident), self.builder.limit)
        return ()

    def _site(self, view: View) -> tuple[Any, CallSite | None]:
        """Return the innermost function of the program in a chain, and where it waits."""
        for link in reversed(view.chain):
            if not link.frame.f_code.co_filename.startswith(_asyncio_folder()):
                return link, snapshots.call_site(link.frame.f_code, link.frame.f_lasti)
        return None, None

    def _hold(self, resource: int, holder: int, taken: taskholds.Taken | None = None, depth: int = 1) -> None:
        site = snapshots.call_site(*taken.site) if taken is not None and taken.site is not None else None
        discipline = taken.discipline if taken is not None else "owned"
        self.builder.hold(AssignmentEdge(resource, holder, None, depth, site, discipline))

    def _add_request(self, view: View) -> None:
        entry = view.entry
        link, site = self._site(view)
        stuck = self._thread_of(view)
        if stuck is not None:
            serial = self._loop_serial(view.loop)
            epoch = entry.epoch * 1_000_003 + stuck.epoch
            self.builder.request(RequestEdge(view.serial, serial, stuck.since_ns, epoch, False, site))
            return
        wait = view.wait
        if wait is None or wait.target is None or id(view.loop) not in self.loops:
            return
        awaited = self._add_resource(wait, link, site)
        habit = taskholds.wait_discipline(view.chain) if wait.kind == "asyncio-lock" else "bare"
        self.builder.request(RequestEdge(view.serial, awaited, entry.since_ns, entry.epoch, view.timed, site, habit))

    def _add_resource(self, wait: awaits.Wait, link: Any, site: CallSite | None) -> int:
        """List what a task waits for, with its holders where a task or thread is one, and return its serial."""
        target, ends = wait.target, wait.ended_by
        serial: int = self.source.serial_of(target)
        permits: int | None = None
        kind = wait.kind
        if kind == "asyncio-semaphore":
            permits = getattr(target, "_value", None)
        elif kind == "asyncio-barrier":
            permits = _missing(target)
        elif kind in {"task", "tasks"}:
            awaited = [self.views.get(id(future)) for future in wait.futures]
            for one in awaited:
                if one is not None:
                    self._hold(serial, one.serial)
            if None in awaited and ends != "all-holders":
                ends = "signal"  # a future that is no task of ours: somebody sets it
        elif wait.concurrent is not None:
            holder = _worker_of(wait.concurrent, self.builder.frames)
            cell = state.existing_cell(wait.concurrent)
            serial = cell.serial if cell is not None else serial
            if holder is not None:
                ends = "holder"
                self._hold(serial, holder.serial)
        name = self._name(wait, link, site) if self.builder.named else None
        self.builder.put_resource(
            Resource(serial, "task" if kind == "tasks" else kind, name, None, False, permits, ends, wait.detail)
        )
        return serial

    def _name(self, wait: awaits.Wait, link: Any, site: CallSite | None) -> str | None:
        if wait.kind == "task":
            return str(awaits.task_class(wait.futures[0]).get_name(wait.futures[0]))
        cell = state.existing_cell(wait.target)
        if cell is not None and cell.name:
            return str(cell.name)
        if wait.kind == "tasks":
            names = [str(awaits.task_class(one).get_name(one)) for one in wait.futures if awaits.is_task(one)]
            return ", ".join(sorted(names)[:_NAMES]) + (", ..." if len(names) > _NAMES else "") or None
        if link is None or site is None or wait.kind == "future":
            return None
        return called(site) or naming.name_of(wait.target, None, _Code(link.frame.f_code))

    # ------------------------------------------------------------ who may be cancelled

    def _doubt_what_may_be_cancelled(self) -> None:
        """Let a holder not be the only one who can end the wait of a task that may be cancelled.

        That is one that a task which goes on refers to, in a function that calls ``cancel``; and every task of a loop whose
        timers cannot be read.
        """
        awaited = {edge.actor: edge.resource for edge in self.builder.requests}
        blocked = {key: view for key, view in self.views.items() if self._is_held_up(view) and view.serial in awaited}
        if not blocked:
            return
        doubtful = {key for key, view in blocked.items() if not loops.is_readable(view.loop)}
        serials = {view.serial for view in blocked.values()}
        waited = {awaited[serial] for serial in serials}
        if not any(resource in waited and holder in serials for resource, holder in self.builder.assignments):
            return  # none of them waits for another one: no ring
        for task in self.tasks:
            if id(task) not in blocked:
                view = self.views.get(id(task)) or View(task, self.source.entry(task), None)
                doubtful |= self._might_cancel(view, blocked)
        resources = {awaited[blocked[key].serial] for key in doubtful}
        for pair, edge in list(self.builder.assignments.items()):
            if pair[0] in resources:
                self.builder.assignments[pair] = replace(edge, discipline="bare")

    def _is_held_up(self, view: View) -> bool:
        stuck = self._thread_of(view) is not None  # then a cancellation does not arrive either
        return view.wait is not None and not view.timed and not stuck and view.wait.kind in _HOLDER_KINDS

    def _might_cancel(self, view: View, blocked: Collection[int]) -> set[int]:
        """Return the keys of ``blocked`` tasks that a live task's functions refer to and might cancel."""
        if awaits.is_running(view.coroutine):
            return set(blocked)  # what it refers to is not on view now; the next look may tell
        found: set[int] = set()
        for link in view.chain:
            if "cancel" in link.frame.f_code.co_names and not link.frame.f_code.co_filename.startswith(
                _asyncio_folder()
            ):
                known = {id(one) for one in awaits.referred_to(link)}
                found |= known & set(blocked)
        return found

    # ------------------------------------------------------------ who holds

    def _add_locks_held(self) -> None:
        """Add the holders of the locks and permits that somebody waits for."""
        awaited = {serial for serial, resource in self.builder.resources.items() if resource.kind in _LOCKS}
        if not awaited:
            return
        found: dict[int, list[tuple[View, taskholds.Taken]]] = {}
        for view in self._maybe_holders(awaited):
            for taken in taskholds.taken_by(view.chain, view.entered):
                serial = self._known_serial(taken.thing)
                if serial in awaited:
                    found.setdefault(serial, []).append((view, taken))
        for serial in awaited:
            holds = found.get(serial, [])
            if self.builder.resources[serial].kind == "asyncio-lock":
                self._add_holder_of_lock(serial, holds)
            else:
                self._add_holders_of_permits(serial, holds)

    def _maybe_holders(self, awaited: set[int]) -> Iterator[View]:
        """Yield the tasks that are described; all of them where somebody waits for a permit: who has another one, and goes on?"""
        yield from self.views.values()
        if any(self.builder.resources[serial].kind == "asyncio-semaphore" for serial in awaited):
            for task in self.tasks:
                if id(task) not in self.views:
                    yield View(task, self.source.entry(task), None)

    def _add_holder_of_lock(self, serial: int, holds: list[tuple[View, taskholds.Taken]]) -> None:
        if len(holds) != 1 or not holds[0][1].thing._locked:  # noqa: SLF001 - two that think so: it was released in between
            return
        view, taken = holds[0]
        waits_for_it = any(edge.actor == view.serial and edge.resource == serial for edge in self.builder.requests)
        if taken.discipline == "owned" or not waits_for_it or taskholds.wait_discipline(view.chain) != "bare":
            self._hold(serial, view.serial, taken)

    def _add_holders_of_permits(self, serial: int, holds: list[tuple[View, taskholds.Taken]]) -> None:
        number = 0
        for view, taken in holds:
            number += 1
            if id(view.task) not in self.views:
                self._add_actor(view)
            depth = sum(other is view for other, _ in holds)
            self._hold(serial, view.serial, taken, depth)
        everybody = number > 0 and getattr(holds[0][1].thing, "_bound_value", None) == number
        resource = self.builder.resources[serial]
        if not everybody and not resource.permits:
            self.builder.put_resource(replace(resource, ended_by="signal"))

    def _known_serial(self, thing: Any) -> int:
        try:
            return self.source.serial_of(thing)
        except TypeError:  # cannot be referred to weakly: nothing that is waited for
            return 0

    def _add_thread_locks(self, view: View) -> None:
        """Let a thread's lock that a suspended task has entered be held by the task: no other will release it."""
        running = self.loops.get(id(view.loop))
        if running is None or not view.entered:
            return
        for manager in view.entered:
            cell = core.cell_of(manager)
            hold = getattr(cell, "hold", None)
            if cell is None or hold is None or hold[0] is not core.record_of_ident(running.ident):
                continue
            old = self.builder.assignments.pop((cell.serial, hold[0].serial), None)
            self.builder.add_resource(cell, None)
            if old is None:
                self._hold(cell.serial, view.serial)
            else:
                edge = AssignmentEdge(cell.serial, view.serial, old.since_ns, old.depth, old.site, "owned")
                self.builder.hold(edge)

    def _add_threadsafe_results(self) -> None:
        """Say who completes the futures of ``run_coroutine_threadsafe`` that threads wait for.

        It is the task or, as long as the loop has not made it, the thread of the loop.
        """
        awaited = {edge.resource for edge in self.builder.requests if edge.actor < state.ACTOR_SERIALS}
        if not awaited:
            return
        for view in self.views.values():
            self._hold_future(awaits.concurrent_future_of(view.task), awaited, view.serial)
        for running in self.loops.values():
            record = core.record_of_ident(running.ident)
            if record is not None and running.ident in self.stuck_threads and loops.is_readable(running.loop):
                for callback in loops.ready(running.loop):
                    self._hold_future(awaits.coming_future_of(callback), awaited, record.serial)

    def _hold_future(self, future: Any, awaited: set[int], holder: int) -> None:
        if future is None:
            return
        for thing in (future, getattr(future, "_condition", None)):
            cell = state.existing_cell(thing) if thing is not None else None
            if cell is not None and cell.serial in awaited and cell.serial in self.builder.resources:
                resource = self.builder.resources[cell.serial]
                changed = replace(resource, kind="future", ended_by="holder", signal_mode=False)
                self.builder.put_resource(changed)
                self._hold(cell.serial, holder)


def _waiter(task: Any) -> Any:
    return task._fut_waiter  # noqa: SLF001


def _missing(barrier: Any) -> int | None:
    parties, count = getattr(barrier, "_parties", None), getattr(barrier, "_count", None)
    return parties - count if isinstance(parties, int) and isinstance(count, int) else None


def _worker_of(future: Any, frames: dict[int, Any]) -> Any:
    """Return the record of the pool's thread that runs a ``concurrent.futures.Future``, None if nobody does yet."""
    pool = sys.modules.get("concurrent.futures.thread")
    code = getattr(getattr(getattr(pool, "_WorkItem", None), "run", None), "__code__", None)
    if code is None:
        return None
    for ident, innermost in list(frames.items()):
        frame = innermost
        while frame is not None:
            if frame.f_code is code and getattr(frame.f_locals.get("self"), "future", None) is future:
                return core.record_of_ident(ident)
            frame = frame.f_back
    return None


@functools.lru_cache(maxsize=1)
def _asyncio_folder() -> str:
    return os.path.dirname(os.path.abspath(sys.modules["asyncio.tasks"].__file__ or "")) + os.sep
