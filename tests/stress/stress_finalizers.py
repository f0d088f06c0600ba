"""Finalizers, weak references and exceptions at every step: ``gc.set_threshold(1)`` and locks taken by whatever dies.

Would catch: Python code that runs amid an acquisition, an order row made from a stack that moves, an exception lost when a
held lock dies, a code object whose death is watched.
"""

import gc
import threading
import time
import types
import weakref

from _scaffold import SECONDS, core, watch

watch(SECONDS + 60)
shared = core.RLock()
plain = [core.allocate_lock() for _ in range(4)]


class Dying:
    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        with shared:
            for lock in plain:
                if lock.acquire(False):
                    lock.release()
        for lock in [core.allocate_lock() for _ in range(70)]:
            lock.acquire()


def on_code_end(_: object) -> None:
    with shared, core.allocate_lock():
        pass


def fresh_function(n: int) -> types.FunctionType:
    space: dict = {"shared": shared, "make": core.allocate_lock}
    exec(compile(f"def f():\n  with shared:\n    with make(): pass\n  return {n}", f"<{n % 700}>", "exec"), space)
    return space["f"]


def body() -> None:
    n = 0
    watched = []
    while time.monotonic() < end:
        n += 1
        Dying()
        function = fresh_function(n)
        watched.append(weakref.ref(function.__code__, on_code_end))
        function()
        del watched[:-50], function
        held = core.allocate_lock()
        held.acquire()
        try:
            int((held, Dying()))
        except TypeError:
            pass
        try:
            int(_held())
        except TypeError:
            pass
        del held
        with shared, shared:
            _ = core.current_record().held
            core.drain_order()


def _held() -> object:
    lock = core.allocate_lock()
    lock.acquire()
    return lock


end = time.monotonic() + SECONDS
gc.set_threshold(1)
threads = [threading.Thread(target=body) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
gc.set_threshold(700)
assert shared.acquire(False)
shared.release()
assert core.current_record().held == []
print("ok")
