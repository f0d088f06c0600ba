"""What starting and joining a thread costs under the agent.

Stock is a private copy of ``threading`` (see ``_harness``).  A thread that takes a lock of ours gets a record, which is made
at its first lock and given back at its end; the last rows show that.

    python benchmarks/bench_threads.py [--quick] [--rows TEXT] [--json PATH] [--raw PATH]
"""

from __future__ import annotations

from typing import Any

import _harness

THREADS = 40
ROUNDS = 100


def start_and_join(library: Any, target: Any) -> Any:
    """Return a variant: threads one after the other; seconds per thread."""
    thread_type = library.Thread

    def variant() -> float:
        started = _harness.clock()
        for _ in range(THREADS):
            thread = thread_type(target=target)
            thread.start()
            thread.join()
        return (_harness.clock() - started) / THREADS

    return variant


def start_many(library: Any, target: Any) -> Any:
    """Return a variant: all started, then all joined; seconds per thread."""
    thread_type = library.Thread

    def variant() -> float:
        started = _harness.clock()
        threads = [thread_type(target=target) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return (_harness.clock() - started) / THREADS

    return variant


def taker(lock: Any) -> Any:
    """Return a thread's function that takes a lock once."""

    def take() -> None:
        with lock:
            pass

    return take


def main() -> None:
    """Measure all rows."""
    report = _harness.Report(__doc__)
    libraries = [library.threading for library in _harness.three_libraries()]
    rounds = report.effort.rounds(ROUNDS)
    for label, make in (("start+join", start_and_join), ("start many, join many", start_many)):
        for kind in ("empty", "takes a lock"):
            name = f"{label}, {kind}"
            if report.wants(name):
                targets = [taker(library.Lock()) if kind == "takes a lock" else (lambda: None) for library in libraries]
                variants = [make(library, target) for library, target in zip(libraries, targets, strict=True)]
                row = _harness.compare(name, *variants, rounds=rounds, by="median", scale=1e6, absolute_unit="us")
                report.add(row)
    report.close()


if __name__ == "__main__":
    main()
