"""What the locks of ``multiprocessing`` cost: taken and given back in one process, and handed from one process to another.

Stock is a lock of the original type, made beside ours in the same process (see ``_harness``).

    python benchmarks/bench_processes.py [--quick] [--rows TEXT] [--json PATH] [--raw PATH]
"""

from __future__ import annotations

from typing import Any

import _harness

ROUNDS = 200
PAIR_ROUNDS = 60
ITEMS = 300
ALONE = {
    "multiprocessing.Lock with": ("Lock", "with lock: pass"),
    "multiprocessing.Lock acquire+release": ("Lock", "lock.acquire(); lock.release()"),
    "multiprocessing.RLock with": ("RLock", "with lock: pass"),
    "multiprocessing.BoundedSemaphore with": ("BoundedSemaphore", "with lock: pass"),
    "multiprocessing.SimpleQueue put+get": ("SimpleQueue", "lock.put(1); lock.get()"),
    "multiprocessing.Queue put+get": ("Queue", "lock.put(1); lock.get()"),
    "multiprocessing.JoinableQueue put+get+task_done": ("JoinableQueue", "lock.put(1); lock.get(); lock.task_done()"),
    "multiprocessing.Event set+wait+clear": ("Event", "lock.set(); lock.wait(); lock.clear()"),
}
PAIR = "multiprocessing.Lock, 2 processes"


def three_makers() -> list[Any]:
    """Install the agent; return functions that make what a context makes: of the original type, of ours, of the original."""
    import _multiprocessing
    import multiprocessing

    original = _multiprocessing.SemLock
    _harness.install()
    ours = _multiprocessing.SemLock
    context = multiprocessing.get_context("fork")

    def maker(kind: Any) -> Any:
        def make(name: str) -> Any:
            _multiprocessing.SemLock = kind  # type: ignore[misc]
            try:
                return getattr(context, name)()
            finally:
                _multiprocessing.SemLock = ours  # type: ignore[misc]

        return make

    return [maker(original), maker(ours), maker(original)]


def contend(make: Any) -> Any:
    """Return a variant: two processes take one lock in turn; seconds per pair of theirs."""
    import multiprocessing

    context = multiprocessing.get_context("fork")
    lock, gate = make("Lock"), make("Lock")

    def work() -> None:
        with gate:
            pass
        for _ in range(ITEMS):
            with lock:
                pass

    def variant() -> float:
        gate.acquire()
        other = context.Process(target=work)
        other.start()
        gate.release()
        started = _harness.clock()
        for _ in range(ITEMS):
            with lock:
                pass
        spent = _harness.clock() - started
        other.join()
        return spent / ITEMS

    return variant


def main() -> None:
    """Measure all rows."""
    report = _harness.Report(__doc__)
    makers = three_makers()
    for label, (name, code) in ALONE.items():
        if report.wants(label):
            variants = [_harness.statement(code, {"lock": make(name)}) for make in makers]
            report.add(_harness.compare(label, *variants, rounds=report.effort.rounds(ROUNDS)))
    if report.wants(PAIR):
        variants = [contend(make) for make in makers]
        report.add(_harness.compare(PAIR, *variants, rounds=report.effort.rounds(PAIR_ROUNDS), by="median"))
    report.close()


if __name__ == "__main__":
    main()
