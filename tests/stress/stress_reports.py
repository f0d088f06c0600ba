"""The whole agent: report signals, forks, code that keeps the GIL, install and uninstall, all at random.

Would catch: a last resort that hangs a fork, an uninstall or the end, that crashes, leaves zombies, threads, descriptors or
memory, or that is not there any more after any of it.
"""

import ctypes
import os
import random
import signal
import sys
import tempfile
import threading
import time
import warnings

from _scaffold import SECONDS, SIZE_COUNTS, core, watch

SEED = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6)
if core.last_resort() is None or sys.platform != "linux":
    sys.exit(77)

import concagent  # noqa: E402
from concagent import lastresort  # noqa: E402

core.stop()
warnings.simplefilter("ignore")
watch(SECONDS + 120)
# What is written goes into a file that nobody needs: standard error of this process only.
kept = os.dup(2)
sink = tempfile.TemporaryFile()  # noqa: SIM115 - for as long as the process lives
os.dup2(sink.fileno(), 2)
C = ctypes.PyDLL(None)


def keep_the_gil(seconds: float) -> None:
    mutex, until = ctypes.create_string_buffer(64), time.time() + seconds
    C.pthread_mutex_lock(mutex)
    C.pthread_mutex_timedlock(mutex, (ctypes.c_long * 2)(int(until), int(until % 1 * 1e9)))


def install() -> None:
    concagent.install(log=False, socket=False, last_resort_after=chance.choice((0.001, 0.02, 5)))


def busy() -> None:
    while not stop:
        with lock:
            time.sleep(0.0005)


def fork_one() -> None:
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGUSR1)
        keep_the_gil(chance.choice((0, 0.003)))
        os._exit(0 if lastresort.native_threads() == 1 else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0, status


def state() -> tuple[int, int, int]:
    with open("/proc/self/statm") as file:
        rss = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), rss


chance = random.Random(SEED)
end = time.monotonic() + SECONDS
first = None
asked = forks = rounds = 0
while time.monotonic() < end:
    install()
    lock = threading.Lock()
    stop = False
    threads = [threading.Thread(target=busy) for _ in range(chance.randrange(3))]
    for thread in threads:
        thread.start()
    for _ in range(10):
        for _ in range(chance.randrange(3)):
            os.kill(os.getpid(), signal.SIGUSR1)
            asked += 1
        keep_the_gil(chance.choice((0, 0, 0.002, 0.03)))
        if chance.random() < 0.4:
            fork_one()
            forks += 1
    stop = True
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    concagent.uninstall()
    limit = time.monotonic() + 30
    while state()[1] > 2 and time.monotonic() < limit:  # a report may still be written; the other is faulthandler's
        time.sleep(0.01)
    rounds += 1
    sink.truncate(0)
    if rounds == 3:
        first = state()
last = state()
try:
    os.waitpid(-1, os.WNOHANG)
    raise AssertionError("a child is left")
except ChildProcessError:
    pass
os.dup2(kept, 2)
assert last[1] <= 2, last
if first is not None:
    assert last[0] <= first[0] + 1, (first, last)
    assert not SIZE_COUNTS or last[2] - first[2] < 24 * 1024, (first, last)
print(f"ok, seed {SEED}: {rounds} rounds, {asked} signals, {forks} forks; descriptors, threads, kB {first} -> {last}")
