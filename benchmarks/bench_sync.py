"""What Condition, Event and Semaphore cost, by themselves and between two threads that take turns.

Stock is a private copy of ``threading`` (see ``_harness``).  The rows "method" show that the copy is as fast as the real
module: both are stock there, because nothing is installed yet.  Between threads most of the time goes to the operating
system, which wakes one and puts the other to sleep: those rows say what a program sees, the others what we cost.

    python benchmarks/bench_sync.py [--quick] [--rows TEXT] [--json PATH] [--raw PATH]
"""

from __future__ import annotations

import threading
from typing import Any

import _harness

TURNS = 100
ROUNDS = 100
PAIR_ROUNDS = 80
ALONE = {
    "Condition notify": (lambda t: {"thing": t.Condition()}, "with thing:\n    thing.notify()"),
    "Condition(Lock) notify": (lambda t: {"thing": t.Condition(t.Lock())}, "with thing:\n    thing.notify()"),
    "Condition wait(0)": (lambda t: {"thing": t.Condition(t.Lock())}, "with thing:\n    thing.wait(0)"),
    "Event set+wait+clear": (lambda t: {"thing": t.Event()}, "thing.set(); thing.wait(); thing.clear()"),
    "Semaphore with": (lambda t: {"thing": t.Semaphore(2)}, "with thing:\n    pass"),
    "Semaphore acquire+release": (lambda t: {"thing": t.Semaphore(2)}, "thing.acquire(); thing.release()"),
    "BoundedSemaphore with": (lambda t: {"thing": t.BoundedSemaphore(2)}, "with thing:\n    pass"),
}


def condition_turns(library: Any) -> Any:
    """Return a variant: two threads, one condition, a flag that says whose turn it is."""
    condition = library.Condition()
    turn = [0]

    def play(me: int) -> None:
        for _ in range(TURNS):
            with condition:
                while turn[0] != me:
                    condition.wait()
                turn[0] = 1 - me
                condition.notify()

    return between_two(play)


def event_turns(library: Any) -> Any:
    """Return a variant: two threads, each waits for its event and sets the other's."""
    events = (library.Event(), library.Event())
    events[0].set()

    def play(me: int) -> None:
        mine, other = events[me], events[1 - me]
        for _ in range(TURNS):
            mine.wait()
            mine.clear()
            other.set()

    return between_two(play)


def semaphore_turns(library: Any) -> Any:
    """Return a variant: two threads, each takes its permit and gives the other's."""
    semaphores = (library.Semaphore(1), library.Semaphore(0))

    def play(me: int) -> None:
        mine, other = semaphores[me], semaphores[1 - me]
        for _ in range(TURNS):
            mine.acquire()
            other.release()

    return between_two(play)


def between_two(play: Any) -> Any:
    """Return the variant that plays with a second thread; seconds of one turn of both."""
    from concagent import _real

    def variant() -> float:
        ready = _real.allocate_lock()
        ready.acquire()

        def second() -> None:
            ready.release()
            play(1)

        wait = _harness.in_thread(second)
        ready.acquire()
        started = _harness.clock()
        play(0)
        wait()
        return (_harness.clock() - started) / TURNS

    return variant


PAIRS = {
    "Condition ping-pong": condition_turns,
    "Event ping-pong": event_turns,
    "Semaphore ping-pong": semaphore_turns,
}


def main() -> None:
    """Measure all rows."""
    report = _harness.Report(__doc__)
    rounds, pair_rounds = report.effort.rounds(ROUNDS), report.effort.rounds(PAIR_ROUNDS)
    if report.wants("method"):
        copy = _harness.private_stdlib().threading
        for label in ("Condition(Lock) notify", "Semaphore with"):
            names, code = ALONE[label]
            variants = [_harness.statement(code, names(library)) for library in (threading, copy, threading)]
            report.add(
                _harness.compare(f"method: {label}", *variants, rounds=rounds, note="private copy to real module")
            )
    libraries = [library.threading for library in _harness.three_libraries()]
    for label, (names, code) in ALONE.items():
        if report.wants(label):
            variants = [_harness.statement(code, names(library)) for library in libraries]
            report.add(_harness.compare(label, *variants, rounds=rounds))
    for label, make in PAIRS.items():
        if report.wants(label):
            variants = [make(library) for library in libraries]
            report.add(_harness.compare(label, *variants, rounds=pair_rounds, by="median"))
    report.close()


if __name__ == "__main__":
    main()
