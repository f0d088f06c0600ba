"""Random programs of threads and locks, run under the agent and in an oracle: the verdicts must be equal.

A program is made step by step: a random thread that is not blocked does something that makes sense for it just then, and
the oracle (``oracle.py``) says what comes of it.  The finished trace is written down as Python source, one function a
thread, with real ``with`` and ``try``/``finally`` blocks, since the agent reads from bytecode who is going to release.  Then
real threads run it in the order of the trace.  Each waits at a gate before each step and a scheduler opens one
gate at a time; the gates are original locks, which the agent does not see.  That a step has blocked is read from the core's
record of the thread and not from a clock.

The scheduler is a live thread all the time, so waits that only "nobody is left" could prove are never proven here: a
thread that waits for a Lock which it took with a bare ``acquire`` may be released by another one, and in some programs is.

A program's files, functions and lock classes are its own (``<program SEED>``), so findings are told apart by file, and a
class in signal mode is one program's.  Afterwards every blocked thread is woken with an exception through the core.
Threads that join each other in a ring cannot be woken by anybody; they are few, and stay.

By hand:  .venv/bin/python tests/stress/test_random_programs.py --programs 20000 --seed 1
One:      .venv/bin/python tests/stress/test_random_programs.py --programs 1 --seed 4711 --show
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _players import PATIENCE_SECONDS, MismatchError, Stop, Worker, gate, give, is_parked, main, run_batch, wait_until
from oracle import World

OPERATIONS = {  # with their weights
    "with": 5,
    "try": 3,
    "acquire": 3,
    "attempt": 1,
    "timed": 1,
    "leave": 25,
    "release": 5,
    "misuse": 1,
    "join": 4,
    "end": 4,
}
TEXTS = {"acquire": ".acquire()", "attempt": ".acquire(False)", "timed": ".acquire(timeout=1000)"}


# ---------------------------------------------------------------- making a program


@dataclass
class Program:
    """A trace of (thread, operation, number of a lock or thread, discipline of what it acquires)."""

    seed: int
    kinds: list[str]
    threads: int
    trace: list[tuple[int, str, int, str]] = field(default_factory=list)

    @property
    def file(self) -> str:
        return f"<program {self.seed}>"


class Script:
    """The oracle's world, and the blocks that each thread has opened, innermost last."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.world = World(program.kinds, program.threads)
        self.blocks: list[list[int]] = [[] for _ in range(program.threads)]

    def free_threads(self) -> list[int]:
        return [t for t in range(self.program.threads) if t not in self.world.waits and t not in self.world.ended]

    def possible(self, thread: int) -> list[tuple[str, int]]:
        """Return what a thread could do: each operation for each lock or thread that it makes sense for."""
        locks = range(len(self.program.kinds))
        steps = [(how, lock) for lock in locks for how in ("with", "try", *TEXTS)]
        steps += [("join", other) for other in range(self.program.threads) if other != thread]
        steps += [("leave", self.blocks[thread][-1])] if self.blocks[thread] else [("end", 0)]
        steps += [("misuse", lock) for lock in locks if self._would_raise(thread, lock)]
        return steps + [("release", lock) for lock in self.world.holds if self._may_release(thread, lock)]

    def _would_raise(self, thread: int, lock: int) -> bool:
        hold = self.world.holds.get(lock)
        return hold is None or (self.program.kinds[lock] == "rlock" and hold[0] != thread)

    def _may_release(self, thread: int, lock: int) -> bool:
        """Leave out what a block is going to release, and releases that break a ring which was proven."""
        holder, depth, discipline = self.world.holds[lock]
        if self.program.kinds[lock] == "rlock":
            return holder == thread and depth > self.blocks[thread].count(lock)
        if discipline in ("owned", "finally") or holder in self.world.ended:
            return False
        stuck = frozenset().union(*self.world.rings())
        return not any(waiter in stuck and wait[:2] == ("lock", lock) for waiter, wait in self.world.waits.items())

    def joins_only(self, thread: int, other: int) -> bool:
        """Return whether a join would close a ring of nothing but joins."""
        seen = set()
        while other not in seen and self.world.waits.get(other, ("",))[0] == "thread":
            seen.add(other)
            other = self.world.waits[other][1]
        return other == thread

    def perform(self, thread: int, operation: str, number: int, discipline: str) -> None:
        if operation in ("with", "try"):
            self.blocks[thread].append(number)
            self.world.acquire(thread, number, discipline, "wait")
        elif operation in TEXTS:
            how = {"acquire": "wait", "attempt": "try", "timed": "timed"}[operation]
            self.world.acquire(thread, number, discipline, how)
        elif operation == "join":
            self.world.join(thread, number)
        elif operation == "end":
            self.world.end(thread)
        else:
            if operation == "leave":
                self.blocks[thread].pop()
            self.world.release(thread, number)


def make_program(seed: int) -> Program:
    chance = random.Random(seed)
    kinds = [chance.choice(("lock", "lock", "rlock")) for _ in range(chance.randint(1, 6))]
    threads = chance.randint(2, 5)
    program = Program(seed, kinds, threads)
    script = Script(program)
    for _ in range(chance.randint(4, 40)):
        free = script.free_threads()
        if not free:
            break
        thread = chance.choice(free)
        possible = script.possible(thread)
        many = Counter(operation for operation, _ in possible)
        weights = [OPERATIONS[operation] / many[operation] for operation, _ in possible]
        operation, number = chance.choices(possible, weights)[0]
        if operation == "join" and script.joins_only(thread, number) and chance.random() < 0.9:
            continue  # its threads stay for ever, so let there be few
        discipline = (
            chance.choice(("later", "bare")) if operation in TEXTS else {"try": "finally"}.get(operation, "owned")
        )
        program.trace.append((thread, operation, number, discipline))
        script.perform(thread, operation, number, discipline)
    return program


# ---------------------------------------------------------------- writing it down


def source_of(program: Program) -> str:
    """Return the program as Python source; lock n is made on line n + 1."""
    lines = [f"l{n} = {'Lock' if kind == 'lock' else 'RLock'}()" for n, kind in enumerate(program.kinds)]
    for thread in range(program.threads):
        lines += ["", "", f"def thread{thread}():", *("    " + line for line in _body(program, thread))]
    return "\n".join(lines) + "\n"


def _body(program: Program, thread: int) -> list[str]:
    script = Script(program)  # followed once more, to know whose release it is
    lines: list[str] = []
    blocks: list[tuple[str, int]] = []

    def write(text: str) -> None:
        lines.append("    " * len(blocks) + text)

    def leave() -> None:
        kind, number = blocks.pop()
        if kind == "try":
            write("finally:")
            write(f"    l{number}.release()")

    for actor, operation, number, discipline in program.trace:
        if actor == thread:
            write("gate()")
            if operation == "with":
                write(f"with l{number}:")
                blocks.append((operation, number))
            elif operation == "try":
                write(f"l{number}.acquire()")
                write("try:")
                blocks.append((operation, number))
            elif operation == "leave":
                leave()
            elif operation == "join":
                write(f"t{number}.join()")
            elif operation == "misuse":
                write(f"release(l{number})")
            elif operation == "release":
                mine = script.world.holds.get(number, [None])[0] == thread
                write(f"l{number}.release()" if mine else f"release(l{number})")
            elif operation in TEXTS:
                write(f"l{number}{TEXTS[operation]}")
                write("if never:")
                write(f"    l{number}.{'release' if discipline == 'later' else 'acquire'}()")
        script.perform(actor, operation, number, discipline)
    if thread not in script.world.ended:
        write("gate()")
    while blocks:
        leave()
    return lines


# ---------------------------------------------------------------- running it


def release(lock: Any) -> None:
    """Release a lock that may be free, or another thread's: no release that the caller's code shows."""
    try:
        give(lock)
    except RuntimeError:
        pass


class Run:
    """One program with real threads."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.script = Script(program)
        names = {"Lock": threading.Lock, "RLock": threading.RLock, "gate": gate, "release": release, "never": False}
        self.names: dict[str, Any] = names
        exec(compile(source_of(program), program.file, "exec"), names)
        self.workers = [Worker(names[f"thread{n}"]) for n in range(program.threads)]
        for number, worker in enumerate(self.workers):
            worker.make_thread(f"{program.seed}.{number}")
            names[f"t{number}"] = worker.thread

    def play(self) -> None:
        for worker in self.workers:
            worker.thread.start()
        self._settle()
        for thread, operation, number, discipline in self.program.trace:
            self.script.perform(thread, operation, number, discipline)
            self.workers[thread].open_gate()
            self._settle()

    def _settle(self) -> None:
        """Wait until each thread is where the oracle has it: at its gate, parked in its wait, or gone."""
        if not wait_until(lambda: all(self._is_settled(number) for number in range(self.program.threads))):
            late = [n for n in range(self.program.threads) if not self._is_settled(n)]
            raise MismatchError(f"threads {late} are not where the oracle has them: {self.script.world.waits}")

    def _is_settled(self, number: int) -> bool:
        worker, world = self.workers[number], self.script.world
        if number in world.ended:
            return worker.is_gone()
        if number not in world.waits:
            return worker.arrived
        wait = worker.record.waiting()
        return wait is not None and wait.resource is self._awaited(number) and is_parked(worker.record.ident)

    def _awaited(self, number: int) -> Any:
        from concagent import core, state

        what, other = self.script.world.waits[number][:2]
        return (
            core.cell_of(self.names[f"l{other}"]) if what == "lock" else state.thread_cell(self.workers[other].thread)
        )

    def clear_up(self) -> None:
        """End all threads; those in a ring of nothing but joins, and who joins them, cannot be woken by anybody."""
        from concagent import core

        world = self.script.world
        joins = {t: wait[1] for t, wait in world.waits.items() if wait[0] == "thread"}
        stuck = {t for ring in world.rings() if ring <= joins.keys() for t in ring}
        while more := {t for t, other in joins.items() if other in stuck} - stuck:
            stuck |= more
        for worker in self.workers:
            worker.stop = True
        deadline = time.monotonic() + PATIENCE_SECONDS
        while alive := [w for n, w in enumerate(self.workers) if n not in stuck and w.thread.is_alive()]:
            for worker in alive:
                wait = worker.record.waiting()
                if worker.arrived:
                    worker.open_gate()
                elif wait is not None:
                    core.wake_victim(wait, Stop())
            time.sleep(0.0001)
            if time.monotonic() > deadline:
                raise MismatchError(f"threads {[w.thread.name for w in alive]} do not end")
        for worker in self.workers:
            worker.forget()
            if worker.failure is not None:
                raise MismatchError(f"thread {worker.thread.name} failed: {worker.failure!r}")


# ---------------------------------------------------------------- comparing


def expected_of(world: World) -> dict[str, Any]:
    return {
        "deadlocks": Counter(world.rings()),
        "orphans": world.orphans(),
        "misuses": Counter(world.misuses),
    }


def found_by(agent: Any, program: Program) -> dict[str, Any]:
    """Return what the ledger says about one program, in the oracle's words."""
    prefix = f"{program.seed}."
    verdict: dict[str, Any] = {"deadlocks": Counter(), "orphans": set(), "misuses": Counter()}
    for finding in agent.monitor.ledger.findings():
        members = [actor for actor in finding.actors if actor.role == "member"]
        if not members[0].name.startswith(prefix):
            continue  # of the clearing-up of an earlier one
        threads = {actor.id: int(actor.name.removeprefix(prefix)) for actor in members}
        locks = {r.id: r.created.line - 1 for r in finding.resources if r.created and r.created.file == program.file}
        if finding.kind == "misuse":
            verdict["misuses"][finding.detail, locks[finding.resources[0].id]] += finding.count
        elif finding.kind == "orphaned-lock":
            verdict["orphans"] |= {(locks[actor.waits_for], threads[actor.id]) for actor in members}
        else:
            key = frozenset(threads.values())
            proven = (finding.kind, finding.confidence) == ("deadlock", "proven")
            verdict["deadlocks"][key if proven else (finding.kind, finding.confidence, key)] += finding.count
    return verdict


def check(agent: Any, program: Program) -> Counter[str]:
    """Run one program; return what there was to be found.

    Raises:
        MismatchError: Something else was found, or something not.
    """
    run = Run(program)
    run.play()
    world = run.script.world
    expected = expected_of(world)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        agent.monitor.flush()
        agent.monitor.flush()  # what fell due during the first one
        found = found_by(agent, program)
        if found == expected or time.monotonic() > deadline or _has_more(found, expected):
            break
    if found != expected:
        raise MismatchError(f"found    {found}\nexpected {expected}")
    run.clear_up()
    agent.monitor.ledger.clear()
    tally = Counter(programs=1, steps=len(program.trace), deadlocks=len(expected["deadlocks"]))
    tally.update(orphans=len(expected["orphans"]), misuses=expected["misuses"].total())
    tally.update(unproven_rings=len(world.rings(proven=False)) - len(expected["deadlocks"]))
    tally.update(silent_programs=int(not any(expected.values())))
    return tally


def _has_more(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Return whether something was found that is not expected; waiting does not mend that."""
    return any(found[what] - expected[what] for what in expected)


def run(seeds: range) -> int:
    """Run programs in this process; see `run_batch`."""
    import concagent
    from concagent import orphans

    orphans.GRACE_NS = orphans.HAND_OVER_NS = 0  # nothing is handed over after a thread's end here
    agent = concagent.install(log=False, long_wait=0, long_hold=0, socket=False, report_signal="off", files=False)
    return run_batch(seeds, lambda seed: check(agent, make_program(seed)), show)


def show(seed: int) -> str:
    program = make_program(seed)
    return f"{source_of(program)}\ntrace {program.trace}"


if __name__ == "__main__":
    main(__file__, run, show)
