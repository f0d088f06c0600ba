"""Threads that come and go, forks, signals, garbage collections, finalizers that take locks, and time-outs, all at random.

Would catch: a wake-up lost in any of their combinations (a thread that makes no step for long), two holders, a lock or a
record that is left behind when its thread, its process or its lock ends, and whatever grows.

    python tests/stress/stress_storm.py [seconds] [seed]
"""

import faulthandler
import gc
import os
import random
import signal
import sys
import threading
import time
import warnings

from _scaffold import SECONDS, SIZE_COUNTS, VictimError, core, heard, watch

SEED = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6)
STUCK_SECONDS = 60  # no thread waits for long here, but the machine may be busy
ROUND_SECONDS = 1.0
WARM_ROUNDS = 5
GROWTH_BLOCKS = 3000  # of some hundred thousand that come and go in a round
GROWTH_KB = 24 * 1024

warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads
watch(SECONDS + 180)
heard.victims = True
if hasattr(os, "fork"):
    os.register_at_fork(after_in_child=core.after_fork_in_child)

ordered = [core.allocate_lock() for _ in range(3)] + [core.RLock() for _ in range(2)]
inside = [0] * len(ordered)
handed = [core.allocate_lock() for _ in range(2)]  # taken here, released there
condition = threading.Condition(core.RLock())
tickets = 0
steps: dict[int, int] = {}


class InHandlerError(Exception):
    """Raised out of whatever the main thread does."""


class Litter:
    """In a cycle, so that the collector finds it in whoever allocates next, and takes locks when it dies."""

    def __init__(self) -> None:
        self.me = self
        self.lock = core.allocate_lock()
        self.other = core.RLock()
        self.lock.acquire()

    def __del__(self) -> None:
        try:
            with self.other:
                self.lock.release()
            for lock in (ordered[0], ordered[-1], self.lock):
                if lock.acquire(timeout=0.0002):
                    lock.release()
        except VictimError:
            pass


def take_some(chance: random.Random) -> None:
    """Take locks in their order, blocking, and let them go in any."""
    taken = []
    try:
        for i in sorted(chance.sample(range(len(ordered)), chance.randrange(1, 4))):
            kind = chance.randrange(4)
            if kind == 0:
                got = ordered[i].acquire(False)
            elif kind == 1:
                got = ordered[i].acquire(timeout=chance.choice((1e-9, 1e-5, 1e-3, 0.01)))
            else:
                got = ordered[i].acquire()
            if got:
                inside[i] += 1
                assert inside[i] == 1, "two holders"
                taken.append(i)
        if chance.random() < 0.05:
            time.sleep(chance.random() * 0.002)
    finally:
        chance.shuffle(taken)
        for i in taken:
            inside[i] -= 1
            ordered[i].release()


def hand_over(chance: random.Random) -> None:
    """Use a lock as an event."""
    lock = chance.choice(handed)
    if chance.random() < 0.5:
        lock.acquire(timeout=0.002)
    else:
        try:
            lock.release()
        except RuntimeError:
            pass  # nobody had it


def use_condition(chance: random.Random) -> None:
    global tickets
    with condition:
        if chance.random() < 0.5:
            tickets += 1
            condition.notify(chance.randrange(1, 3))
        elif condition.wait_for(lambda: tickets > 0, timeout=0.005):
            tickets -= 1


def litter(chance: random.Random) -> None:
    for _ in range(chance.randrange(5)):
        Litter()
    if chance.random() < 0.05:
        gc.collect(chance.randrange(3))


ACTIONS = [take_some, take_some, take_some, hand_over, use_condition, litter]


def work(seed: int, until: float) -> None:
    chance = random.Random(seed)
    me = threading.get_ident()
    for _ in range(chance.randrange(1, 300)):
        if time.monotonic() > until:
            break
        steps[me] = steps.get(me, 0) + 1
        try:
            chance.choice(ACTIONS)(chance)
        except VictimError:
            pass
    steps.pop(me, None)


def handle(*_: object) -> None:
    global nested
    if nested >= 3:  # a handler is interrupted by the next signal, and without a bound nothing else would ever run
        return
    nested += 1
    try:
        for lock in (ordered[1], ordered[-1], handed[0]):
            if lock.acquire(timeout=0.0003):
                lock.release()
    except (VictimError, RuntimeError):
        pass
    finally:
        nested -= 1
    if armed and random.random() < 0.3:
        raise InHandlerError


def fork_one(chance: random.Random) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
            # Not faulthandler's timer: in a child it waits for the thread of its parent's.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(STUCK_SECONDS)
            got = []
            fresh = core.allocate_lock()
            for lock in ordered:  # whoever had them does not exist here
                lock._at_fork_reinit()

            def use() -> None:
                with fresh, ordered[0], ordered[-1]:
                    got.append(1)

            threads = [threading.Thread(target=use) for _ in range(3)]
            with ordered[0]:
                for thread in threads:
                    thread.start()
            for thread in threads:
                thread.join()
            litter(chance)
            status = 0 if len(got) == 3 and [r for r in core.records() if not r.ended] else 2
        finally:
            os._exit(status)
    while True:
        try:
            _, status = os.waitpid(child, 0)
            break
        except InHandlerError:
            continue
    assert status == 0, f"a child ended with {status}"


def let_go() -> None:
    """Release what the calling thread holds: handlers raise between acquisition and with block, and inside of handlers."""
    for lock in ordered:
        while core.cell_of(lock) in core.current_record().held:
            lock.release()


def rss_kb() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def one_round(chance: random.Random) -> int:
    """Let all of it happen for a while; then everybody must have come to his end."""
    global armed, nested
    until = time.monotonic() + ROUND_SECONDS
    threads: list[threading.Thread] = []
    count = 0
    signal.setitimer(signal.ITIMER_REAL, 0.001, chance.choice((0.0007, 0.003, 0.02)))
    while time.monotonic() < until:
        threads = [thread for thread in threads if thread.is_alive()]
        while len(threads) < 10:
            thread = threading.Thread(target=work, args=(chance.randrange(10**9), until))
            thread.start()
            threads.append(thread)
            count += 1
        try:
            try:
                armed = True
                with ordered[0]:
                    pass
                time.sleep(0.001)
            finally:
                armed = False
        except (InHandlerError, VictimError):
            armed, nested = False, 0
            let_go()
        if hasattr(os, "fork") and chance.random() < 0.05:
            fork_one(chance)
        if chance.random() < 0.1:
            core.drain_order()
    signal.setitimer(signal.ITIMER_REAL, 0)
    let_go()
    limit = time.monotonic() + STUCK_SECONDS
    for thread in threads:
        thread.join(max(0.0, limit - time.monotonic()))
        if thread.is_alive():
            faulthandler.dump_traceback(all_threads=True)
            print(f"seed {SEED}: a wake-up was lost; steps {steps}", flush=True)
            os._exit(3)
    for lock in ordered:
        assert lock.acquire(False), lock
        lock.release()
    assert core.current_record().waits == []
    return count


def quiet() -> tuple[int, int, int]:
    """Return blocks, kB and records when nothing runs."""
    for lock in handed:
        if lock.locked():
            lock.release()
    for _ in range(3):
        gc.collect()
    core.drain_order()
    return sys.getallocatedblocks(), rss_kb(), len(core.records())


armed = False
nested = 0
signal.signal(signal.SIGALRM, handle)
chance = random.Random(SEED)
end = time.monotonic() + SECONDS
first = last = (0, 0, 0)
rounds = threads_run = 0
while time.monotonic() < end or rounds <= WARM_ROUNDS:
    threads_run += one_round(chance)
    rounds += 1
    last = quiet()
    if rounds == WARM_ROUNDS:
        first = last
    if rounds % 60 == 0:
        print(f"{rounds} rounds, {threads_run} threads: blocks, kB, records {last}", flush=True)
held = [cell for cell in core.current_record().held if cell is not None]
assert all(cell in map(core.cell_of, handed) for cell in held), held
assert last[0] - first[0] < GROWTH_BLOCKS, (first, last)
assert not SIZE_COUNTS or last[1] - first[1] < GROWTH_KB, (first, last)
assert last[2] <= first[2] + 2, (first, last)
print(f"ok, seed {SEED}: {rounds} rounds, {threads_run} threads; blocks, kB, records {first} -> {last}")
