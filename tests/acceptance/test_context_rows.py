"""Rows G01-G13: code that the interpreter runs in the middle of other code, and forks in the middle of other threads.

The first half is about what happened: a thread that waits for what its interrupted part holds, a fork's child that waits for
what a thread of its parent held.  The second is about what can happen, told from runs in which it did not.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

# Each hangs in the main thread, in a function that interrupted ``work`` while that held the lock L: (program, what is said).
INTERRUPTIONS = {
    "a finalizer": (
        """
        class Session:
            def __del__(self):
                self.close()
            def close(self):
                with L:
                    pass
        def work():
            with L:
                session = Session()
                session = None
        """,
        "`__del__` of Session ran inside work() while holding",
    ),
    "a finalizer that the collector runs": (
        """
        import gc
        class Session:
            def __init__(self):
                self.me = self
            def __del__(self):
                with L:
                    pass
        def work():
            Session()
            with L:
                gc.collect()
        """,
        "`__del__` of Session ran inside work() while holding",
    ),
    "a weakref callback": (
        """
        import weakref
        class Session:
            pass
        def forget(reference):
            L.acquire()
            L.release()
        def work():
            session = Session()
            reference = weakref.ref(session, forget)
            L.acquire()
            del session
            L.release()
        """,
        "the weakref callback forget() ran inside work() while holding",
    ),
    "a gc callback": (
        """
        import gc
        def on_collection(phase, info):
            with L:
                pass
        def work():
            L.acquire()
            gc.callbacks.append(on_collection)
            gc.collect()
            L.release()
        """,
        "the gc callback on_collection() ran inside work() while holding",
    ),
    "a signal handler": (
        """
        import signal
        def on_alarm(number, frame):
            report()
        def report():
            with L:
                pass
        def work():
            signal.signal(signal.SIGALRM, on_alarm)
            L.acquire()
            signal.raise_signal(signal.SIGALRM)
            L.release()
        """,
        "the handler on_alarm() of SIGALRM ran inside work() while holding",
    ),
    "a signal handler of any arguments": (
        """
        import signal
        class Server:
            def on_alarm(self, *arguments):
                with L:
                    pass
        def work():
            signal.signal(signal.SIGALRM, Server().on_alarm)
            with L:
                signal.raise_signal(signal.SIGALRM)
        """,
        "on_alarm() of SIGALRM ran inside work() while holding",
    ),
    "a handler that logs": (
        """
        import logging, signal
        class Handler(logging.Handler):
            def emit(self, record):
                with L:
                    pass
        logging.getLogger().addHandler(Handler())
        def work():
            signal.signal(signal.SIGALRM, lambda *_: logging.error("alarm"))
            with L:
                signal.raise_signal(signal.SIGALRM)
        """,
        "of SIGALRM ran inside work() while holding",
    ),
}
# Somebody is alive all the time, who might release a plain Lock: only the interruption makes these a proof.
ALIVE = """
import threading
from scaffold import finish, pause
threading.Thread(target=lambda: pause(20), daemon=True).start()
L = threading.Lock()
"""


def _lines(program: str) -> str:
    import textwrap

    return textwrap.dedent(program).strip("\n")


@pytest.mark.parametrize("case", INTERRUPTIONS)
def test_g04_g05_a_thread_that_interrupted_itself_is_told_so(runner: Any, assert_deadlock: Any, case: str) -> None:
    program, said = INTERRUPTIONS[case]

    found = runner.hangs(f"{ALIVE}\n{_lines(program)}\nwork()\n").only

    assert_deadlock(found, 1)
    assert "interrupted itself: " in found["title"]
    assert said in found["title"]
    stack = next(actor["stack"] for actor in found["actors"] if actor["role"] == "member")
    marked = [index for index, frame in enumerate(stack) if frame.get("interrupts")]
    assert marked
    assert stack[marked[0] - 1]["function"] == "work"


@pytest.mark.parametrize("case", INTERRUPTIONS)
def test_g04_g05_silent_twin_with_a_reentrant_lock(runner: Any, case: str) -> None:
    program = _lines(INTERRUPTIONS[case][0])

    runner.silent(f"{ALIVE.replace('Lock()', 'RLock()')}\n{program}\nwork()\nfinish()\n")


def test_g05_the_text_report_shows_both_parts_of_the_stack(runner: Any) -> None:
    program, _ = INTERRUPTIONS["a signal handler"]

    child = runner.start(f"{ALIVE}\n{_lines(program)}\nwork()\n", stderr=True)

    assert child.until(lambda: "fingerprint" in child.stderr())
    lines = [line.strip() for line in child.stderr().splitlines()]
    marker = lines.index("-- interrupted here by the handler on_alarm() of SIGALRM --")
    assert lines[marker - 1] == "signal.raise_signal(signal.SIGALRM)"
    assert "in on_alarm" in lines[marker + 1]


def test_g05_an_exit_handler_is_marked_in_the_stack(runner: Any) -> None:
    found = runner.hangs(
        """
        import atexit, threading
        L = threading.Lock()
        def work():
            L.acquire()
            raise SystemExit
        @atexit.register
        def save():
            with L:
                pass
        work()
        """
    ).only

    (actor,) = found["actors"]
    assert (found["kind"], found["confidence"]) == ("deadlock", "proven")
    assert [frame["interrupts"] for frame in actor["stack"] if frame.get("interrupts")] == ["the exit handler save()"]


def test_g05_a_function_that_is_called_is_no_interruption(runner: Any) -> None:
    found = runner.hangs(
        """
        import signal, threading
        L = threading.Lock()
        def on_alarm(number, frame):
            with L:
                pass
        class Session:
            def __del__(self):
                on_alarm(signal.SIGALRM, None)
        def work(session):
            with L:
                session.__del__()
        work(Session())
        """
    ).only

    assert "interrupted" not in found["title"]


# ---------------------------------------------------------------- forks

FORKED = """
import os, threading, time
from scaffold import Gate, finish, pause
held, over = Gate(), Gate()
A = threading.Lock()
def work():
    with A:
        held.open()
        over.wait()
worker = threading.Thread(target=work, name="worker-1")
worker.start()
held.wait()
"""
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@needs_fork
def test_g09_a_child_that_waits_for_a_lock_of_a_thread_of_its_parent(runner: Any, shape: str) -> None:
    found = runner.hangs(
        FORKED
        + """
pid = os.fork()
if pid == 0:
    A.acquire()
os.waitpid(pid, 0)
""",
        shape=shape,
    ).only

    assert (found["kind"], found["confidence"]) == ("deadlock", "proven")
    (child,) = [actor for actor in found["actors"] if actor["role"] == "member"]
    (parent,) = [actor for actor in found["actors"] if actor["role"] == "bystander"]
    assert parent["name"] == "worker-1"
    assert parent["pid"] != child["pid"] == found["pid"]
    assert any(frame["function"] == "work" for frame in parent["stack"])
    assert found["time"] - child["waiting_since"] < 1.0
    (holder,) = found["resources"][0]["holders"]
    assert holder["acquired"]["function"] == "work"
    assert "worker-1 of the parent process" in found["title"]


@needs_fork
def test_g09_each_thread_of_the_child_waits_for_the_same_and_it_is_one_finding(runner: Any) -> None:
    found = runner.hangs(
        FORKED
        + """
pid = os.fork()
if pid == 0:
    threads = [threading.Thread(target=A.acquire) for _ in range(3)]
    for thread in threads:
        thread.start()
    pause(30)
os.waitpid(pid, 0)
"""
    ).only

    assert (found["kind"], found["confidence"]) == ("deadlock", "proven")


@needs_fork
def test_g09_without_a_wait_it_is_a_hazard_and_told_once_by_all_children(runner: Any) -> None:
    found = runner.ends(
        FORKED
        + """
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        pause(0.8)
        os._exit(0)
    os.waitpid(pid, 0)
over.open()
finish()
"""
    ).only

    assert (found["kind"], found["confidence"]) == ("fork-hazard", "potential")
    assert "worker-1 held" in found["title"]
    assert {actor["name"] for actor in found["actors"]} == {"worker-1", "MainThread"}
    assert all(actor["stack"] for actor in found["actors"])


@needs_fork
@pytest.mark.parametrize(
    "child",
    [
        "os.execv('/bin/sleep', ['sleep', '0.5'])",
        "(pause(0.5), os._exit(0))",
    ],
)
def test_g09_silent_twin_nobody_holds_anything_or_the_child_is_another_program(runner: Any, child: str) -> None:
    open_first = "over.open(); worker.join()" if "_exit" in child else ""
    runner.silent(
        FORKED
        + f"""
{open_first}
pid = os.fork()
if pid == 0:
    {child}
os.waitpid(pid, 0)
over._lock.locked() and over.open()
finish()
"""
    )


@needs_fork
def test_g09_silent_twin_subprocess_runs_no_python_in_its_child(runner: Any) -> None:
    runner.silent(
        FORKED
        + """
import subprocess
subprocess.run(["sleep", "0.5"])
over.open()
finish()
"""
    )


@needs_fork
@pytest.mark.parametrize("when", ["before", "after"])
def test_g10_a_lock_that_is_made_anew_in_the_child_is_silent(runner: Any, when: str) -> None:
    again = "import os; os.register_at_fork(after_in_child=lambda: A._at_fork_reinit())\n"
    install = "import concagent; concagent.install()\n"
    runner.silent(
        (again + install if when == "before" else install)
        + FORKED
        + (again if when == "after" else "")
        + """
pid = os.fork()
if pid == 0:
    with A:
        pause(0.6)
    os._exit(0)
os.waitpid(pid, 0)
over.open()
finish()
""",
        shape="plain",
    )


@needs_fork
def test_g10_locks_of_the_standard_library_are_made_anew_in_the_child(runner: Any) -> None:
    runner.silent(
        """
        import logging, os, threading
        from scaffold import Gate, finish, pause
        logging.basicConfig()
        handler = logging.getLogger().handlers[0]
        held, over = Gate(), Gate()
        def work():
            with handler.lock:
                held.open()
                over.wait()
        threading.Thread(target=work).start()
        held.wait()
        pid = os.fork()
        if pid == 0:
            logging.warning("from the child")
            pause(0.6)
            os._exit(0)
        os.waitpid(pid, 0)
        over.open()
        finish()
        """
    )


@needs_fork
def test_g10_a_lock_that_is_used_as_a_signal_is_silent(runner: Any) -> None:
    runner.silent(
        """
        import os, threading
        from scaffold import Gate, finish, pause
        A = threading.Lock()
        held, over = Gate(), Gate()
        def work():
            A.acquire()
            held.open()
            over.wait()
        threading.Thread(target=work).start()
        held.wait()
        pid = os.fork()
        if pid == 0:
            threading.Timer(0.6, A.release).start()
            A.acquire()
            os._exit(0)
        os.waitpid(pid, 0)
        A.release()
        over.open()
        finish()
        """
    )


# ---------------------------------------------------------------- what can happen

# How a lock A comes to be taken by code that the interpreter calls: ``interrupt()``, with ``use()`` as what that code does.
INTERRUPTERS = {
    "finalizer": """
        class Session:
            def __del__(self):
                use()
        def interrupt():
            session = Session()
            del session
        """,
    "collected finalizer": """
        import gc
        class Session:
            def __init__(self):
                self.me = self
            def __del__(self):
                use()
        def interrupt():
            Session()
            gc.collect()
        """,
    "weakref callback": """
        import weakref
        class Session:
            pass
        def interrupt():
            session = Session()
            reference = weakref.ref(session, lambda dead: use())
            del session
        """,
    "weakref.finalize": """
        import weakref
        class Session:
            pass
        def interrupt():
            session = Session()
            weakref.finalize(session, use)
            del session
        """,
    "gc callback": """
        import gc
        def on_collection(phase, info):
            use()
        def interrupt():
            gc.callbacks.append(on_collection)
            gc.collect()
            gc.callbacks.remove(on_collection)
        """,
    "signal handler": """
        import signal
        def on_alarm(number, frame):
            use()
        signal.signal(signal.SIGALRM, on_alarm)
        def interrupt():
            signal.raise_signal(signal.SIGALRM)
        """,
}
CIRCUMSTANCE = {
    "collected finalizer": "finalizer",
    "weakref.finalize": "weakref callback",
}
LOCKS = """
import threading
from scaffold import Gate, finish, pause
A = threading.Lock()
B = threading.RLock()
C = threading.RLock()
def use():
    with A:
        pass
def in_a_thread(function, *arguments):
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    thread.join()
"""


def _program(interrupter: str, rest: str, *, head: str = LOCKS) -> str:
    return f"{head}\n{_lines(INTERRUPTERS[interrupter])}\n{_lines(rest)}\nfinish()\n"


@pytest.fixture(params=["c", "python"])
def twin(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("order", ["12", "21"])
@pytest.mark.parametrize("interrupter", INTERRUPTERS)
def test_g01_a_lock_that_an_interruption_and_ordinary_code_take(
    runner: Any, interrupter: str, order: str, twin: str
) -> None:
    rest = "use(); interrupt()" if order == "12" else "interrupt(); use()"

    found = runner.ends(_program(interrupter, rest), core=twin).only

    assert (found["kind"], found["confidence"]) == ("context-hazard", "potential")
    assert found["detail"] == CIRCUMSTANCE.get(interrupter, interrupter)
    assert 'lock "A" is taken in a' in found["title"]
    assert [frame["function"] for frame in found["order"][0]["stack"]][-1] == "use"
    assert "interrupt" in [frame["function"] for frame in found["order"][0]["stack"]]


@pytest.mark.parametrize("interrupter", INTERRUPTERS)
def test_g02_a_reentrant_lock_is_silent(runner: Any, interrupter: str) -> None:
    head = LOCKS.replace("A = threading.Lock()", "A = threading.RLock()")

    runner.silent(_program(interrupter, "use(); interrupt(); use(); in_a_thread(use)", head=head))


NESTED = """
def ordinary():
    with B:
        pass
def nested():
    with A:
        with B:
            pass
"""


@pytest.mark.parametrize("order", ["123", "132", "213", "231", "312", "321"])
def test_g03_an_interruption_may_wait_for_who_waits_for_what_it_interrupted(runner: Any, order: str, twin: str) -> None:
    steps = {"1": "interrupt()", "2": "ordinary()", "3": "in_a_thread(nested)"}
    head = LOCKS.replace("A = threading.Lock()", "A = threading.RLock()") + NESTED

    found = runner.ends(_program("finalizer", "; ".join(steps[step] for step in order), head=head), core=twin).only

    assert (found["kind"], found["confidence"]) == ("context-hazard", "potential")
    assert 'rlock "A"' in found["title"]
    assert 'rlock "B"' in found["title"]
    assert found["order"][2]["site"]["function"] == "nested"


@pytest.mark.parametrize(
    "rest",
    [
        "interrupt(); ordinary(); nested()",  # one thread: who holds B is the same who would hold A
        "interrupt(); in_a_thread(nested)",  # nobody holds B in ordinary code alone ...
        "interrupt(); ordinary(); in_a_thread(use)",  # ... nobody waits for B
    ],
)
def test_g03_silent_twin_one_side_is_lacking(runner: Any, rest: str) -> None:
    head = LOCKS.replace("A = threading.Lock()", "A = threading.RLock()") + NESTED

    runner.silent(_program("finalizer", rest, head=head))


def test_g04_held_while_the_collector_runs_but_not_hit(runner: Any) -> None:
    found = runner.ends(
        _program(
            "collected finalizer",
            """
            interrupt()
            with A:
                gc.collect()
            """,
        )
    ).only

    assert found["kind"] == "context-hazard"


def test_g06_a_handlers_lock_that_only_workers_take_is_silent(runner: Any, twin: str) -> None:
    runner.silent(_program("signal handler", "in_a_thread(use); interrupt(); in_a_thread(use)"), core=twin)


def test_g06_positive_twin_a_finalizer_runs_on_workers_too(runner: Any, twin: str) -> None:
    found = runner.ends(_program("finalizer", "in_a_thread(use); interrupt()"), core=twin).only

    assert found["kind"] == "context-hazard"


@pytest.mark.parametrize("interrupter", INTERRUPTERS)
def test_g07_who_only_tries_is_silent(runner: Any, interrupter: str) -> None:
    head = LOCKS + _lines(
        """
        def use():
            if A.acquire(blocking=False) or A.acquire(timeout=0.001):
                A.release()
        """
    )
    rest = """
        interrupt()
        with A:
            interrupt()
        """

    runner.silent(_program(interrupter, rest, head=head))


# What correct, wrong and protected nesting of a collection inside of a hold are here.
NESTINGS = {
    "correct": ("with C:\n    gc.collect()", False),
    "wrong": ("use()", True),
    "protected": ("gc.disable()\ntry:\n    use()\nfinally:\n    gc.enable()", False),
}


@pytest.mark.parametrize("nesting", NESTINGS)
def test_g11_nestings_of_holds_and_collections(runner: Any, nesting: str, twin: str) -> None:
    text, is_hazard = NESTINGS[nesting]

    outcome = runner.ends(f"{_program('collected finalizer', 'interrupt()')}\n{text}\n", core=twin)

    assert outcome.kinds == (["context-hazard"] if is_hazard else [])


def test_g12_a_lock_that_each_thread_has_for_itself_is_silent(runner: Any, twin: str) -> None:
    head = LOCKS.replace("A = threading.Lock()", "A = threading.RLock()") + _lines(
        """
        class Local(threading.local):
            def __init__(self):
                self.lock = threading.Lock()
        local = Local()
        def ordinary():
            with local.lock:
                pass
        def nested():
            with A:
                ordinary()
        """
    )

    runner.silent(_program("finalizer", "interrupt(); ordinary(); in_a_thread(nested)", head=head), core=twin)


def test_g12_kin_a_lock_of_the_object_that_is_finalized_is_silent(runner: Any, twin: str) -> None:
    runner.silent(
        """
        import gc, threading
        from scaffold import finish
        class Session:
            def __init__(self, cycle):
                self.lock = threading.Lock()
                self.changed = threading.Condition(threading.Lock())
                self.me = self if cycle else None
            def close(self):
                with self.lock, self.changed:
                    pass
            def __del__(self):
                self.close()
        for cycle in (False, True) * 10:
            Session(cycle).close()
        gc.collect()
        finish()
        """,
        core=twin,
    )


def test_g13_a_long_way_is_told_once_and_names_the_circumstance(runner: Any) -> None:
    found = runner.ends(
        _program(
            "signal handler",
            """
            D = threading.RLock()
            def one():
                with A, B: pass
            def two():
                with B, C: pass
            def three():
                with C, D: pass
            for step in (one, two, three):
                in_a_thread(step)
            with D:
                pass
            interrupt()
            """,
            head=LOCKS.replace("A = threading.Lock()", "A = threading.RLock()"),
        )
    ).only

    assert (found["kind"], found["detail"]) == ("context-hazard", "signal handler")
    assert len(found["order"]) == 2 + 3


def test_g01_a_queue_that_a_finalizer_fills(runner: Any, twin: str) -> None:
    found = runner.ends(
        """
        import queue
        jobs = queue.Queue()
        class Session:
            def __del__(self):
                jobs.put(self.__class__)
        def work():
            session = Session()
            jobs.put(1)
        work()
        work()
        jobs.get()
        """,
        core=twin,
    ).only

    assert (found["kind"], found["detail"]) == ("context-hazard", "finalizer")


# Sound programs, and the standard library's own finalizers, callbacks and handlers.
SOUND = {
    "an event that a handler sets": """
        import signal
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        assert not stop.wait(0.05)
        signal.raise_signal(signal.SIGTERM)
        assert stop.wait(1)
        """,
    "a simple queue in a finalizer": """
        import queue
        jobs = queue.SimpleQueue()
        class Session:
            def __del__(self):
                jobs.put(1)
        for _ in range(5):
            Session()
        assert jobs.get() == 1
        """,
    "logging everywhere": """
        import logging, signal
        logging.basicConfig()
        class Session:
            def __del__(self):
                logging.warning("gone")
        signal.signal(signal.SIGTERM, lambda *_: logging.warning("asked to end"))
        for _ in range(5):
            logging.warning("hello")
            Session()
            signal.raise_signal(signal.SIGTERM)
        handler = logging.StreamHandler()
        del handler
        """,
    "weak dictionaries": """
        import weakref
        class Session:
            pass
        cache, names, all_of_them = weakref.WeakValueDictionary(), weakref.WeakKeyDictionary(), weakref.WeakSet()
        for number in range(50):
            session = Session()
            cache[number] = session
            names[session] = number
            all_of_them.add(session)
        """,
    "pools": """
        from concurrent.futures import ThreadPoolExecutor
        for _ in range(5):
            pool = ThreadPoolExecutor(2)
            assert list(pool.map(abs, range(10))) == list(range(10))
            del pool
        """,
    "temporary files": """
        import tempfile, gc
        for _ in range(5):
            tempfile.TemporaryDirectory().cleanup()
            tempfile.TemporaryFile().close()
        gc.collect()
        """,
    "process pools": """
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        for _ in range(2):
            pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) if __name__ == "__main__" else None
            if pool:
                assert list(pool.map(abs, range(3))) == [0, 1, 2]
                del pool
        """,
    "a queue's feeder": """
        import multiprocessing
        if __name__ == "__main__":
            jobs = multiprocessing.get_context("spawn").Queue()
            jobs.put(1)
            assert jobs.get() == 1
            jobs.close()
            jobs.join_thread()
            del jobs
        """,
}


@pytest.mark.parametrize("case", SOUND)
def test_g02_kin_sound_programs_and_the_standard_library_are_silent(runner: Any, case: str) -> None:
    runner.silent(f"import threading\nfrom scaffold import finish, pause\n{_lines(SOUND[case])}\nfinish()\n")
