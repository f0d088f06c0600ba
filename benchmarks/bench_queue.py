"""What ``queue.Queue`` costs: put+get in one thread, and items handed from one thread to another.

Stock is a private copy of ``queue`` and ``threading`` (see ``_harness``).

    python benchmarks/bench_queue.py [--quick] [--rows TEXT] [--json PATH] [--raw PATH]
"""

from __future__ import annotations

from typing import Any

import _harness

ITEMS = 300
ROUNDS = 120
PAIR_ROUNDS = 60
ALONE = {
    "Queue put+get": "q.put(1); q.get()",
    "Queue put+get+task_done": "q.put(1); q.get(); q.task_done()",
    "Queue put_nowait+get_nowait": "q.put_nowait(1); q.get_nowait()",
}
PAIRS = {"Queue(0) producer to consumer": 0, "Queue(1) producer to consumer": 1}


def hand_over(library: Any, size: int) -> Any:
    """Return a variant: this thread puts, another one gets; seconds per item."""

    def variant() -> float:
        queue = library.Queue(size)

        def consume() -> None:
            for _ in range(ITEMS):
                queue.get()

        wait = _harness.in_thread(consume)
        started = _harness.clock()
        for item in range(ITEMS):
            queue.put(item)
        wait()
        return (_harness.clock() - started) / ITEMS

    return variant


def main() -> None:
    """Measure all rows."""
    report = _harness.Report(__doc__)
    libraries = [library.queue for library in _harness.three_libraries()]
    for label, code in ALONE.items():
        if report.wants(label):
            variants = [_harness.statement(code, {"q": library.Queue()}) for library in libraries]
            report.add(_harness.compare(label, *variants, rounds=report.effort.rounds(ROUNDS)))
    for label, size in PAIRS.items():
        if report.wants(label):
            variants = [hand_over(library, size) for library in libraries]
            report.add(_harness.compare(label, *variants, rounds=report.effort.rounds(PAIR_ROUNDS), by="median"))
    report.close()


if __name__ == "__main__":
    main()
