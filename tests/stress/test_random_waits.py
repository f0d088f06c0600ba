"""Random programs of everything that a thread can wait for, run under the agent; an oracle searches what they could still do.

A program (``waits_programs.py``) is played one step at a time, in a random order; waits with a time-out end when the
scheduler wants them to.  At random halts, and when nobody can move any more, the agent is asked what it finds.  The oracle
(``waits_oracle.py``) then tries all continuations:

- a thread that a proven finding names must be blocked in all of them: the agent may be less sure than the oracle, never
  surer;
- when nobody can move any more, each thread in a wait without a time-out must be named by a finding, a proven one if nobody
  is alive.  Those of whom a deadlock or an orphaned lock was told count as alive for the rest: who waits for what they would
  have done is a consequence, and need not be named; nor who came to wait behind them later.  A pool's worker that has nothing to
  do is alive, unless the agent knows that it waits.

The agent has no thread here: the scheduler calls its judge, does not wait for ticks, and is one of the agent's threads as long
as it runs, so that threads at their gates are all that is alive.

By hand:  .venv/bin/python tests/stress/test_random_waits.py --programs 20000 --seed 1
One:      .venv/bin/python tests/stress/test_random_waits.py --programs 1 --seed 4711 --show
"""

from __future__ import annotations

import os
import queue
import random
import sys
import threading
import time
import weakref
from collections import Counter
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _players import (
    PATIENCE_SECONDS,
    MismatchError,
    Task,
    Worker,
    gate,
    is_idle,
    is_parked,
    main,
    make_joins_wakeable,
    run_batch,
    wait_until,
    workers,
)
from waits_oracle import END, GATE, QUEUED, RETAKE, UNBORN, WAIT, State
from waits_programs import Program, make_program

if TYPE_CHECKING:
    from collections.abc import Iterable

HALTS = 0.3  # share of the steps after which the agent is asked
BLOCKED = ("deadlock", "stall", "orphaned-lock")  # kinds of findings that say that a wait does not end
FAR_NS = 10**18
# Where a condition is that an operation waits on.
CONDITIONS = {"acquire": "_cond", "await": "_cond", "meet": "_cond", "put": "not_full", "get": "not_empty"}
CONDITIONS["drain"] = "all_tasks_done"


class TimeUp(BaseException):
    """Ends a timed acquire of a lock."""


def quiet(function: Any, *args: Any) -> None:
    """Call what may be refused: a release of what is free, a task_done too many."""
    try:
        function(*args)
    except (RuntimeError, ValueError):
        pass


def _clock() -> float:
    """Return the time, as those see it whose waits are to end."""
    worker = workers.get(threading.get_ident())
    return time.monotonic() + (1e6 if worker is not None and worker.is_late else 0)


# ---------------------------------------------------------------- the agent


class Asker:
    """The agent's judge, without the agent's thread."""

    def __init__(self, config: Any) -> None:
        from concagent.judge import Judge

        self.findings: list[Any] = []
        self._due: list[Any] = []
        self._judge = Judge(config, self.findings.append, self._look_later, {threading.get_ident()})

    def _look_later(self, _due_ns: int, event: Any) -> None:
        self._due.append(event)

    def ask(self) -> list[Any]:
        """Return what the agent finds now and has not said before."""
        from concagent import state

        if not wait_until(_natives_are_gone):
            raise MismatchError("a thread of the system does not go")
        before = len(self.findings)
        for event in state.take_events():
            self._judge.judge(event)
        self._judge.tick(time.monotonic_ns())
        while self._due:
            due, self._due = self._due, []
            for event in due:
                self._judge.judge_late(event)
        return self.findings[before:]


def _natives_are_gone() -> bool:
    """Return whether all that runs has a frame: a thread that has just ended is one that Python does not know."""
    return len(os.listdir("/proc/self/task")) <= len(sys._current_frames())


# ---------------------------------------------------------------- running a program


class Run:
    """One program with real threads, and where the oracle has them."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.machine = program.machine
        self.state: State = self.machine.begin()
        self.futures: dict[int, Any] = {}
        names = {
            name: getattr(threading, name) for name in ("Lock", "RLock", "Condition", "Semaphore", "Event", "Barrier")
        }
        names |= {"BoundedSemaphore": threading.BoundedSemaphore, "BrokenBarrierError": threading.BrokenBarrierError}
        names |= {
            "Queue": queue.Queue,
            "SimpleQueue": queue.SimpleQueue,
            "Empty": queue.Empty,
            "Full": queue.Full,
            "TimeUp": TimeUp,
        }
        names |= {"ThreadPoolExecutor": futures.ThreadPoolExecutor, "TimeoutError": futures.TimeoutError}
        names |= {"gate": gate, "quiet": quiet, "futures": self.futures}
        self.workers: list[Worker] = []
        self._waiters: dict[int, Any] = {}  # actor -> the lock in which a condition has him wait
        self._begin(names)

    def _begin(self, names: dict[str, Any]) -> None:
        from concagent import core

        exec(compile(self.program.source, self.program.file, "exec"), names)
        things = names["make"]()
        self._cells = [core.cell_of(thing) for thing in things]
        self._things = [
            weakref.ref(thing) if cell is None else None for thing, cell in zip(things, self._cells, strict=True)
        ]
        if self.program.is_global:
            names.update({self.program.name(number): thing for number, thing in enumerate(things)})
        for thing, made in zip(self.machine.things, things, strict=True):
            if thing.kind == "pool" and any(other.kind in ("rlock", "condition") for other in self.machine.things):
                self._fill(made, thing.size)
        for number, uses in enumerate(self.program.uses):
            function = names[f"actor{number}"]
            if self.machine.pools[number] < 0:
                worker = Worker(function)
                worker.make_thread(f"{self.program.seed}.{number}", tuple(things[thing] for thing in uses))
                names[f"t{number}"] = worker.thread
            else:
                worker = Task(function)
                names[f"actor{number}"] = worker.play
            self.workers.append(worker)

    def _fill(self, pool: futures.ThreadPoolExecutor, size: int) -> None:
        """Have a pool start all of its workers.

        One that starts later may get the ident of a thread that has ended, and an RLock, which knows its holder by that alone,
        takes it for the one that took it.
        """
        from concagent import _real

        turn = _real.allocate_lock()
        with turn:
            for _ in range(size):
                pool.submit(turn.__enter__).add_done_callback(lambda _: turn.release())
        if not wait_until(lambda: all(is_idle(thread.ident) for thread in pool._threads)) or len(pool._threads) < size:
            raise MismatchError("a pool does not start its workers")

    def start(self) -> None:
        for worker in self.workers:
            if worker.thread is not None:
                worker.thread.start()
        self._settle([self.state])

    def move(self, actor: int, late: bool) -> None:
        """Let an actor make a step, or let his time be up."""
        outcomes = self.machine.outcomes(self.state, actor, late=late)
        worker = self.workers[actor]
        if late:
            self._end_time(actor)
        else:
            worker.open_gate()
        self._settle(outcomes)
        worker.is_late = False
        _, phase = self.state[0][actor]
        if phase == WAIT and not late and (condition := self._condition(actor)) is not None:
            self._waiters[actor] = condition._waiters[-1]

    def _end_time(self, actor: int) -> None:
        from concagent import core

        worker = self.workers[actor]
        worker.is_late = True
        if self.machine.op(self.state, actor).what == "join":
            worker.wake.release()
        elif self._condition(actor) is None:
            core.wake_victim(worker.record.waiting(), TimeUp())
        else:
            waiter = self._waiters.pop(actor)
            self._condition(actor)._waiters.remove(waiter)
            waiter.release()

    def _condition(self, actor: int) -> Any:
        """Return the condition that an actor waits on, None for a lock or a thread."""
        op = self.machine.op(self.state, actor)
        if op.what == "result":
            return self.futures[op.thing]._condition
        reference = self._things[op.thing] if op.what != "join" else None
        thing = reference() if reference is not None else None
        if op.what == "acquire" and not hasattr(thing, "_cond"):
            return None
        return getattr(thing, CONDITIONS[op.what], None) if op.what in CONDITIONS else thing

    def pools_are_at_rest(self) -> bool:
        """Return whether the workers of pools are idle or in a task, and those of pools that nobody refers to have ended."""
        expected = self._pool_threads()
        busy = {worker.thread for worker in self.workers if isinstance(worker, Task) and not worker.returned}
        there = {thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")}
        return there <= expected | busy and all(thread in busy or is_idle(thread.ident) for thread in expected)

    def has_unseen_worker(self) -> bool:
        """Return whether a worker has nothing to do, and the agent does not know that it waits."""
        from concagent import core

        records = [core.record_of_ident(thread.ident) for thread in self._pool_threads() if is_idle(thread.ident)]
        return any(record is None or record.waiting() is None for record in records)

    def _pool_threads(self) -> set[threading.Thread]:
        pools = [thing for thing in self._alive_things() if isinstance(thing, futures.ThreadPoolExecutor)]
        return {thread for pool in pools for thread in pool._threads}

    # -------------------------------------------------------- where everybody is

    def _settle(self, outcomes: list[State]) -> None:
        """Wait until everybody is where one of the oracle's outcomes has him; that one it is."""
        fitting: list[State] = []

        def is_settled() -> bool:
            fitting[:] = [outcome for outcome in outcomes if self._fits(outcome)]
            return bool(fitting)

        if not wait_until(is_settled):
            there = [(w.at, w.arrived, w.record and w.record.waiting(), w.failure) for w in self.workers]
            raise MismatchError(
                f"threads are not where the oracle has them, from {self.state}\nit has {outcomes}\nthey are {there}"
            )
        if len(fitting) > 1:
            raise MismatchError(f"the oracle's outcomes look alike: {fitting}")
        self.state = fitting[0]

    def _fits(self, state: State) -> bool:
        return all(self._is_at(actor, state, at, phase) for actor, (at, phase) in enumerate(state[0]))

    def _is_at(self, actor: int, state: State, at: int, phase: int) -> bool:
        worker = self.workers[actor]
        if phase in (UNBORN, QUEUED):
            return not worker.arrived
        if phase == END:
            return worker.is_gone()
        if phase == GATE:
            return worker.arrived and worker.at == at
        if worker.arrived or worker.at != at:
            return False
        wait = worker.record.waiting()
        return (
            wait is not None and self._is_awaited(state, actor, phase, wait.resource) and is_parked(worker.record.ident)
        )

    def _is_awaited(self, state: State, actor: int, phase: int, cell: Any) -> bool:
        from concagent import core
        from concagent import state as agent_state

        op = self.machine.op(state, actor)
        if op.what == "join":
            return cell is agent_state.thread_cell(self.workers[op.thing].thread)
        if op.what == "result":
            return _target(cell) is self.futures[op.thing]._condition
        thing = self.machine.things[op.thing]
        if thing.kind == "condition" and (phase == RETAKE or op.what == "acquire"):
            if thing.lock != op.thing:
                return cell is self._cells[thing.lock]
            return cell is core.cell_of(self._things[op.thing]()._lock)
        if self._cells[op.thing] is not None:
            return cell is self._cells[op.thing]
        return _target(cell) is self._things[op.thing]()

    # -------------------------------------------------------- the end

    def clear_up(self) -> None:
        """End all threads."""
        from concagent import core, state
        from concagent.errors import DeadlockError

        stop = DeadlockError("end of the program", None)  # nothing else ends the wait for a condition's lock
        for worker in self.workers:
            worker.stop = True
        for pool in self._alive_things():
            if isinstance(pool, futures.ThreadPoolExecutor):
                pool.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while alive := [worker for worker in self.workers if worker.thread is not None and worker.thread.is_alive()]:
            for worker in alive:
                wait = worker.record.waiting()
                if worker.arrived:
                    worker.open_gate()
                elif wait is not None and not core.wake_victim(wait, stop) and worker.wake is not None:
                    quiet(worker.wake.release)
            self._loosen()
            time.sleep(0.0001)
            if time.monotonic() > deadline:
                waits = [
                    (number, worker.arrived, worker.record.waiting()) for number, worker in enumerate(self.workers)
                ]
                raise MismatchError(f"threads do not end in state {self.state}: {waits}")
        played = [worker for worker in self.workers if worker.record is not None]
        if not wait_until(lambda: all(worker.record.ended for worker in played)):
            raise MismatchError("the agent does not see that threads have ended")
        for worker in played:
            worker.forget()
        state.take_events()

    def _alive_things(self) -> list[Any]:
        things = [reference() for reference in self._things if reference is not None]
        return [thing for thing in things if thing is not None]

    def _loosen(self) -> None:
        """Let everybody go on who waits on a condition."""
        for thing in [*self._alive_things(), *self.futures.values()]:
            if isinstance(thing, queue.SimpleQueue):
                thing.put(0)
                continue
            values = {"_value": 10**6, "_flag": True, "_state": -2, "maxsize": 10**9, "unfinished_tasks": 0}
            for name, value in values.items():
                if name in thing.__dict__:
                    setattr(thing, name, value)
            if isinstance(thing, queue.Queue):
                thing.queue.extend([0] * 100)
            for condition in _conditions(thing):
                for waiter in list(condition._waiters):
                    quiet(waiter.release)

    def unlearn(self) -> None:
        """Have the agent forget that it was the scheduler who ended a wait whose time was up."""
        from concagent import core, state

        me = core.current_record()
        for thing in [*self._alive_things(), *self.futures.values()]:
            for condition in _conditions(thing):
                cell = state.existing_cell(condition)
                if cell is not None:
                    cell.signallers.pop(me, None)


def _target(cell: Any) -> Any:
    """Return what a cell is of, None for a lock's: for a moment, a thread may wait for the one inside a condition."""
    return cell.reference() if hasattr(cell, "reference") else None


def _conditions(thing: Any) -> list[Any]:
    """Return what one waits on who waits for this."""
    if isinstance(thing, threading.Condition):
        return [thing]
    names = ("_cond", "_condition", "not_empty", "not_full", "all_tasks_done")
    return [getattr(thing, name) for name in names if hasattr(thing, name)]


# ---------------------------------------------------------------- comparing


class Check:
    """One program: what was told of it, and whether it was right."""

    def __init__(self, config: Any, program: Program) -> None:
        self.program = program
        self.run = Run(program)
        self.asker = Asker(config)
        self.named: dict[tuple[int, int], str] = {}  # (actor, number of the operation) -> confidence
        self.told_rings = False
        self.tally: Counter[str] = Counter(programs=1)
        self.trace: list[str] = []

    def play(self) -> Counter[str]:
        chance = random.Random(self.program.seed)
        run = self.run
        run.start()
        while moves := list(run.machine.moves(run.state)):
            steps = [move for move in moves if not move[1]]
            actor, late = chance.choice(steps if steps and chance.random() < 0.8 else moves)
            op = run.machine.op(run.state, actor)
            self.trace.append(f"{actor}: {op.what} {op.thing}{' late' * late}")
            before = run.state
            run.move(actor, late)
            self.tally["steps"] += 1
            self._compare_moved(before)
            if chance.random() < HALTS:
                self._halt(thorough=chance.random() < 0.2)
        self._halt(thorough=True)
        self._compare_end()
        run.clear_up()
        return self.tally

    def _halt(self, *, thorough: bool) -> None:
        """Ask the agent, and compare; a thorough halt also counts whom the oracle knows to be stuck and the agent not yet."""
        self.tally["halts"] += 1
        self.run.unlearn()
        if not wait_until(self.run.pools_are_at_rest):
            raise MismatchError(f"{self._where()}\nthe workers of pools do not come to rest: {threading.enumerate()}")
        proven = set()
        phases = [phase for _, phase in self.run.state[0]]
        there = [number for number, phase in enumerate(phases) if phase in (GATE, WAIT, RETAKE)]
        numbers = {self.run.workers[number].record.serial: number for number in there}
        for finding in self.asker.ask():
            actors = {
                numbers.get(int(a.id.rpartition("t")[2])) for a in finding.actors if a.role in ("member", "behind")
            }
            actors = {actor for actor in actors if actor is not None}
            if finding.kind in BLOCKED and actors:
                self.tally[f"{finding.confidence} {finding.kind}"] += 1
                self.told_rings |= finding.kind != "stall" and finding.confidence == "proven"
                proven |= self._note(finding, actors)
        waiting = self.run.machine.waiting(self.run.state, timed=False)
        if not proven <= waiting:
            raise MismatchError(f"{self._where()}\nproven of {proven}, but only {set(waiting)} wait without a time-out")
        stuck = self.run.machine.stuck(self.run.state, waiting if thorough else frozenset(proven))
        if stuck is None:
            self.tally["undecided"] += 1
        elif not proven <= stuck:
            raise MismatchError(f"{self._where()}\nproven of {proven}, but only {set(stuck)} are stuck")
        elif thorough and any(phase == GATE for _, phase in self.run.state[0]):
            self.tally["stuck at halts"] += len(stuck)
            self.tally["stuck at halts, proven"] += sum(self._confidence(actor) == "proven" for actor in stuck)

    def _note(self, finding: Any, actors: Iterable[int]) -> set[int]:
        for actor in actors:
            if self._confidence(actor) != "proven":
                self.named[actor, self.run.state[0][actor][0]] = finding.confidence
        return set(actors) if finding.confidence == "proven" else set()

    def _confidence(self, actor: int) -> str | None:
        return self.named.get((actor, self.run.state[0][actor][0]))

    def _compare_moved(self, before: State) -> None:
        """Nobody who was proven to be blocked has moved."""
        for actor, (was, now) in enumerate(zip(before[0], self.run.state[0], strict=True)):
            if was != now and was[1] != GATE and self.named.get((actor, was[0])) == "proven":
                raise MismatchError(f"{self._where()}\n{actor} has moved, and was proven to be stuck")

    def _compare_end(self) -> None:
        """Nobody can move: those without a time-out are named."""
        run = self.run
        alive = run.has_unseen_worker()
        waiting = run.machine.waiting(run.state, timed=False)
        self.tally["stuck"] += len(waiting)
        self.tally["silent programs"] += not waiting
        self.tally["ends with somebody alive"] += alive
        for actor in waiting:
            self.tally[f"stuck in {self._label(actor)}"] += 1
            confidence = self._confidence(actor)
            if confidence == "proven":
                continue
            if self.told_rings:
                self.tally["consequences"] += 1
            elif not alive:
                raise MismatchError(
                    f"{self._where()}\n{actor} is stuck, nobody is alive, and the agent says {confidence}"
                )

    def _label(self, actor: int) -> str:
        op = self.run.machine.op(self.run.state, actor)
        if op.what in ("join", "result"):
            return op.what
        thing = self.run.machine.things[op.thing].kind
        inside = thing == "condition" and (op.what == "acquire" or self.run.state[0][actor][1] == RETAKE)
        return "rlock" if inside else thing

    def _where(self) -> str:
        told = "\n".join(f"  {f.confidence} {f.kind}: {f.title} ({f.reason})" for f in self.asker.findings)
        return f"after {self.trace}\nstate {self.run.state}\nfindings:\n{told}"


def run(seeds: range) -> int:
    """Check programs in this process; see `run_batch`."""
    import concagent
    from concagent import core, orphans

    orphans.GRACE_NS = 0
    orphans.HAND_OVER_NS = FAR_NS  # who took a lock bare, and has ended, may have meant another thread to release it
    make_joins_wakeable()
    threading._time = queue.time = _clock  # type: ignore[attr-defined]
    agent = concagent.install(log=False, long_wait=0, long_hold=0, socket=False, report_signal="off", files=False)
    agent.monitor.stop()
    core.mark_agent_thread()
    return run_batch(seeds, lambda seed: Check(agent.config, program_of(seed)).play(), show)


def program_of(seed: int) -> Program:
    """Return a program that the agent sees all waits of: the Python core leaves the type of simple queues alone."""
    from concagent import core

    return make_program(seed, simple_queues=core.NAME == "c")


def show(seed: int) -> str:
    return program_of(seed).source


if __name__ == "__main__":
    main(__file__, run, show)
