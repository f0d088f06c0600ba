"""How long from the last block until the finding is made, where no walk along holders can decide.

Each shape is a program of its own that hangs for good; it runs in fresh processes, under ``install()`` with the defaults, and
ends itself when the finding is there.  The last block is the latest ``waiting_since`` of the finding's actors, the end is the
finding's own time.  The monitor looks once a second and once more 50 ms later, so the worst is a little more than a second.

    python benchmarks/bench_stalls.py [repeats]
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys

HEAD = """
import json, os, queue, random, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
import concagent
from concagent import _real
def tell(finding):
    last = max(actor.waiting_since for actor in finding.actors if actor.waiting_since)
    os.write(1, json.dumps([finding.kind, finding.time - last]).encode())
    os._exit(0)
concagent.install(stderr=False, report_signal="off", socket=False)
concagent.on_finding(tell)
_real.sleep(random.random())  # at any moment of the monitor's second
def run(*targets):
    threads = [threading.Thread(target=target) for target in targets]
    for thread in threads:
        thread.start()
    return threads
"""
SHAPES = {
    "two semaphores crosswise": """
one, two, met = threading.Semaphore(), threading.Semaphore(), threading.Barrier(2)
def take(first, second):
    with first:
        met.wait()
        with second:
            pass
for thread in run(lambda: take(one, two), lambda: take(two, one)):
    thread.join()
""",
    "a condition nobody notifies": """
lost = threading.Condition()
def wait():
    with lost:
        lost.wait()
for thread in run(wait):
    thread.join()
""",
    "a full queue and a lock": """
jobs, lock = queue.Queue(1), threading.Lock()
def produce():
    with lock:
        jobs.put(1)
        jobs.put(2)
def consume():
    time.sleep(0.05)
    with lock:
        jobs.get()
for thread in run(produce, consume):
    thread.join()
""",
    "a task that waits for a task of its full pool": """
pool = ThreadPoolExecutor(1)
pool.submit(lambda: pool.submit(int).result()).result()
""",
    "a barrier short of one party": """
barrier = threading.Barrier(3)
for thread in run(barrier.wait, barrier.wait):
    thread.join()
""",
    "a result whose thread has failed": """
results = queue.Queue()
run(lambda: None)
results.get()
""",
}


def one(shape: str) -> float:
    """Return the milliseconds of one process."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + SHAPES[shape]], capture_output=True, text=True, timeout=60, check=True
    )
    return float(json.loads(done.stdout)[1]) * 1e3


def main() -> None:
    """Print the table."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    times: dict[str, list[float]] = {shape: [] for shape in SHAPES}
    for _ in range(repeats):
        for shape, found in times.items():
            found.append(one(shape))
    print(f"{platform.python_implementation()} {platform.python_version()}, {repeats} fresh processes each, ms")
    print(f"{'':48} {'min':>8} {'median':>8} {'max':>8}")
    for shape, found in times.items():
        print(f"{shape:<48} {min(found):8.0f} {statistics.median(found):8.0f} {max(found):8.0f}")


if __name__ == "__main__":
    main()
