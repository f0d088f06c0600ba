"""What Python tells of a program's threads does not tell of the agent's."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest

from concagent import core

Run = Callable[[str], str]
CORES = ["c", "python"] if core.NAME == "c" else ["python"]


@pytest.fixture(params=CORES)
def run(request: pytest.FixtureRequest) -> Run:
    """Run code under an installed agent, in a process of its own; return its standard output."""

    def run(code: str) -> str:
        program = "import concagent\nagent = concagent.install(stderr=False, log=False)\n" + textwrap.dedent(code)
        environment = {**os.environ, "CONCAGENT_CORE": request.param}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stderr == ""
        return done.stdout

    return run


def test_a_program_sees_its_own_threads_and_not_the_agents(run: Run) -> None:
    code = """
        import sys, threading
        begun, end = threading.Event(), threading.Event()
        def work():
            begun.set()
            end.wait()
        thread = threading.Thread(target=work)
        thread.start()
        begun.wait()
        print(sorted(sys._current_frames()) == sorted(t.ident for t in threading.enumerate()))
        print(sorted(sys._current_exceptions()) == sorted(t.ident for t in threading.enumerate()))
        end.set()
        thread.join()
        """

    assert run(code) == "True\nTrue\n"


def test_a_program_counts_its_own_threads_only_also_before_and_after_forks(run: Run) -> None:
    code = """
        import _thread, os, threading, warnings
        warnings.simplefilter("ignore")
        end = threading.Event()
        counts = [_thread._count()]
        thread = threading.Thread(target=end.wait)
        thread.start()
        counts.append(_thread._count())
        for _ in range(2):
            pid = os.fork()
            if pid == 0:
                os._exit(_thread._count())
            counts.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            counts.append(_thread._count())
            if not end.is_set():
                end.set()
                thread.join()
        print(counts)
        """

    assert run(code) == "[0, 1, 1, 1, 0, 0]\n"


def test_the_callers_entry_is_its_own_frame(run: Run) -> None:
    code = """
        import sys, threading
        def look():
            return sys._current_frames()[threading.get_ident()] is sys._getframe()
        print(look())
        """

    assert run(code) == "True\n"


def test_a_callback_on_a_thread_of_the_agent_sees_that_thread(run: Run) -> None:
    code = """
        import sys, threading
        seen, called = [], threading.Event()
        def callback(finding):
            seen.append(threading.get_ident() in sys._current_frames())
            called.set()
        concagent.on_finding(callback)
        def leave():
            lock.acquire()
            lock.release() if never else None
        never = False
        lock = threading.RLock()
        thread = threading.Thread(target=leave)
        thread.start()
        thread.join()
        called.wait(30)
        print(seen[:1])
        """

    assert run(code) == "[True]\n"


def test_a_childs_threads_are_seen_though_the_parents_agent_had_their_number(run: Run) -> None:
    code = """
        import os, sys, threading
        pid = os.fork()
        if not pid:
            begun, end = threading.Event(), threading.Event()
            def work():
                begun.set()
                end.wait()
            threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
            for thread in threads:
                thread.start()
            begun.wait()
            known = {thread.ident for thread in threads} <= set(sys._current_frames())
            os._exit(known)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """

    assert run("import warnings; warnings.simplefilter('ignore')\n" + textwrap.dedent(code)) == "1\n"


def test_uninstall_gives_the_originals_back(run: Run) -> None:
    code = """
        import sys
        ours = sys._current_frames, sys._current_exceptions
        concagent.uninstall()
        print([type(one).__name__ for one in (sys._current_frames, sys._current_exceptions)], sys._current_frames in ours)
        """

    assert run(code) == "['builtin_function_or_method', 'builtin_function_or_method'] False\n"
