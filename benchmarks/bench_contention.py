"""Throughput and fairness of one lock that 2, 8 or 32 threads want.

Two critical sections.  "short" does next to nothing: threads meet only where the interpreter takes the lock's holder off
the processor, as in most programs.  "yielding" gives the GIL up inside (``sleep(0)``), so nearly every acquisition
finds the lock taken and has to wait: what it costs to park and to wake.

A variant runs all its threads for a fixed time and returns operations per second.  Fairness is the longest time that any
thread waited for its turn in that window, with the yielding section; beside it stands the share of the thread that got
least.  These rows depend on the scheduler of the operating system more than on us; the median of the ratios of neighbours
counts.

    python benchmarks/bench_contention.py [--quick] [--rows TEXT] [--json PATH] [--raw PATH]
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import _harness

WINDOW_SECONDS = 0.06
FAIRNESS_SECONDS = 0.1
THREADS = (2, 8, 32)
ROUNDS = 20
LONGEST_WAIT_ROUNDS = 16


def run_threads(work: Any, count: int, window: float) -> list[Any]:
    """Return what ``work(stop)`` returned in each of ``count`` threads; ``stop`` fills after ``window`` seconds."""
    from concagent import _real

    gate, stop, results = _real.allocate_lock(), [], []
    gate.acquire()

    def run() -> None:
        gate.acquire()
        gate.release()
        results.append(work(stop))

    waits = [_harness.in_thread(run) for _ in range(count)]
    gate.release()
    time.sleep(window)
    stop.append(True)
    for wait in waits:
        wait()
    return results


def throughput(make: Any, count: int, *, yielding: bool) -> Any:
    """Return a variant: operations per second of all threads."""

    def variant() -> float:
        lock, sleep = make(), time.sleep

        def short(stop: list[bool]) -> int:
            done = 0
            while not stop:
                with lock:
                    done += 1
            return done

        def yields(stop: list[bool]) -> int:
            done = 0
            while not stop:
                with lock:
                    sleep(0)
                    done += 1
            return done

        started = _harness.clock()
        total = sum(run_threads(yields if yielding else short, count, WINDOW_SECONDS))
        return total / (_harness.clock() - started)

    return variant


def longest_wait(make: Any, count: int, shares: list[float]) -> Any:
    """Return a variant: seconds that the unluckiest acquisition took; the share of the unluckiest thread goes to ``shares``."""

    def variant() -> float:
        lock, sleep, clock = make(), time.sleep, time.perf_counter

        def work(stop: list[bool]) -> tuple[float, int]:
            longest, done = 0.0, 0
            while not stop:
                before = clock()
                with lock:
                    longest = max(longest, clock() - before)
                    sleep(0)
                done += 1
            return longest, done

        results = run_threads(work, count, FAIRNESS_SECONDS)
        total = sum(done for _, done in results)
        shares.append(min(done for _, done in results) * count / max(1, total))
        return max(longest for longest, _ in results)

    return variant


def main() -> None:
    """Measure all rows."""
    report = _harness.Report(__doc__)
    from concagent import _real, core

    _harness.install()
    makes = (_real.allocate_lock, core.Lock if core.INSTANTIABLE else core.allocate_lock, _real.allocate_lock)
    rounds = report.effort.rounds(ROUNDS)
    for section in ("short", "yielding"):
        for count in THREADS:
            name = f"{section} section, {count} threads"
            if report.wants(name):
                variants = [throughput(make, count, yielding=section == "yielding") for make in makes]
                report.add(
                    _harness.compare(
                        name, *variants, rounds=rounds, by="median", better="more", scale=1.0, absolute_unit="op/s"
                    )
                )
    for count in THREADS:
        name = f"longest wait, {count} threads"
        if report.wants(name):
            shares: list[list[float]] = [[], [], []]
            variants = [longest_wait(make, count, kept) for make, kept in zip(makes, shares, strict=True)]
            row = _harness.compare(
                name,
                *variants,
                rounds=report.effort.rounds(LONGEST_WAIT_ROUNDS),
                by="median",
                scale=1e6,
                absolute_unit="us",
            )
            least = [statistics.median(kept) for kept in shares]
            row.note = f"least share of a thread: stock {least[0]:.2f}, ours {least[1]:.2f} of a fair one"
            report.add(row)
    report.close()


if __name__ == "__main__":
    main()
