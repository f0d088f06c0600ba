"""20,000 short threads and 10**6 locks come and go: the tables are as before, and so is the memory within 32 MB.

Would catch: a record, wait or cell that is never forgotten; a lock that keeps more than itself.
"""

import gc
import os
import threading

from _scaffold import SIZE_COUNTS, core, watch

watch(300)


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


lock, re_entrant = core.allocate_lock(), core.RLock()


def body() -> None:
    with lock, re_entrant:
        core.allocate_lock().acquire(timeout=1)


def threads(count: int) -> None:
    for _ in range(count // 20):
        batch = [threading.Thread(target=body) for _ in range(20)]
        for thread in batch:
            thread.start()
        for thread in batch:
            thread.join()


threads(200)
gc.collect()
before = len(core.records())
blocks = resident_mb()
threads(20_000)
gc.collect()
assert len(core.records()) <= before + 2, (before, len(core.records()))
assert not SIZE_COUNTS or resident_mb() - blocks < 16, (blocks, resident_mb())

start = resident_mb()
locks = [core.allocate_lock() for _ in range(10**6)]
for one in locks:
    one.acquire()
    one.release()
full = resident_mb()
del locks, one
gc.collect()
end = resident_mb()
assert not SIZE_COUNTS or end - start < 32, (start, full, end)
print(
    f"ok; 10**6 locks: {(full - start) * 2**20 / 10**6:.0f} bytes each with their place in the list, {end - start:.1f} MB stay"
)
