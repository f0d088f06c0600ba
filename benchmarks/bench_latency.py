"""How long from the last block of a ring until the finding is on disk, and until a callback has it.

Each round is a ring of two fresh threads and two fresh locks in this process.  The rings are broken by waking one
member with an exception, as a recovery policy does.  A finding is told once per place; so each round takes its locks in a
module of its own, a small file that was never read before, and pays what the first finding of a place pays: source lines
are read from the file.  (Nine files of rich and the standard library, 6,400 lines, as in `make demo`: 0.4 ms.)

    last block   the wait of whoever closed the ring, as the finding says it (``waiting_since``)
    picture      the time of the finding: its evidence was read
    on disk      the file's sink has returned: the line is with the kernel
    callback     the first line of a function given to ``on_finding``

    python benchmarks/bench_latency.py [rounds] [bystanders] [--busy]

Bystanders are threads that sleep in an Event; ``--busy`` adds one that computes without pause, and so keeps the GIL for a
switch interval (5 ms) whenever it has it.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
import threading
from typing import Any

import concagent
from concagent import _real, bootstrap, core
from concagent.exporters.findings_file import FindingsFile

SOURCE = """
def first(a, b, mine, other):
    with a:
        mine.release()
        other.acquire()
        with b:
            pass

def second(a, b, mine, other):
    with b:
        mine.release()
        other.acquire()
        with a:
            pass
"""


class Broken(Exception):  # noqa: N818 - not an error: it ends a round
    """Ends a wait of a ring that has been measured."""


def pair(number: int, folder: str) -> tuple[Any, Any]:
    """Return the two functions of a round, of a module that did not exist before."""
    path = os.path.join(folder, f"round_{number}.py")
    with _real.open_file(path, "w", encoding="utf-8") as file:
        file.write(SOURCE)
    space: dict[str, Any] = {"__name__": f"round_{number}", "__file__": path}
    exec(compile(SOURCE, path, "exec"), space)
    return space["first"], space["second"]


def quiet(function: Any, *arguments: Any) -> None:
    """Run a member of the ring; the victim's error ends it."""
    try:
        function(*arguments)
    except Broken:
        pass


class Watch:
    """Notes when a finding was on disk and when a callback had it."""

    def __init__(self) -> None:
        self.written: dict[str, float] = {}
        self.called: dict[str, float] = {}
        self.seen: dict[str, Any] = {}
        self.done = _real.allocate_lock()
        self.done.acquire()

    def callback(self, finding: Any) -> None:
        """Take the time; the round goes on."""
        self.called[finding.fingerprint] = _real.wall_seconds()
        self.seen[finding.fingerprint] = finding
        self.done.release()


def break_ring(threads: list[threading.Thread]) -> None:
    """Wake one member with an exception; the other then gets its lock."""
    record = core.record_of_ident(threads[0].ident)
    wait = record.waiting()
    if wait is None or not core.wake_victim(wait, Broken()):
        raise SystemExit("a ring could not be broken")
    for thread in threads:
        thread.join()


def one_round(number: int, watch: Watch, folder: str) -> None:
    """Make a ring, wait until it was told, break it."""
    first, second = pair(number, folder)
    a, b = threading.Lock(), threading.Lock()
    gates = [_real.allocate_lock() for _ in range(2)]
    for gate in gates:
        gate.acquire()
    threads = [
        threading.Thread(target=quiet, args=(first, a, b, gates[0], gates[1])),
        threading.Thread(target=quiet, args=(second, a, b, gates[1], gates[0])),
    ]
    for thread in threads:
        thread.start()
    if not watch.done.acquire(True, 20):
        raise SystemExit("a ring was not found")
    break_ring(threads)


def row(label: str, values: list[float]) -> str:
    """Return one line of the table, in milliseconds."""
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return (
        f"{label:<10} {ordered[0] * 1e3:8.2f} {statistics.median(ordered) * 1e3:8.2f} "
        f"{p99 * 1e3:8.2f} {ordered[-1] * 1e3:8.2f}"
    )


def main() -> None:
    """Print the table."""
    words = [word for word in sys.argv[1:] if word != "--busy"]
    rounds = int(words[0]) if words else 200
    bystanders = int(words[1]) if len(words) > 1 else 0
    watch = Watch()
    write = FindingsFile.write

    def timed_write(self: FindingsFile, finding: Any) -> None:
        write(self, finding)
        watch.written[finding.fingerprint] = _real.wall_seconds()

    FindingsFile.write = timed_write  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        concagent.install(
            findings=os.path.join(folder, "findings.jsonl"), log=False, socket=False, report_signal="off", files=False
        )
        concagent.on_finding(watch.callback)
        ended = threading.Event()
        crowd = [threading.Thread(target=ended.wait, daemon=True) for _ in range(bystanders)]
        if "--busy" in sys.argv:
            crowd.append(threading.Thread(target=lambda: all(not ended.is_set() for _ in iter(int, 1)), daemon=True))
        for thread in crowd:
            thread.start()
        for number in range(rounds):
            one_round(number, watch, folder)
        ended.set()
        for thread in crowd:
            thread.join()
        errors = bootstrap.running().statistics().agent_errors
        concagent.uninstall()
    last = {
        mark: max(actor.waiting_since for actor in finding.actors if actor.role == "member")
        for mark, finding in watch.seen.items()
    }
    if len(last) != rounds or errors:
        raise SystemExit(f"{len(last)} findings of {rounds} rings; errors: {errors}")
    print(
        f"{platform.python_implementation()} {platform.python_version()}, core {core.NAME}, {rounds} rings of two locks,"
    )
    print(f"{bystanders} bystanders{', one busy thread' if '--busy' in sys.argv else ''}; ms after the last block\n")
    print(f"{'until':<10} {'min':>8} {'median':>8} {'p99':>8} {'max':>8}")
    print(row("picture", [watch.seen[mark].time - at for mark, at in last.items()]))
    print(row("on disk", [watch.written[mark] - at for mark, at in last.items()]))
    print(row("callback", [watch.called[mark] - at for mark, at in last.items()]))
    print(
        f"\nthe first ring: on disk after {(watch.written[next(iter(last))] - next(iter(last.values()))) * 1e3:.2f} ms"
    )


if __name__ == "__main__":
    main()
