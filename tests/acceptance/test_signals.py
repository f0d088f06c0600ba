"""Row C25 and its kin: a Lock that is used like an event, in every shape that looks like a deadlock until it is released.

``proven`` is never wrong, so these are worth more than another ring.
"""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

# Each main thread or thread below waits for a Lock that its holder never releases himself; somebody else does, later.
C25 = {
    "main blocks on its own lock inside of a try whose finally releases": """
        L.acquire()
        try:
            threading.Timer(0.7, L.release).start()
            L.acquire()
        finally:
            L.release()
        """,
    "a thread blocks, a timer releases": """
        L.acquire()
        thread = threading.Thread(target=lambda: L.acquire())
        thread.start()
        threading.Timer(0.5, L.release).start()
        thread.join()
        """,
    "main blocks on its own lock, a timer releases": """
        L.acquire()
        threading.Timer(0.5, L.release).start()
        L.acquire()
        L.release()
        """,
    "main blocks on its own lock, a raw thread releases": """
        def later():
            pause(1.2)
            L.release()
        L.acquire()
        _thread.start_new_thread(later, ())
        L.acquire()
        L.release()
        """,
    "main blocks on its own lock, a signal handler releases": """
        import signal
        L.acquire()
        signal.signal(signal.SIGALRM, lambda *_: L.release())
        signal.setitimer(signal.ITIMER_REAL, 1.2)
        L.acquire()
        L.release()
        """,
    "main joins the waiter, a signal handler releases": """
        import signal
        L.acquire()
        def work():
            L.acquire()
            L.release()
        signal.signal(signal.SIGALRM, lambda *_: L.release())
        thread = threading.Thread(target=work)
        thread.start()
        signal.setitimer(signal.ITIMER_REAL, 1.5)
        thread.join()
        """,
    "the second acquire is in a finally": """
        L.acquire()
        threading.Timer(0.5, L.release).start()
        L.acquire()
        try:
            pass
        finally:
            L.release()
        """,
    "the wait is in a helper": """
        def wait_for(lock):
            lock.acquire()
        L.acquire()
        threading.Timer(0.5, L.release).start()
        wait_for(L)
        L.release()
        """,
    "the wait is in a with": """
        L.acquire()
        threading.Timer(0.5, L.release).start()
        with L:
            pass
        """,
    "held by main, waited for under another lock that main wants": """
        def work():
            with M:
                L.acquire()
        L.acquire()
        thread = threading.Thread(target=work)
        thread.start()
        waiting(1)
        threading.Timer(1.2, L.release).start()
        with M:
            pass
        thread.join()
        """,
    "the same, bare": """
        def work():
            M.acquire()
            L.acquire()
            M.release()
        L.acquire()
        thread = threading.Thread(target=work)
        thread.start()
        waiting(1)
        threading.Timer(1.2, L.release).start()
        M.acquire()
        M.release()
        thread.join()
        """,
    "the same, and main takes the lock again afterwards": """
        def work():
            with M:
                L.acquire()
                L.release()
        def main():
            L.acquire()
            thread = threading.Thread(target=work)
            thread.start()
            waiting(1)
            threading.Timer(1.2, L.release).start()
            with M:
                pass
            thread.join()
            L.acquire()
            L.release()
        main()
        """,
    "a latch for several threads": """
        def work():
            with M:
                pass
            L.acquire()
            L.release()
            with M:
                pass
        L.acquire()
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        threading.Timer(1.5, L.release).start()
        for thread in threads:
            thread.join()
        """,
    "ping-pong": """
        M.acquire()
        turns = []
        def player(mine, other, name):
            for _ in range(300):
                mine.acquire()
                turns.append(name)
                other.release()
        threads = [threading.Thread(target=player, args=args) for args in ((L, M, "ping"), (M, L, "pong"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert turns == ["ping", "pong"] * 300
        """,
    "released by a thread that was started by another": """
        def starter():
            threading.Timer(0.6, L.release).start()
        L.acquire()
        threading.Timer(0.6, starter).start()
        L.acquire()
        """,
    "the idiom of _thread": """
        def work():
            pause(0.7)
            lock.release()
        lock = _thread.allocate_lock()
        lock.acquire()
        _thread.start_new_thread(work, ())
        lock.acquire()
        lock.release()
        """,
    "a join made of locks": """
        def work(done):
            pause(0.3)
            done.release()
        dones = []
        for _ in range(3):
            done = threading.Lock()
            done.acquire()
            _thread.start_new_thread(work, (done,))
            dones.append(done)
        for done in dones:
            done.acquire()
        """,
    "the thread that took it has ended": """
        def take():
            L.acquire()
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
        L.release()
        with L:
            pass
        """,
}
HEAD = """
import _thread, threading, time
from scaffold import finish, pause, waiting
L = threading.Lock()
M = threading.Lock()
"""


@pytest.mark.parametrize("case", C25)
def test_c25_a_lock_used_as_a_signal_is_silent(runner: Any, case: str) -> None:
    runner.silent(HEAD + textwrap.dedent(C25[case]) + "finish()\n")


def test_c25_positive_twin_a_signal_that_nobody_is_left_to_give_is_found(runner: Any) -> None:
    found = runner.hangs(
        """
        import threading
        L = threading.Lock()
        L.acquire()
        thread = threading.Thread(target=L.acquire, name="waiter")
        thread.start()
        thread.join()
        """
    ).only

    assert found["kind"] in {"deadlock", "stall"}
    assert found["confidence"] == "proven"


def test_c29_two_timed_waits_in_opposite_order_are_silent(runner: Any, shape: str) -> None:
    runner.silent(
        """
        import threading
        from scaffold import Meeting, finish
        A = threading.Lock()
        B = threading.Lock()
        both = Meeting(2)

        def one(first, second):
            with first:
                both.wait()
                assert not second.acquire(timeout=1.2)
                over.wait()

        over = Meeting(2)
        threads = [threading.Thread(target=one, args=pair) for pair in ((A, B), (B, A))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        finish()
        """,
        shape=shape,
    )


def test_c29_positive_twin_without_the_timeouts_it_is_a_deadlock(runner: Any, assert_deadlock: Any) -> None:
    found = runner.hangs(
        """
        import threading
        from scaffold import Meeting
        A = threading.Lock()
        B = threading.Lock()
        both = Meeting(2)

        def one(first, second):
            with first:
                both.wait()
                second.acquire(timeout=-1)

        for pair in ((A, B), (B, A)):
            threading.Thread(target=one, args=pair).start()
        """
    ).only

    assert_deadlock(found, 2)


# Sound programs that real code is like: a lock that is taken in one thread and given back in another, or held by an object
# that moves between threads.  Each was once called a deadlock, an orphan or a misuse.
MOVED = {
    "a dependency entered and left in two workers": """
        from contextlib import contextmanager
        @contextmanager
        def exclusive():
            with L:
                yield
        entered = threading.Event()
        cm = exclusive()
        def enter():
            cm.__enter__()
            entered.set()
            L.acquire()     # the next request, in the same worker
            L.release()
        worker = threading.Thread(target=enter)
        worker.start()
        entered.wait()
        pause(1.2)
        other = threading.Thread(target=cm.__exit__, args=(None, None, None))
        other.start()
        other.join()
        worker.join()
        """,
    "an exit stack closed by another thread": """
        from contextlib import ExitStack
        stack = ExitStack()
        stack.enter_context(L)
        thread = threading.Thread(target=lambda: (pause(1.2), stack.close()))
        thread.start()
        L.acquire()
        L.release()
        thread.join()
        """,
    "a flag raised by a thread that ends": """
        def request():
            if L.acquire(blocking=False):
                threading.Thread(target=lambda: (pause(1.5), L.release())).start()
        thread = threading.Thread(target=request)
        thread.start()
        thread.join()
        L.acquire()
        L.release()
        """,
    "a lock of a thread that has ended, released by a thread that runs on": """
        thread = threading.Thread(target=L.acquire)
        thread.start()
        thread.join()
        waiter = threading.Thread(target=lambda: L.acquire())
        waiter.start()
        pause(2.5)
        L.release()
        waiter.join()
        """,
    "a lock of a thread that has ended, released by what a running function calls": """
        class Slot:
            def take(self):
                L.acquire()
            def give(self):
                L.release()
            def serve(self):
                pause(2.5)
                self.give()
        slot = Slot()
        thread = threading.Thread(target=slot.take)
        thread.start()
        thread.join()
        server = threading.Thread(target=slot.serve)
        server.start()
        slot.take()
        server.join()
        """,
    "an exit stack of a thread that has ended, closed by another": """
        from contextlib import ExitStack
        stack = ExitStack()
        thread = threading.Thread(target=stack.enter_context, args=(L,))
        thread.start()
        thread.join()
        closing = threading.Thread(target=lambda: (pause(2.5), stack.close()))
        closing.start()
        L.acquire()
        L.release()
        closing.join()
        """,
    "a once guard in a thread": """
        def once():
            if L.acquire(False):
                pass
        thread = threading.Thread(target=once)
        thread.start()
        thread.join()
        pause(1.5)
        """,
    "a closed flag that is collected": """
        class Resource:
            def __init__(self):
                self._closed = threading.Lock()
            def close(self):
                if not self._closed.acquire(False):
                    return
        resource = Resource()
        resource.close()
        del resource
        """,
    "a gate that is opened by whoever comes first": """
        def opener():
            pause(1.2)
            L.release()
        L.acquire()
        try:
            threading.Thread(target=opener).start()
            waiter = threading.Thread(target=lambda: L.acquire())
            waiter.start()
            waiter.join()
        finally:
            if L.locked():
                L.release()
        """,
}


@pytest.mark.parametrize("program", MOVED)
def test_c25_kin_a_lock_that_moves_between_threads_is_silent(runner: Any, program: str) -> None:
    head = "import threading, time\nfrom scaffold import pause\nL = threading.Lock()\n"

    runner.silent(head + textwrap.dedent(MOVED[program]))
