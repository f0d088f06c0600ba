"""What a small program of threads can do, in all orders: the oracle of ``test_random_waits.py``.

It knows what Python's locks, conditions, semaphores, events, barriers, queues, joins and thread pools do, and nothing of how the
agent works.  A program's code is flat: each actor, a thread or a task of a pool, has a list of operations, and the state says
for each actor before which of them it stands or in which it waits.  Where Python leaves open who is woken, the oracle takes each
of them in turn; a wait with a time-out can end at any moment.  So what `stuck` finds to be blocked can be freed by no
continuation of the program.

States are tuples, since the search remembers them.  An operation is one step: whoever it wakes has gone on as far as he
comes without an operation of his own, as in the real program between two openings of a gate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Stands before an operation; waits in it; takes a condition's lock again; is gone; is not submitted yet; lies in a pool's queue.
GATE, WAIT, RETAKE, END, UNBORN, QUEUED = range(6)
FREE = (-1, 0)  # (holder, depth) of a lock
LOCKS = ("lock", "rlock", "signal", "condition")  # kinds that can be taken by one

Actors = tuple[tuple[int, int], ...]  # (number of the operation, one of the six above)
State = tuple[Actors, tuple[Any, ...]]  # and the value of each object, see `Program.begin`


@dataclass(frozen=True)
class Thing:
    """An object of a program.

    ``size`` is the number of a semaphore's permits, a barrier's parties, a pool's workers, or of the items that a queue has room
    for (0: any number).  ``lock`` is the number of the mutex that a condition shares, its own number if it has one of its own.
    """

    kind: str
    size: int = 0
    lock: int = -1


@dataclass(frozen=True)
class Op:
    """One operation: what, on which object (or actor), how many, where to go on after a failure, whether it gives up.

    To submit, ``thing`` is the pool and ``number`` the task.
    """

    what: str
    thing: int
    number: int = 1
    otherwise: int = -1  # operation after a try or time-out that failed; -1: the next one
    timed: bool = False


@dataclass(frozen=True)
class Machine:
    """Objects, and each actor's code; ``pools`` has the number of its pool for each actor, -1 for a thread."""

    things: tuple[Thing, ...]
    code: tuple[tuple[Op, ...], ...]
    pools: tuple[int, ...]

    def begin(self) -> State:
        """Return the state in which everybody stands at his first gate."""
        first = {"semaphore": lambda t: t.size, "bounded": lambda t: t.size, "event": lambda _: False}
        first |= {"barrier": lambda _: True, "queue": lambda _: (0, 0), "condition": lambda _: (FREE, ())}
        first |= {"simplequeue": lambda _: (0, 0), "pool": lambda _: ()}
        actors = tuple((0, GATE if pool < 0 else UNBORN) for pool in self.pools)
        return actors, tuple(first.get(t.kind, lambda _: FREE)(t) for t in self.things)

    def op(self, state: State, actor: int) -> Op:
        """Return the operation before or in which an actor is."""
        return self.code[actor][state[0][actor][0]]

    def moves(self, state: State) -> Iterator[tuple[int, bool]]:
        """Return (actor, whether his time is up) for everybody who can go on by himself."""
        for actor, (_, phase) in enumerate(state[0]):
            if phase == GATE:
                yield actor, False
            elif phase == WAIT and self.op(state, actor).timed:
                yield actor, True

    def outcomes(self, state: State, actor: int, *, late: bool = False) -> list[State]:
        """Return what can come of an actor's next operation, or of the end of its time."""
        found = []
        scripts: list[list[int]] = [[]]
        while scripts:
            step = _Step(self, state, scripts.pop(), scripts)
            if late:
                step.give_up(actor)
            else:
                step.perform(actor)
            found.append(step.state())
        return list(dict.fromkeys(found))

    def waiting(self, state: State, *, timed: bool) -> frozenset[int]:
        """Return who waits with or without a time-out; taking a condition's lock again has none."""
        return frozenset(
            actor
            for actor, (_, phase) in enumerate(state[0])
            if phase in (WAIT, RETAKE) and (phase == WAIT and self.op(state, actor).timed) is timed
        )

    def stuck(self, state: State, asked: frozenset[int], limit: int = 200_000) -> frozenset[int] | None:
        """Return which of these actors leave their present wait in no continuation; None if there are too many states."""
        left = set(asked)
        seen = {state}
        work = [state]
        while work and left:
            at = work.pop()
            for actor, late in self.moves(at):
                for then in self.outcomes(at, actor, late=late):
                    if then not in seen:
                        seen.add(then)
                        work.append(then)
                        left = {one for one in left if then[0][one] == state[0][one]}
            if len(seen) > limit:
                return None
        return frozenset(left)


class _Step:
    """One operation, played on a copy of the state.  ``script`` says whom to choose; other choices are added to ``more``."""

    def __init__(self, machine: Machine, state: State, script: list[int], more: list[list[int]]) -> None:
        self.machine = machine
        self.actors = list(state[0])
        self.values = list(state[1])
        self._script = script
        self._more = more
        self._chosen: list[int] = []

    def state(self) -> State:
        return tuple(self.actors), tuple(self.values)

    def _choose(self, actors: list[int]) -> int:
        at = len(self._chosen)
        if at >= len(self._script):
            self._more += [[*self._chosen, other] for other in range(1, len(actors))]
        self._chosen.append(self._script[at] if at < len(self._script) else 0)
        return actors[self._chosen[at]]

    def _op(self, actor: int) -> Op:
        return self.machine.code[actor][self.actors[actor][0]]

    def _waiters(self, what: str, thing: int) -> list[int]:
        return [
            actor
            for actor, (_, phase) in enumerate(self.actors)
            if phase == WAIT and self._op(actor).what == what and self._op(actor).thing == thing
        ]

    def _wait(self, actor: int, phase: int = WAIT) -> None:
        self.actors[actor] = self.actors[actor][0], phase

    def _go_on(self, actor: int, *, failed: bool = False) -> None:
        """Put an actor before its next operation."""
        op = self._op(actor)
        to = op.otherwise if failed and op.otherwise >= 0 else self.actors[actor][0] + 1
        ends = to == len(self.machine.code[actor])
        self.actors[actor] = to, END if ends else GATE
        if ends:
            self._wake_all("join", actor)
            self._wake_all("result", actor)
            self._serve_pool(self.machine.pools[actor])

    def _wake_all(self, what: str, thing: int) -> None:
        for actor in self._waiters(what, thing):
            self._go_on(actor)

    def perform(self, actor: int) -> None:
        """Do what an actor stands before."""
        op = self._op(actor)
        action: Callable[[int, Op], None] = getattr(self, "_" + op.what)
        action(actor, op)

    def give_up(self, actor: int) -> None:
        """Let an actor's time be up."""
        op = self._op(actor)
        if op.what == "wait_in":
            self._wait(actor, RETAKE)
            self._serve_lock(self.machine.things[op.thing].lock)
        elif op.what == "meet":
            self._break(op.thing, whole=False)
        else:
            self._go_on(actor, failed=True)

    # -------------------------------------------------------- locks and conditions

    def _lock_of(self, thing: int) -> int:
        """Return the number of the object in whose value a lock is kept."""
        return self.machine.things[thing].lock if self.machine.things[thing].kind == "condition" else thing

    def _hold(self, lock: int) -> tuple[int, int]:
        value: Any = self.values[lock]
        return value[0] if self.machine.things[lock].kind == "condition" else value

    def _set_hold(self, lock: int, hold: tuple[int, int]) -> None:
        value: Any = self.values[lock]
        self.values[lock] = (hold, value[1]) if self.machine.things[lock].kind == "condition" else hold

    def _is_reentrant(self, lock: int) -> bool:
        return self.machine.things[lock].kind in ("rlock", "condition")

    def _acquire(self, actor: int, op: Op) -> None:
        if self.machine.things[op.thing].kind in ("semaphore", "bounded"):
            self._acquire_permit(actor, op)
            return
        lock = self._lock_of(op.thing)
        holder, depth = self._hold(lock)
        if depth and not (holder == actor and self._is_reentrant(lock)):
            self._wait(actor)
        else:
            self._set_hold(lock, (actor, depth + 1))
            self._go_on(actor)

    def _attempt(self, actor: int, op: Op) -> None:
        self._acquire(actor, op)
        if self.actors[actor][1] == WAIT:
            self._go_on(actor, failed=True)

    def _release(self, actor: int, op: Op) -> None:
        if self.machine.things[op.thing].kind in ("semaphore", "bounded"):
            self._release_permits(actor, op)
            return
        lock = self._lock_of(op.thing)
        holder, depth = self._hold(lock)
        if depth and (holder == actor or not self._is_reentrant(lock)):  # else it raises
            self._set_hold(lock, (holder, depth - 1) if depth > 1 else FREE)
        self._go_on(actor)
        self._serve_lock(lock)

    def _serve_lock(self, lock: int) -> None:
        """Give a lock that is free to somebody who waits for it."""
        if self._hold(lock)[1]:
            return
        waiters = []
        for actor, (_, phase) in enumerate(self.actors):
            op = self._op(actor) if phase in (WAIT, RETAKE) else None
            if op is not None and (phase == RETAKE or op.what == "acquire"):
                thing = self.machine.things[op.thing].kind
                if thing in LOCKS and self._lock_of(op.thing) == lock:
                    waiters.append(actor)
        if not waiters:
            return
        taker = self._choose(waiters)
        depth = 1
        if self.actors[taker][1] == RETAKE:
            condition = self._op(taker).thing
            holds = dict(self.values[condition][1])
            depth = holds.pop(taker)
            self.values[condition] = self.values[condition][0], tuple(sorted(holds.items()))
        self._set_hold(lock, (taker, depth))
        self._go_on(taker)

    def _wait_in(self, actor: int, op: Op) -> None:
        lock = self._lock_of(op.thing)
        depth = self._hold(lock)[1]
        hold, holds = self.values[op.thing]
        self.values[op.thing] = hold, tuple(sorted({**dict(holds), actor: depth}.items()))
        self._set_hold(lock, FREE)
        self._wait(actor)
        self._serve_lock(lock)

    def _notify(self, actor: int, op: Op) -> None:
        for _ in range(op.number):
            waiters = self._waiters("wait_in", op.thing)
            if waiters:
                self._wait(self._choose(waiters), RETAKE)
        self._go_on(actor)

    # -------------------------------------------------------- semaphores, events, barriers

    def _acquire_permit(self, actor: int, op: Op) -> None:
        if self.values[op.thing]:
            self.values[op.thing] -= 1
            self._go_on(actor)
        else:
            self._wait(actor)

    def _release_permits(self, actor: int, op: Op) -> None:
        thing = self.machine.things[op.thing]
        if thing.kind == "semaphore" or self.values[op.thing] + op.number <= thing.size:  # else it raises
            self.values[op.thing] += op.number
        self._go_on(actor)
        while self.values[op.thing] and (waiters := self._waiters("acquire", op.thing)):
            self.values[op.thing] -= 1
            self._go_on(self._choose(waiters))

    def _await(self, actor: int, op: Op) -> None:
        if self.values[op.thing]:
            self._go_on(actor)
        else:
            self._wait(actor)

    def _set(self, actor: int, op: Op) -> None:
        self.values[op.thing] = True
        self._go_on(actor)
        self._wake_all("await", op.thing)

    def _clear(self, actor: int, op: Op) -> None:
        self.values[op.thing] = False
        self._go_on(actor)

    def _meet(self, actor: int, op: Op) -> None:
        whole = self.values[op.thing]
        if whole and len(self._waiters("meet", op.thing)) + 1 < self.machine.things[op.thing].size:
            self._wait(actor)
            return
        self._go_on(actor)
        if whole:
            self._wake_all("meet", op.thing)

    def _break(self, barrier: int, *, whole: bool) -> None:
        self.values[barrier] = whole
        self._wake_all("meet", barrier)

    def _abort(self, actor: int, op: Op) -> None:
        self._go_on(actor)
        self._break(op.thing, whole=False)

    def _reset(self, actor: int, op: Op) -> None:
        self._go_on(actor)
        self._break(op.thing, whole=True)

    # -------------------------------------------------------- queues, joins

    def _put(self, actor: int, op: Op) -> None:
        self._wait(actor)
        self._serve_queue(op.thing)

    _get = _put

    def _serve_queue(self, queue: int) -> None:
        """Let whoever can put and get; values are (items, unfinished tasks)."""
        while True:
            items, tasks = self.values[queue]
            size = self.machine.things[queue].size
            putters, getters = self._waiters("put", queue), self._waiters("get", queue)
            if items and getters:
                self.values[queue] = items - 1, tasks
                self._go_on(self._choose(getters))
            elif putters and (not size or items < size):
                self.values[queue] = items + 1, tasks + 1
                self._go_on(self._choose(putters))
            else:
                return

    def _task_done(self, actor: int, op: Op) -> None:
        items, tasks = self.values[op.thing]
        self._go_on(actor)
        if tasks:  # else it raises
            self.values[op.thing] = items, tasks - 1
            if tasks == 1:
                self._wake_all("drain", op.thing)

    def _drain(self, actor: int, op: Op) -> None:
        if self.values[op.thing][1]:
            self._wait(actor)
        else:
            self._go_on(actor)

    def _join(self, actor: int, op: Op) -> None:
        if self.actors[op.thing][1] == END:
            self._go_on(actor)
        else:
            self._wait(actor)

    # -------------------------------------------------------- pools

    def _submit(self, actor: int, op: Op) -> None:
        self._wait(op.number, QUEUED)
        self.values[op.thing] += (op.number,)
        self._go_on(actor)
        self._serve_pool(op.thing)

    def _serve_pool(self, pool: int) -> None:
        """Let workers that are free begin with what was submitted first; values are the tasks in the queue."""
        if pool < 0:
            return
        busy = sum(
            self.machine.pools[actor] == pool and phase in (GATE, WAIT, RETAKE)
            for actor, (_, phase) in enumerate(self.actors)
        )
        for task in self.values[pool][: max(0, self.machine.things[pool].size - busy)]:
            self.values[pool] = self.values[pool][1:]
            self._wait(task, GATE)

    def _result(self, actor: int, op: Op) -> None:
        if self.actors[op.thing][1] in (END, UNBORN):  # who finds no future waits for none
            self._go_on(actor)
        else:
            self._wait(actor)
