"""What it costs that processes see each other: 100 processes that wait for one lock of ``multiprocessing``.

All of them are children of this process and wait for a lock that it holds; each has written that on the board.  Measured
here, while they sleep: to write what this process has to say, to read what all have said, and one whole look (the picture
of this process, writing, reading, joining, searching rings and orphans), as the monitor takes it once a second, later every
five, in a process that waits for something shared, and never in others.

    python benchmarks/bench_board.py [--quick] [--rows TEXT] [--json PATH] [--raw PATH]
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import threading
from typing import Any

import _harness

PROCESSES = 100
ROUNDS = 100
PATIENCE_SECONDS = 60.0


def milliseconds(function: Any, rounds: int) -> list[float]:
    """Return how long each call took."""
    spent = []
    for _ in range(rounds):
        started = _harness.clock()
        function()
        spent.append((_harness.clock() - started) * 1e3)
    return spent


def wait_for(lock: Any) -> None:
    """What the children do."""
    with lock:
        pass


def until(condition: Any) -> None:
    """Poll.

    Raises:
        SystemExit: It did not come true.
    """
    end = _harness.clock() + PATIENCE_SECONDS
    pause = threading.Event()
    while not condition():
        if _harness.clock() > end:
            raise SystemExit("the processes did not come to wait")
        pause.wait(0.05)


def main() -> None:
    """Measure the rows."""
    report = _harness.Report(__doc__)
    if not sys.platform.startswith("linux"):
        report.skip("there is a board on Linux only")
        report.close()
        return
    _harness.install()
    import multiprocessing

    from concagent import shared, union
    from concagent.config import Config

    context = multiprocessing.get_context("fork")
    lock, other = context.Lock(), context.Lock()
    children = [context.Process(target=wait_for, args=(lock,)) for _ in range(PROCESSES)]
    with contextlib.ExitStack() as ends:
        other.acquire()
        waiter = threading.Thread(target=wait_for, args=(other,))  # so that this process has something to say, too
        waiter.start()
        ends.callback(waiter.join)
        ends.callback(other.release)
        lock.acquire()
        for child in children:
            child.start()
            ends.callback(child.join)
        board: Any = shared.board()
        until(lambda: sum(len(slot.payload) > 100 for slot in board.slots()) >= PROCESSES)
        rounds = report.effort.rounds(ROUNDS)
        looker = union.Union(Config(), lambda _finding: None, lambda _when, _event: None, lambda _actor, _epoch: False)
        looker.begin()
        said = next(slot.payload for slot in board.slots() if (slot.pid, slot.start) == shared.me())
        rows = {
            "board: write": lambda: board.publish(*shared.me(), said),
            f"board: read, {PROCESSES} processes": board.slots,
            f"board: a whole look, {PROCESSES} processes": looker.begin,
        }
        for name, function in rows.items():
            if report.wants(name):
                spent = milliseconds(function, rounds)
                note = f"longest {max(spent):.2f} ms"
                report.add(_harness.Row(name, statistics.median(spent), "ms", note=note, raw={"ours": spent}))
        lock.release()
    report.close()


if __name__ == "__main__":
    main()
