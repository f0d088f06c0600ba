"""Children that end with daemon threads parked in locks, with locks held, and with locks used by destructors: each ends at once.

Would catch: a queue entry on a dead stack, Python code called while the interpreter takes itself apart, a lock that outlives
its record, a thread state that is read after its end.
"""

import subprocess
import sys

from _scaffold import core

PROGRAM = """
import sys, threading, time, atexit
sys.argv[1:] = []
from _scaffold import core, heard
lock, held, inner = core.allocate_lock(), core.allocate_lock(), core.RLock()
lock.acquire()
class Last:
    def __del__(self):
        inner.acquire(timeout=0.01) and inner.release()  # whoever had it may be gone
        core.allocate_lock().acquire()
        lock.acquire(timeout=0.01)
local = threading.local()
keep = [Last()]
keep.append(keep)
def park(kind):
    local.last = Last()
    mine = core.allocate_lock(); mine.acquire()
    inner.acquire() if kind == 3 else None
    lock.acquire() if kind % 2 else lock.acquire(timeout=1e6)
def end_holding():
    local.last = Last()
    core.allocate_lock().acquire(); held.acquire(False)
for n in range(12):
    threading.Thread(target=park, args=(n % 3,), daemon=True).start()
threads = [threading.Thread(target=end_holding) for n in range(5)]
[t.start() for t in threads]; [t.join() for t in threads]
def busy():
    while True:
        with inner:
            core.allocate_lock().acquire()
threading.Thread(target=busy, daemon=True).start()
time.sleep(0.05)
mode = MODE
if mode == 0: lock.release()
if mode == 1: atexit.register(lock.release)
if mode == 2: core.stop()
if mode == 3: held.acquire(timeout=0.01); sys.exit(0)
"""

assert core
here = __file__.rpartition("/")[0] or "."
for mode in range(5):
    for _ in range(4):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.replace("MODE", str(mode))], cwd=here, timeout=60, check=False
        )
        assert done.returncode == 0, (mode, done.returncode)
print("ok")
