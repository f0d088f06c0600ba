"""How long the agent takes for a picture of 5,000 blocked threads among 100,000 locks, and what a walk costs then.

The threads form chains of ten: each holds a lock and waits for the next one's, the last waits for a lock of the main thread.
Nobody is in a ring, so the reduction has to free everybody, which is its longest way.  A thread that counts meanwhile shows
for how long the picture keeps others from running.

The walk is what a thread does before it blocks on a lock whose holder waits: it is timed from the end of a chain of ten with
few locks in existence and with 100,000 more, in turn.

    python benchmarks/bench_scale.py [--quick] [--rows TEXT] [--json PATH] [--raw PATH]
"""

from __future__ import annotations

import statistics
import threading
import time
from typing import Any

import _harness

CHAIN = 10
LOCKS = 100_000
WALKS = 200


def block_threads(count: int, top: Any) -> list[threading.Thread]:
    """Return ``count`` threads that are blocked in chains of `CHAIN`, whose last ones wait for ``top``."""
    from concagent import _real

    ready = _real.allocate_lock()
    threads = []
    own = top

    def run(mine: Any, wanted: Any) -> None:
        with mine:
            ready.release()
            with wanted:
                pass

    ready.acquire()
    for number in range(count):
        wanted = top if number % CHAIN == 0 else own
        own = threading.Lock()
        thread = threading.Thread(target=run, args=(own, wanted), daemon=True)
        thread.start()
        ready.acquire()
        threads.append(thread)
    return threads


def wait_until_blocked(count: int) -> None:
    """Return once ``count`` threads wait; threads of ours do not count."""
    from concagent import core

    until = time.monotonic() + 60
    while sum(record.waiting() is not None for record in core.records() if not record.agent) < count:
        if time.monotonic() > until:
            raise SystemExit("not all threads are blocked")
        time.sleep(0.01)


def longest_gap(busy: Any) -> tuple[float, float]:
    """Return (seconds that ``busy()`` took, longest time in it in which another thread could not run)."""
    stop: list[bool] = []
    gaps: list[float] = []

    def count() -> None:
        last, longest = time.perf_counter(), 0.0
        while not stop:
            now = time.perf_counter()
            longest = max(longest, now - last)
            last = now
        gaps.append(longest)

    wait = _harness.in_thread(count)
    time.sleep(0.02)
    started = time.perf_counter()
    busy()
    took = time.perf_counter() - started
    stop.append(True)
    wait()
    return took, gaps[0]


def measure_picture(report: _harness.Report, threads: int, rounds: int) -> None:
    """Measure snapshot and reduction, and the pause that they make."""
    from concagent import graph, snapshots

    times: list[tuple[float, float]] = []

    def picture() -> None:
        started = time.perf_counter()
        snapshot = snapshots.take()
        between = time.perf_counter()
        left = graph.reduce(snapshot)
        ended = time.perf_counter()
        if left or len(snapshot.requests) < threads:
            raise SystemExit(f"a picture of {len(snapshot.requests)} waits, of which {len(left)} are left")
        times.append((between - started, ended - between))

    for _ in range(rounds):
        picture()
    both = [a + b for a, b in times]
    first, second = min(a for a, _ in times), min(b for _, b in times)
    row = _harness.Row(f"snapshot+reduction, {threads:,} threads", min(both) * 1e3, "ms")
    row.note = (
        f"snapshot {first * 1e3:.0f}, reduction {second * 1e3:.0f}; median of both {statistics.median(both) * 1e3:.0f}"
    )
    report.add(row)
    gaps = [longest_gap(picture)[1] for _ in range(max(3, rounds // 2))]
    row = _harness.Row(f"pause by a snapshot, {threads:,} threads", statistics.median(gaps) * 1e3, "ms")
    row.note = f"min {min(gaps) * 1e3:.1f}; a running thread gives the GIL up every 5 ms by itself"
    report.add(row)


def measure_walk(report: _harness.Report, end: threading.Thread, rounds: int) -> None:
    """Measure the walk from the end of a chain, with few locks and with many."""
    from concagent import core, rings

    record = core.record_of_ident(end.ident)
    kept: list[Any] = []

    def walks() -> float:
        started = _harness.clock()
        for _ in range(WALKS):
            rings.walk(record)
        return (_harness.clock() - started) / WALKS

    def few() -> float:
        kept.clear()
        return min(walks() for _ in range(3))

    def many() -> float:
        kept.extend(threading.Lock() for _ in range(LOCKS))
        return min(walks() for _ in range(3))

    name = f"walk of {CHAIN} hops, 10^5 locks to none"
    row = _harness.compare(name, few, many, few, rounds=rounds, scale=1e6, absolute_unit="us")
    report.add(row)


def main() -> None:
    """Measure all rows."""
    report = _harness.Report(__doc__)
    _harness.install()
    threads = 5_000
    threading.stack_size(128 * 1024)
    top = threading.Lock()
    top.acquire()
    chain = block_threads(CHAIN, top)
    wait_until_blocked(CHAIN)
    measure_walk(report, chain[-1], report.effort.rounds(16))
    kept = [threading.Lock() for _ in range(LOCKS)]
    try:
        blocked = block_threads(threads - CHAIN, top)
    except RuntimeError as error:
        report.skip(f"this system does not allow {threads:,} threads: {error}")
    else:
        wait_until_blocked(threads)
        measure_picture(report, threads, report.effort.rounds(16))
        chain += blocked
    top.release()
    for thread in chain:
        thread.join()
    report.close()
    del kept


if __name__ == "__main__":
    main()
