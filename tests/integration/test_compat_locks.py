"""Programs that do uncommon things with locks print the same under the agent as without it.

The list is what users report of other tools (ddtrace): isinstance, ``|`` in annotations, subclassing,
pickling under forkserver, fork, weak references, copies taken before install.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

QUIET = "import concagent; concagent.install(stderr=False, log=False)\n"

SCRIPTS: dict[str, str] = {
    "isinstance": """
        import threading, _thread
        print(isinstance(threading.Lock(), type(threading.Lock())), isinstance(_thread.allocate_lock(), _thread.LockType))
        print(isinstance(threading.RLock(), type(threading.RLock())), isinstance(3, type(threading.Lock())))
        print(isinstance(threading.RLock(), type(threading.Lock())), type(threading.Lock()), type(threading.RLock()))
        """,
    "annotations": """
        import sys, threading, typing, dataclasses
        def f(lock: "threading.Lock | None", other: typing.Optional[threading.RLock] = None) -> threading.Lock: ...
        print(sorted(f.__annotations__))
        if sys.version_info >= (3, 13):
            print(threading.Lock | None, isinstance(threading.Lock(), threading.Lock | int))
        print(typing.Optional[threading.RLock] == typing.Optional[threading.RLock])
        @dataclasses.dataclass
        class Shared:
            lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
            again: threading.RLock = dataclasses.field(default_factory=threading.RLock, repr=False, compare=False)
        one, other = Shared(), Shared()
        print(one.lock is other.lock, one.lock.acquire(False), other.lock.locked())
        """,
    "subclass of RLock": """
        import threading
        class Named(type(threading.RLock())):
            def __init__(self, name, *, colour="red"):
                super().__init__()
                self.name, self.colour = name, colour
            def __enter__(self):
                print("in", self.name)
                return super().__enter__()
        lock = Named("a", colour="blue")
        with lock, lock:
            print(lock._is_owned(), vars(lock))
        condition = threading.Condition(lock)
        with condition:
            print(condition.wait(0.01))
        """,
    "class attribute as factory": """
        import threading
        class Pool:
            factory = threading.Lock
            again = threading.RLock
            def __init__(self):
                self.lock = self.factory()
        with Pool().lock:
            print("ok")
        """,
    "subclass of the lock type": """
        import threading
        for base in (type(threading.Lock()), threading.Lock):
            try:
                class Sub(base): pass
            except TypeError as error:
                print(error)
        """,
    "condition over a lock of the user": """
        import threading
        class Mine:
            def __init__(self): self.lock = threading.Lock()
            def acquire(self, *a, **k): return self.lock.acquire(*a, **k)
            def release(self): self.lock.release()
            def __enter__(self): return self.acquire()
            def __exit__(self, *exc): self.release()
        for lock in (Mine(), threading.Lock(), threading.RLock()):
            condition = threading.Condition(lock)
            def notify():
                with condition:
                    condition.notify_all()
            with condition:
                threading.Timer(0.01, notify).start()
                print(condition.wait(20))
            for call in (condition.wait, condition.notify):
                try:
                    call()
                except RuntimeError as error:
                    print(error)
        """,
    "weak references and sets": """
        import gc, threading, weakref
        table = weakref.WeakValueDictionary(a=(lock := threading.Lock()), b=(other := threading.RLock()))
        keys = weakref.WeakKeyDictionary({lock: 1, other: 2})
        print(len(table), len(keys), len({lock, other, lock}))
        del lock, other
        gc.collect()
        print(len(table), len(keys))
        """,
    "pickling of the factories": """
        import pickle, threading
        for factory in (threading.Lock, threading.RLock):
            made = pickle.loads(pickle.dumps(factory))()
            with made:
                print(factory is pickle.loads(pickle.dumps(factory)))
        for lock in (threading.Lock(), threading.RLock(), threading.Condition(), threading.Event(), threading.Semaphore()):
            try:
                pickle.dumps(lock)
            except TypeError as error:
                print(error)
        """,
    "threads that end inside": """
        import threading
        def work(lock):
            with lock:
                raise SystemExit
        lock = threading.Lock()
        threads = [threading.Thread(target=work, args=(lock,)) for _ in range(5)]
        for t in threads: t.start()
        for t in threads: t.join()
        print(lock.locked())
        """,
    "queue and executor": """
        import concurrent.futures, queue, threading
        def fill(q):
            for i in range(200): q.put(i)
            q.put(None)
        q, total = queue.Queue(3), 0
        threading.Thread(target=fill, args=(q,)).start()
        for i in iter(q.get, None): total += i
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            print(total, sum(pool.map(lambda x: x * x, range(100))))
        """,
    "recursion limit": """
        import threading
        lock = threading.RLock()
        def deep():
            with lock:
                deep()
        try:
            deep()
        except RecursionError:
            print("RecursionError", lock._is_owned())
        """,
    "mock with autospec": """
        import threading
        from unittest import mock
        with mock.patch("threading.Lock") as fake:
            threading.Lock()
            print(fake.called)
        with mock.patch.object(threading.Thread, "start", autospec=True) as fake:
            threading.Thread(target=print).start()
            print(fake.called)
        print(threading.Lock().acquire())
        """,
    "signatures of what is wrapped": """
        import inspect, threading
        for f in (threading.Condition.wait, threading.Semaphore.acquire, threading.Semaphore.release, threading.Thread.join,
                  threading.Thread.start, threading.BoundedSemaphore.release):
            print(f.__qualname__, f.__module__, inspect.signature(f))
        """,
    "errors of what is wrapped": """
        import threading
        thread, semaphore, bounded = threading.Thread(target=int), threading.Semaphore(0), threading.BoundedSemaphore(1)
        for call in (thread.join, lambda: thread.join("x"), lambda: threading.current_thread().join(),
                     lambda: semaphore.acquire(False, 1), bounded.release, lambda: semaphore.release(0),
                     lambda: threading.Condition().wait(), lambda: threading.Barrier(0), lambda: threading.Semaphore(-1),
                     lambda: (thread.start(), thread.start())):
            try:
                call()
            except Exception as error:
                print(type(error).__name__, error)
        """,
    "daemon threads that block and hold at exit": """
        import threading
        a, b, c = threading.Lock(), threading.RLock(), threading.Condition()
        ready = threading.Barrier(4)
        def hold(lock):
            with lock:
                ready.wait()
                threading.Event().wait()
        def block(lock):
            ready.wait()
            with lock: pass
        for target, lock in ((hold, a), (hold, b), (block, a)):
            threading.Thread(target=target, args=(lock,), daemon=True).start()
        threading.Thread(target=block, args=(b,), daemon=True)
        ready.wait()
        print("end")
        """,
    "daemon threads that use locks at exit": """
        import threading
        lock = threading.Lock()
        def work():
            while True:
                with lock: pass
        for _ in range(4):
            threading.Thread(target=work, daemon=True).start()
        for _ in range(2000):
            with lock: pass
        print("end")
        """,
    "locks in finalizers at exit": """
        import threading
        class Owner:
            def __init__(self): self.lock = threading.Lock()
            def __del__(self):
                with self.lock: pass
                print("gone")
        keep = Owner()
        import builtins
        builtins.keep = keep
        """,
}


def run(code: str, *, prelude: str = "", options: tuple[str, ...] = (), **environment: str) -> tuple[int, str, str]:
    """Return status, stdout and stderr of a program."""
    done = subprocess.run(
        [sys.executable, *options, "-c", prelude + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_program_prints_the_same_with_the_agent(name: str) -> None:
    assert run(SCRIPTS[name], prelude=QUIET) == run(SCRIPTS[name])


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_program_prints_the_same_where_warnings_are_errors(name: str) -> None:
    assert run(SCRIPTS[name], prelude=QUIET, options=("-W", "error")) == run(SCRIPTS[name])


def test_a_copy_taken_before_install_is_replaced() -> None:
    code = """
        import sys, types
        module = types.ModuleType("early")
        sys.modules["early"] = module
        exec("from threading import Lock, RLock\\nfrom _thread import allocate_lock as make", module.__dict__)
        import concagent
        from concagent import core
        before = module.Lock, module.make
        concagent.install(stderr=False, log=False)
        print(core.cell_of(module.Lock()) is not None, core.cell_of(module.make()) is not None,
              core.cell_of(module.RLock()) is not None)
        concagent.uninstall()
        print((module.Lock, module.make) == before)
        """

    assert run(code) == (0, "True True True\nTrue\n", "")


def test_locks_made_meanwhile_go_on_after_uninstall() -> None:
    code = """
        import concagent, threading
        concagent.install(stderr=False, log=False)
        lock, condition = threading.Lock(), threading.Condition()
        lock.acquire()
        concagent.uninstall()
        waiter = threading.Thread(target=lock.acquire)
        waiter.start()
        lock.release()
        waiter.join()
        with condition:
            condition.wait(0.01)
        print(lock.locked(), threading.Lock())
        """
    status, out, err = run(code)

    assert (status, err) == (0, "")
    assert out.startswith("True <unlocked _thread.lock object")


def test_pickling_under_forkserver_and_spawn(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        textwrap.dedent(
            """
            import multiprocessing, threading

            class Carrier:
                def __init__(self):
                    self.lock = threading.Lock()
                def __getstate__(self):
                    return {}
                def __setstate__(self, state):
                    self.lock = threading.Lock()

            def work(carrier, factory):
                with carrier.lock, factory():
                    print("child", flush=True)

            if __name__ == "__main__":
                for method in ("fork", "spawn", "forkserver"):
                    context = multiprocessing.get_context(method)
                    child = context.Process(target=work, args=(Carrier(), threading.Lock))
                    child.start()
                    child.join()
                    print(method, child.exitcode, flush=True)
            """
        )
    )
    results = []
    for launch in ([], ["-m", "concagent", "run"]):
        done = subprocess.run(
            [sys.executable, *launch, str(script)], capture_output=True, text=True, timeout=60, check=False
        )
        results.append((done.returncode, done.stdout, done.stderr))

    assert results[0] == results[1]
    assert results[0][1].count("child") == 3
