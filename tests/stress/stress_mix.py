"""16 threads, timed, untimed, tried and interrupted acquisitions of a few locks: nobody waits for ever, nothing is held twice.

Would catch: a wake-up lost when a waiter times out, is interrupted or is made a victim at the moment it is woken; two
holders at a time; a record that keeps what was released.
"""

import random
import signal
import threading
import time

from _scaffold import SECONDS, VictimError, core, heard, watch

watch(SECONDS + 60)
heard.victims = True
locks = [core.allocate_lock() for _ in range(3)] + [core.RLock() for _ in range(2)]
inside = [0] * len(locks)
stop = time.monotonic() + SECONDS
counts = [0] * 16


def body(seed: int) -> None:
    chance = random.Random(seed)
    while time.monotonic() < stop:
        i = chance.randrange(len(locks))
        lock, kind = locks[i], chance.randrange(5)
        try:
            if kind == 0:
                got = lock.acquire(False)
            elif kind == 1:
                got = lock.acquire(timeout=chance.choice((1e-9, 1e-5, 1e-3)))
            elif kind == 2:
                got = lock.acquire(True, chance.random() * 0.01)
            else:
                got = lock.acquire()
        except VictimError:
            continue
        if got:
            inside[i] += 1
            assert inside[i] == 1, "two holders"
            if chance.random() < 0.02:
                time.sleep(0.0002)
            if chance.random() < 0.2:
                j = chance.randrange(len(locks))
                if j != i:
                    try:
                        if locks[j].acquire(timeout=0.001):
                            locks[j].release()
                    except VictimError:
                        pass
            inside[i] -= 1
            lock.release()
            counts[seed] += 1


def make_victims() -> None:
    core.mark_agent_thread()
    while time.monotonic() < stop:
        for record in core.records():
            wait = record.waiting()
            if wait is not None and random.random() < 0.1:
                core.wake_victim(wait, VictimError())
        time.sleep(0.001)


class InHandlerError(Exception):
    pass


def handle(*_: object) -> None:
    global armed
    try:
        if locks[0].acquire(timeout=0.0005):  # a wait inside of the wait
            locks[0].release()
    except VictimError:
        pass
    if armed and random.random() < 0.5:
        armed = False  # once: the one who catches cannot be interrupted again before he says so
        raise InHandlerError


armed = False
signal.signal(signal.SIGALRM, handle)
threads = [threading.Thread(target=body, args=(seed,)) for seed in range(16)]
threads.append(threading.Thread(target=make_victims))
for thread in threads:
    thread.start()
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
interrupted = 0
armed = False  # a handler raises only where somebody catches
while time.monotonic() < stop:
    try:
        try:
            armed = True
            with locks[1]:
                pass
            locks[2].acquire()
            locks[2].release()
        finally:
            armed = False
    except (InHandlerError, VictimError):  # a handler may have raised between acquire and release
        interrupted += 1
        armed = False
        for lock in locks:
            if core.cell_of(lock) in core.current_record().held:
                lock.release()
signal.setitimer(signal.ITIMER_REAL, 0)
for lock in locks:
    if core.cell_of(lock) in core.current_record().held:
        lock.release()
for thread in threads:
    thread.join(30)
    assert not thread.is_alive(), "a wake-up was lost"
for lock in locks:
    assert lock.acquire(False), lock
    lock.release()
assert core.current_record().held == []
assert core.current_record().waits == []
print("ok", sum(counts), "acquisitions,", interrupted, "interrupted")
