"""Each allocation fails once, in making, taking, contending for, releasing and dropping locks and in the end of a thread.

Would catch: an error path that frees what is in a table, leaves a lock locked or a wait published, or returns NULL without an
exception.
"""

import sys
import threading

from _scaffold import core, watch

try:
    import _testcapi
except ImportError:
    sys.exit(77)
watch(120)
lock = core.allocate_lock()
re_entrant = core.RLock()


def steps() -> None:
    mine = core.allocate_lock()
    with mine, re_entrant:
        lock.acquire(timeout=1e-6)
        _ = core.cell_of(mine).hold
        _ = core.current_record().held
    with re_entrant, mine:
        pass
    exec(code, {"make": core.allocate_lock})
    core.begin_wait(None, True, None)
    core.end_waits(0)
    held = core.allocate_lock()
    held.acquire()


code = compile("\n".join(["a = make()", "b = make()", "with a, b: pass", "with b, a: pass"]), "<nomemory>", "exec")


def in_thread(n: int) -> None:
    go.acquire()
    _testcapi.set_nomemory(n, n + 1)
    try:
        steps()
    except (MemoryError, RuntimeError):
        pass
    finally:
        _testcapi.remove_mem_hooks()


import _thread  # noqa: E402

go = _thread.allocate_lock()
lock.acquire()
for n in range(400):
    _testcapi.set_nomemory(n, n + 1)
    try:
        steps()
    except MemoryError:
        pass
    finally:
        _testcapi.remove_mem_hooks()
    core.reset_for_tests()
    assert core.current_record().held == [core.cell_of(lock)], n
    core.end_waits(0)
go.acquire()
for n in range(300):
    thread = threading.Thread(target=in_thread, args=(n,))
    thread.start()
    go.release()
    thread.join()
lock.release()
for one in (lock, re_entrant):
    assert one.acquire(False)
    one.release()
print("ok")
