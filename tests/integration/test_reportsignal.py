"""The report signal in processes that are stuck in all the ways that issue 2 names.

Each test runs a small program whose watcher thread, unknown to ``threading``, polls the pipe as the monitor does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

PYTHON = os.environ.get("CONCAGENT_TEST_PYTHON", sys.executable)

WATCHED = """
import _thread, faulthandler, os, select, signal, sys, threading, time
del sys.modules["faulthandler"]
from concagent.reportsignal import ReportSignal

watched = ReportSignal(signal.SIGUSR1)

def watch():
    # Sends the signals, counts how often the pipe woke us, says so and ends the process.
    for _ in range(SIGNALS):
        os.kill(os.getpid(), signal.SIGUSR1)
    deadline = time.monotonic() + 20
    heard = False
    while not heard and time.monotonic() < deadline:
        select.select([watched], [], [], 1)
        heard = watched.drain()
    os.write(1, b"heard" if heard else b"deaf")
    os._exit(0)

SIGNALS = 1
ready = lambda: _thread.start_new_thread(watch, ())
"""


def run(program: str, *, prelude: str = WATCHED, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PYTHON, "-c", prelude + textwrap.dedent(program)], capture_output=True, text=True, timeout=timeout, check=False
    )


STUCK = {
    "lock": "lock = threading.Lock(); lock.acquire(); ready(); lock.acquire()",
    "rlock of another thread": """
        lock = threading.RLock(); started = threading.Event(); never = threading.Event()
        def hold():
            with lock: started.set(); never.wait()
        threading.Thread(target=hold, daemon=True).start(); started.wait(); ready(); lock.acquire()""",
    "join": """
        thread = threading.Thread(target=threading.Event().wait, daemon=True); thread.start(); ready(); thread.join()""",
    "sleep": "ready(); time.sleep(60)",
    "select": "ready(); select.select([], [], [], 60)",
    "read from a pipe": "r, w = os.pipe(); ready(); os.read(r, 1)",
    "hash in C without the GIL": "import hashlib; ready(); hashlib.pbkdf2_hmac('sha256', b'x', b'y', 10**9)",
    "compression in C without the GIL": """
        import zlib; data = os.urandom(2**28); ready()
        while True: zlib.compress(data, 9)""",
    "sqlite": """
        import sqlite3; base = sqlite3.connect(':memory:'); ready()
        base.execute('with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n').fetchone()""",
    "Python loop": "ready()\nwhile True: pass",
}


@pytest.mark.parametrize("where", STUCK)
def test_the_signal_is_heard_while_the_main_thread_is_stuck(where: str) -> None:
    done = run(STUCK[where])

    assert (done.returncode, done.stdout, done.stderr) == (0, "heard", "")


@pytest.mark.parametrize("where", ["lock", "Python loop"])
def test_a_hundred_signals_in_a_row_neither_kill_nor_block(where: str) -> None:
    done = run("SIGNALS = 100\n" + textwrap.dedent(STUCK[where]))

    assert (done.returncode, done.stdout, done.stderr) == (0, "heard", "")


def test_a_full_pipe_does_not_block_the_program() -> None:
    done = run(
        """
        def deep(n):
            if n: return deep(n - 1)
            for _ in range(2000): os.kill(os.getpid(), signal.SIGUSR1)
        deep(50)
        print(watched.drain(), watched.drain())
        """
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "True False\n", "")


def test_a_handler_of_the_program_is_chained_and_comes_back() -> None:
    done = run(
        """
        from concagent.reportsignal import ReportSignal
        import os, signal
        calls = []
        def handler(signum, frame): calls.append(signum == signal.SIGUSR1)
        signal.signal(signal.SIGUSR1, handler)
        watched = ReportSignal(signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        print(watched.drain(), calls)
        watched.close()
        os.kill(os.getpid(), signal.SIGUSR1)
        print(watched.drain(), calls, signal.getsignal(signal.SIGUSR1) is handler, watched.fileno())
        """,
        prelude="",
    )

    assert (done.stdout, done.stderr) == ("True [True]\nFalse [True, True] True -1\n", "")


@pytest.mark.parametrize("disposition", ["SIG_DFL", "SIG_IGN"])
def test_default_and_ignored_are_not_chained_but_come_back(disposition: str) -> None:
    done = run(
        f"""
        from concagent.reportsignal import ReportSignal
        import os, signal
        signal.signal(signal.SIGUSR1, signal.{disposition})
        watched = ReportSignal(signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        print(watched.drain(), flush=True)
        watched.close()
        os.kill(os.getpid(), signal.SIGUSR1)
        """,
        prelude="",
    )

    assert done.stdout == "True\n"
    assert done.returncode == (-signal.SIGUSR1 if disposition == "SIG_DFL" else 0)


def test_a_handler_that_the_program_sets_later_takes_over_and_survives_close() -> None:
    done = run(
        """
        calls = []
        signal.signal(signal.SIGUSR1, lambda *_: calls.append(1))
        os.kill(os.getpid(), signal.SIGUSR1)
        print(watched.drain(), calls)
        watched.close()
        os.kill(os.getpid(), signal.SIGUSR1)
        print(calls)
        again = ReportSignal(signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        print(again.drain(), calls)
        """
    )

    assert (done.stdout, done.stderr) == ("False [1]\n[1, 1]\nTrue [1, 1, 1]\n", "")


def test_close_in_another_thread_leaves_a_later_handler_alone() -> None:
    done = run(
        """
        calls = []
        signal.signal(signal.SIGUSR1, lambda *_: calls.append(1))
        thread = threading.Thread(target=watched.close); thread.start(); thread.join()
        os.kill(os.getpid(), signal.SIGUSR1)
        print(calls, watched.fileno())
        """
    )

    assert (done.stdout, done.stderr) == ("[1] -1\n", "")


def test_it_can_be_taken_in_another_thread() -> None:
    done = run(
        """
        import os, signal, threading
        from concagent.reportsignal import ReportSignal
        made = []
        thread = threading.Thread(target=lambda: made.append(ReportSignal(signal.SIGUSR1)))
        thread.start(); thread.join()
        os.kill(os.getpid(), signal.SIGUSR1)
        print(made[0].drain())
        """,
        prelude="",
    )

    assert (done.stdout, done.stderr) == ("True\n", "")


def test_a_child_has_a_pipe_of_its_own() -> None:
    done = run(
        """
        pid = os.fork()
        if pid == 0:
            watched.after_fork_in_child()
            os.kill(os.getpid(), signal.SIGUSR1)
            os._exit(0 if watched.drain() else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), watched.drain())
        os.kill(os.getpid(), signal.SIGUSR1)
        print(watched.drain())
        """
    )

    assert (done.stdout, done.stderr) == ("0 False\nTrue\n", "")


def test_a_program_started_by_exec_inherits_no_descriptor() -> None:
    done = run(
        """
        import subprocess
        child = "import os; print(sorted(int(fd) for fd in os.listdir('/proc/self/fd')))"
        with_pipe = subprocess.run([sys.executable, "-c", child], capture_output=True, close_fds=False).stdout
        watched.close()
        print(with_pipe == subprocess.run([sys.executable, "-c", child], capture_output=True, close_fds=False).stdout)
        """
    )

    assert done.stdout == "True\n"


def test_a_handler_of_faulthandler_is_not_taken_away() -> None:
    done = run(
        """
        import faulthandler, os, signal
        faulthandler.register(signal.SIGUSR1)
        from concagent.errors import PatchError
        from concagent.reportsignal import ReportSignal
        try:
            ReportSignal(signal.SIGUSR1)
        except PatchError as error:
            print(error)
        os.kill(os.getpid(), signal.SIGUSR1)
        """,
        prelude="",
    )

    assert done.stdout == (
        "cannot listen to SIGUSR1: faulthandler or other C code handles it already; choose another signal with report_signal\n"
    )
    assert done.stderr.startswith("Current thread") or done.stderr.startswith("Stack (most recent call first)")


def test_enabling_faulthandler_and_other_signals_are_unaffected() -> None:
    done = run(
        """
        import faulthandler
        faulthandler.enable()
        faulthandler.register(signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR1)
        print(watched.drain(), faulthandler.is_enabled())
        watched.close()
        print(faulthandler.is_enabled(), flush=True)
        os.kill(os.getpid(), signal.SIGUSR2)
        """
    )

    assert done.stdout == "True True\nTrue\n"
    assert "most recent call first" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, 9999, 0])
def test_a_signal_that_cannot_be_had_is_a_patch_error(number: int) -> None:
    done = run(
        f"""
        from concagent.errors import PatchError
        from concagent.reportsignal import ReportSignal
        import os
        before = os.listdir("/proc/self/fd")
        try:
            ReportSignal({int(number)})
        except PatchError as error:
            print("PatchError", "cannot listen to" in str(error))
        print(os.listdir("/proc/self/fd") == before)
        """,
        prelude="",
    )

    assert (done.stdout, done.stderr) == ("PatchError True\nTrue\n", "")


def test_a_system_without_registration_says_what_to_do_instead() -> None:
    done = run(
        """
        import faulthandler, signal
        del faulthandler.register
        from concagent.errors import PatchError
        from concagent.reportsignal import ReportSignal
        try:
            ReportSignal(signal.SIGUSR1)
        except PatchError as error:
            print(error)
        """,
        prelude="",
    )

    assert done.stdout == (
        "cannot listen to SIGUSR1: this system has no faulthandler.register; use concagent report PID\n"
    )


def test_system_calls_are_not_interrupted_where_nobody_handled_the_signal_before() -> None:
    done = run(
        """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        r, w = os.pipe()
        def later():
            os.kill(os.getpid(), signal.SIGUSR1)
            select.select([watched], [], [], 20)
            os.write(w, b"x")
        _thread.start_new_thread(later, ())
        buffer = ctypes.create_string_buffer(1)
        print(libc.read(r, buffer, 1), ctypes.get_errno(), watched.drain())
        """
    )

    assert (done.stdout, done.stderr) == ("1 0 True\n", "")


def test_a_program_that_closes_all_descriptors_takes_the_signal_back() -> None:
    done = run(
        """
        os.closerange(3, 100)
        print(watched.drain(), watched.fileno(), flush=True)
        os.kill(os.getpid(), signal.SIGUSR1)
        """
    )

    assert (done.returncode, done.stdout) == (-signal.SIGUSR1, "False -1\n")
