"""Makes random programs of threads and whatever threads wait for: source text, and the same for the oracle.

What holds by convention, and the agent takes for granted (ARCHITECTURE, "what counts as proof"), holds here: a mutex is released
by its holder alone.  A program may have one Lock that is no mutex but a signal: taken bare, released by anybody.  Conditions
are waited for, and notified, in a ``with``.  A bounded semaphore gets back what was taken.  Nobody cancels a future.

In half of the programs the objects are globals; in the others each thread is given those that it uses, and nobody else refers
to them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from waits_oracle import Machine, Op, Thing

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS = {
    "lock": 4,
    "rlock": 2,
    "signal": 1,
    "condition": 3,
    "semaphore": 2,
    "bounded": 1,
    "event": 2,
    "barrier": 1,
    "queue": 3,
    "simplequeue": 1,
    "pool": 2,
}
STYLES = {"with": 5, "try": 2, "later": 2, "timed": 1, "attempt": 1, "forget": 1}
TIMED = 0.15  # share of the waits that give up by themselves
DEPTH = 3
EVERYBODY = 99  # is notified


@dataclass(frozen=True)
class Program:
    """What is run, and what the oracle is told.  Each thread or task is a function, ``actor`` with its number."""

    seed: int
    machine: Machine
    source: str
    is_global: bool
    uses: tuple[tuple[int, ...], ...]  # of each actor: numbers of the objects that it is given

    @property
    def file(self) -> str:
        return f"<program {self.seed}>"

    def name(self, thing: int) -> str:
        return f"{self.machine.things[thing].kind}{thing}"


@dataclass
class _Plan:
    """What the actors of a program have in common.

    ``homes`` has the number of its pool for each actor, -1 for a thread.  ``unsubmitted`` knows the tasks that nobody submits
    yet, with the objects that they use.
    """

    chance: random.Random
    things: tuple[Thing, ...]
    homes: list[int]
    timed: float
    is_global: bool
    unsubmitted: dict[int, set[int]]

    def name(self, thing: int) -> str:
        return f"{self.things[thing].kind}{thing}"

    def given(self, uses: set[int]) -> list[str]:
        """Return the arguments of an actor that uses these objects."""
        return [] if self.is_global else [self.name(thing) for thing in sorted(uses)]


def make_program(seed: int, *, simple_queues: bool = True) -> Program:
    """Return a program; one whose agent does not see waits for simple queues has none."""
    chance = random.Random(seed)
    things = _make_things(chance, {**KINDS, "simplequeue": KINDS["simplequeue"] * simple_queues})
    pools = [number for number, thing in enumerate(things) if thing.kind == "pool"]
    homes = [-1] * chance.randint(2, 3 if pools else 4)
    homes += [chance.choice(pools) for _ in range(chance.randint(1, 3) if pools else 0)]
    plan = _Plan(chance, things, homes, chance.choice((0, 0, TIMED)), chance.random() < 0.5, {})
    writers = []
    for actor in reversed(range(len(homes))):  # so a task is submitted by a thread, or by a task with a lower number
        writer = _Writer(plan, actor)
        while not writer.ops:
            writer.write_block(0, chance.randint(1, 6 if homes[actor] < 0 else 3))
        if homes[actor] >= 0:
            plan.unsubmitted[actor] = writer.uses
        writers.insert(0, writer)
    lines = ["def make():"]
    lines += [f"    {plan.name(number)} = {_constructor(thing, plan)}" for number, thing in enumerate(things)]
    lines += [f"    return [{', '.join(plan.name(number) for number in range(len(things)))}]"]
    for actor, writer in enumerate(writers):
        given = ", ".join(plan.given(writer.uses))
        lines += ["", "", f"def actor{actor}({given}):", *("    " + line for line in writer.lines)]
    machine = Machine(things, tuple(tuple(writer.ops) for writer in writers), tuple(homes))
    uses = tuple(() if plan.is_global else tuple(sorted(writer.uses)) for writer in writers)
    return Program(seed, machine, "\n".join(lines) + "\n", plan.is_global, uses)


def _make_things(chance: random.Random, kinds: dict[str, int]) -> tuple[Thing, ...]:
    things: list[Thing] = []
    for number in range(chance.randint(1, 5)):
        kind = chance.choices(list(kinds), list(kinds.values()))[0]
        if kind == "signal" and any(thing.kind == "signal" for thing in things):
            kind = "event"
        mutexes = [other for other, thing in enumerate(things) if thing.kind in ("lock", "rlock")]
        sizes = {"semaphore": (0, 2), "bounded": (1, 2), "pool": (1, 2), "barrier": (2, 3), "queue": (0, 2)}
        size = chance.randint(*sizes.get(kind, (0, 0)))
        shared = kind == "condition" and mutexes and chance.random() < 0.5
        things.append(Thing(kind, size, chance.choice(mutexes) if shared else number))
    return tuple(things)


def _constructor(thing: Thing, plan: _Plan) -> str:
    if thing.kind == "condition":
        shared = plan.name(thing.lock)
        return "Condition()" if shared.startswith("condition") else f"Condition({shared})"
    size = f"{thing.size}" if thing.size or thing.kind == "semaphore" else ""
    types = {"rlock": "RLock", "signal": "Lock", "bounded": "BoundedSemaphore", "pool": "ThreadPoolExecutor"}
    types["simplequeue"] = "SimpleQueue"
    return f"{types.get(thing.kind, thing.kind.title())}({size})"


class _Writer:
    """Writes one actor's code, for Python and for the oracle."""

    def __init__(self, plan: _Plan, actor: int) -> None:
        self.plan = plan
        self.actor = actor
        self.chance = plan.chance
        self.things = plan.things
        self.ops: list[Op] = []
        self.lines: list[str] = []
        self.uses: set[int] = set()
        self._indent = ""
        self._inside: list[int] = []  # conditions whose block is open

    def _write(self, *lines: str) -> None:
        self.lines += [self._indent + line for line in lines]

    def _step(self, op: Op, *lines: str) -> None:
        """Write a gate and an operation."""
        self._write(f"gate({len(self.ops)})", *lines)
        self.ops.append(op)

    def write_block(self, depth: int, length: int) -> None:
        for _ in range(length):
            if self._inside and self.chance.random() < 0.5:
                self._write_condition(self.chance.choice(self._inside))
            elif self.chance.random() < 0.1:
                self._write_join()
            else:
                self._write_use(self.chance.randrange(len(self.things)), depth)

    def _write_use(self, number: int, depth: int) -> None:
        kind = self.things[number].kind
        self.uses.add(number)
        name = f"{kind}{number}"
        if kind in ("lock", "rlock", "condition", "bounded"):
            self._write_hold(number, name, depth)
        elif kind == "semaphore":
            if self.chance.random() < 0.5:
                self._write_hold(number, name, depth)
            else:
                many = self.chance.choice((1, 1, 2))
                self._step(Op("release", number, many), f"quiet({name}.release{f', {many}' if many > 1 else ''})")
        else:
            write: Callable[[int, str], None] = getattr(self, f"_write_{kind}")
            write(number, name)

    def _is_timed(self) -> bool:
        return self.chance.random() < self.plan.timed

    def _write_hold(self, number: int, name: str, depth: int) -> None:
        styles = dict(STYLES) if self.plan.timed else {**STYLES, "timed": 0}
        if self.things[number].kind == "rlock" and self.plan.homes[self.actor] >= 0:
            styles["forget"] = 0  # it would be held by the worker, whose next task could take it once more
        if self.things[number].kind == "condition":
            styles = {"with": 1}  # who waits in it, or notifies, must have its lock
            self.uses.add(self.things[number].lock)
        style = self.chance.choices(list(styles), list(styles.values()))[0]
        start = len(self.ops)
        acquire = Op("attempt" if style == "attempt" else "acquire", number, timed=style == "timed")
        opening = {
            "with": [f"with {name}:"],
            "try": [f"{name}.acquire()", "try:"],
            "timed": [
                "try:",
                f"    got = {name}.acquire(timeout=1000)",
                "except TimeUp:",
                "    got = False",
                "if got:",
            ],
            "attempt": [f"if {name}.acquire(False):"],
        }
        self._step(acquire, *opening.get(style, [f"{name}.acquire()"]))
        if style == "forget":
            return
        outer, inside = self._indent, self.things[number].kind == "condition"
        self._indent += "" if style == "later" else "    "
        self._inside += [number] * inside
        self.write_block(depth + 1, self.chance.randint(int(inside), 2) if depth < DEPTH else 0)
        del self._inside[len(self._inside) - inside :]
        release = {"with": [], "try": []}.get(style, [f"{name}.release()"])
        self._step(Op("release", number), *release)
        self._indent = outer
        if style == "try":
            self._write("finally:", f"    {name}.release()")
        if style in ("timed", "attempt"):
            self.ops[start] = Op(acquire.what, number, otherwise=len(self.ops), timed=acquire.timed)

    def _write_condition(self, number: int) -> None:
        name = f"condition{number}"
        what = self.chance.choice(("wait", "wait", "notify", "notify_all"))
        if what == "wait":
            timed = self._is_timed()
            self._step(Op("wait_in", number, timed=timed), f"{name}.wait({'timeout=1000' * timed})")
        else:
            self._step(Op("notify", number, EVERYBODY if what == "notify_all" else 1), f"{name}.{what}()")

    def _write_signal(self, number: int, name: str) -> None:
        if self.chance.random() < 0.5:
            self._step(Op("acquire", number), f"{name}.acquire()")
        else:
            self._step(Op("release", number), f"quiet({name}.release)")

    def _write_event(self, number: int, name: str) -> None:
        what = self.chance.choice(("await", "await", "set", "clear"))
        if what == "await":
            timed = self._is_timed()
            self._step(Op(what, number, timed=timed), f"{name}.wait({'timeout=1000' * timed})")
        else:
            self._step(Op(what, number), f"{name}.{what}()")

    def _write_barrier(self, number: int, name: str) -> None:
        what = self.chance.choices(("meet", "abort", "reset"), (8, 1, 1))[0]
        if what == "meet":
            timed = self._is_timed()
            wait = f"    {name}.wait({'timeout=1000' * timed})"
            self._step(Op(what, number, timed=timed), "try:", wait, "except BrokenBarrierError:", "    pass")
        else:
            self._step(Op(what, number), f"{name}.{what}()")

    def _write_queue(self, number: int, name: str) -> None:
        what = self.chance.choices(("put", "get", "task_done", "drain"), (4, 4, 2, 1))[0]
        timed = what in ("put", "get") and self._is_timed()
        op = Op(what, number, timed=timed)
        if what == "task_done":
            self._step(op, f"quiet({name}.task_done)")
        elif what == "drain":
            self._step(op, f"{name}.join()")
        elif timed:
            call = f"    {name}.{what}({'1, ' if what == 'put' else ''}timeout=1000)"
            self._step(op, "try:", call, f"except {'Full' if what == 'put' else 'Empty'}:", "    pass")
        else:
            self._step(op, f"{name}.{what}({'1' if what == 'put' else ''})")

    def _write_simplequeue(self, number: int, name: str) -> None:
        what = self.chance.choice(("put", "get"))
        self._step(Op(what, number), f"{name}.{what}({'1' if what == 'put' else ''})")

    def _write_pool(self, number: int, name: str) -> None:
        tasks = [task for task, home in enumerate(self.plan.homes) if home == number]
        mine = [task for task in tasks if task in self.plan.unsubmitted]
        if mine and self.chance.random() < 0.7:
            task = self.chance.choice(mine)
            uses = self.plan.unsubmitted.pop(task)
            self.uses |= uses
            given = ", ".join([f"actor{task}", *self.plan.given(uses)])
            self._step(Op("submit", number, task), f"futures[{task}] = {name}.submit({given})")
        elif tasks:
            task, timed = self.chance.choice(tasks), self._is_timed()
            lines = [f"if {task} in futures:", f"    futures[{task}].result()"]
            if timed:
                lines = ["try:", f"    {lines[0]}", f"        futures[{task}].result(timeout=1000)"]
                lines += ["except TimeoutError:", "    pass"]
            self._step(Op("result", task, timed=timed), *lines)

    def _write_join(self) -> None:
        others = [actor for actor, home in enumerate(self.plan.homes) if home < 0 and actor != self.actor]
        later = [actor for actor in others if actor > self.actor]
        other = self.chance.choice(later if later and self.chance.random() < 0.9 else others)
        timed = self._is_timed()
        self._step(Op("join", other, timed=timed), f"t{other}.join({'1000' * timed})")
