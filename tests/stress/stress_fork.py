"""Forks with threads that hold, wait, wait with a time-out and wait in a handler: the child's locks work, and so do the parent's.

Would catch: waiters of the parent that swallow wake-ups in the child, a record of a thread that does not exist, a fork's child
that frees what it still reads.
"""

import os
import sys
import threading
import time
import warnings

from _scaffold import SECONDS, core, watch

if not hasattr(os, "fork"):
    sys.exit(77)
warnings.simplefilter("ignore", DeprecationWarning)
watch(SECONDS + 60)
os.register_at_fork(after_in_child=core.after_fork_in_child)
busy = [core.allocate_lock() for _ in range(3)]
mine, re_entrant = core.allocate_lock(), core.RLock()
stop = False


def hold(n: int) -> None:
    while not stop:
        with busy[n % 3]:
            busy[(n + 1) % 3].acquire(timeout=0.001) and busy[(n + 1) % 3].release()
        if mine.acquire(timeout=0.01):
            mine.release()
        re_entrant.acquire(timeout=0.01) and re_entrant.release()


def wait_for_mine() -> None:
    while not stop:
        with mine:
            pass
        time.sleep(0.001)


def in_child() -> int:
    got = []

    def use() -> None:
        with mine, re_entrant:
            got.append(1)

    assert len([r for r in core.records() if not r.ended]) == 1
    threads = [threading.Thread(target=use, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.005)
    re_entrant.release()
    mine.release()
    for thread in threads:
        thread.join(20)
    for lock in busy:
        lock.acquire(timeout=0.0001) and lock.release()
        lock._at_fork_reinit()
        with lock:
            pass
    return 0 if len(got) == 3 else 4


threads = [threading.Thread(target=hold, args=(n,)) for n in range(4)]
threads += [threading.Thread(target=wait_for_mine) for _ in range(3)]
for thread in threads:
    thread.start()
end = time.monotonic() + SECONDS
forks = 0
while time.monotonic() < end:
    with mine, re_entrant:
        time.sleep(0.002)
        child = os.fork()
        if child == 0:
            status = 5
            try:
                status = in_child()
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert status == 0, status
        forks += 1
stop = True
for thread in threads:
    thread.join(30)
    assert not thread.is_alive()
print("ok", forks, "forks")
