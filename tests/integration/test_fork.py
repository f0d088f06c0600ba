"""Forks: what was locked, who waited, and what the program prints, in parent and child."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

QUIET = "import concagent; concagent.install(stderr=False, log=False)\n"


def run(code: str, *options: str, prelude: str = QUIET) -> tuple[int, str, str]:
    """Return status, stdout and stderr of a program under the agent."""
    done = subprocess.run(
        [sys.executable, *options, "-c", prelude + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_program_with_one_thread_forks_without_a_warning() -> None:
    code = """
        import os
        for _ in range(10):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        print("ok")
        """

    assert run(code, "-W", "error") == (0, "ok\n", "")


def test_the_agent_is_there_again_after_the_forks_of_a_program_with_one_thread() -> None:
    code = """
        import os, threading
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        lock = threading.Lock()
        try:
            lock.release()
        except RuntimeError:
            pass
        print([f.kind for f in concagent.findings()])
        """

    assert run(code, "-W", "error") == (0, "['misuse']\n", "")


def test_ten_forks_of_a_program_with_many_threads() -> None:
    code = """
        import os, sys, threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        lock, rlock, stop = threading.Lock(), threading.RLock(), threading.Event()
        def work():
            while not stop.is_set():
                with lock, rlock: pass
        threads = [threading.Thread(target=work) for _ in range(8)]
        for t in threads: t.start()
        for _ in range(10):
            with lock, rlock:
                pid = os.fork()
                if pid == 0:
                    lock.release()
                    rlock.release()
                    done = []
                    others = [threading.Thread(target=lambda: (lock.acquire(), done.append(1), lock.release())) for _ in range(5)]
                    lock.acquire()
                    for t in others: t.start()
                    lock.release()
                    for t in others: t.join(10)
                    os._exit(0 if len(done) == 5 else 1)
            assert os.waitpid(pid, 0)[1] == 0, "the child lost a wake-up"
        stop.set()
        for t in threads: t.join()
        print("ok")
        """

    assert run(code) == (0, "ok\n", "")


def test_a_child_reinitialises_locks_that_others_held() -> None:
    code = """
        import os, threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        lock, rlock, held, end = threading.Lock(), threading.RLock(), threading.Event(), threading.Event()
        def hold():
            with lock, rlock:
                held.set()
                end.wait()
        def block():
            with lock: pass
        holder, waiter = threading.Thread(target=hold), threading.Thread(target=block)
        holder.start()
        held.wait()
        waiter.start()
        pid = os.fork()
        if pid == 0:
            status = 0 if not lock.acquire(False) and not rlock.acquire(False) else 1
            lock._at_fork_reinit()
            rlock._at_fork_reinit()
            with lock, rlock, rlock: pass
            os._exit(status)
        status = os.waitpid(pid, 0)[1]
        end.set()
        holder.join()
        waiter.join()
        print(status, lock.locked())
        """

    assert run(code) == (0, "0 False\n", "")


def test_a_child_can_fork_start_threads_and_end_as_usual() -> None:
    code = """
        import os, sys, threading
        pid = os.fork()
        if pid == 0:
            inner = os.fork()
            if inner == 0:
                t = threading.Thread(target=print, args=("grandchild",)); t.start(); t.join()
                sys.exit(3)
            assert os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]) == 3
            sys.exit(4)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """

    assert run(code) == (0, "grandchild\n4\n", "")


def test_a_finding_of_a_child_is_the_childs() -> None:
    code = """
        import os, threading
        pid = os.fork()
        if pid == 0:
            try:
                threading.RLock().release()
            except RuntimeError:
                pass
            os._exit(0 if [f.pid for f in concagent.findings()] == [os.getpid()] else 1)
        print(os.waitpid(pid, 0)[1], concagent.findings())
        """

    assert run(code) == (0, "0 ()\n", "")


def test_a_fork_while_the_agent_loads_its_modules_leaves_the_child_an_agent_and_its_imports() -> None:
    code = """
        import os, sys, threading
        from concagent import _real
        threading.Thread(target=lambda: _real.sleep(30), daemon=True).start()   # so that the agent's thread goes on
        while "concagent.judge" not in sys.modules:
            pass
        pid = os.fork()
        if pid == 0:
            import concagent.judge, concagent.snapshots, concagent.detectors.slow
            try:
                threading.RLock().release()
            except RuntimeError:
                pass
            while not concagent.findings():
                pass
            os._exit(0)
        print(os.waitpid(pid, 0)[1])
        """

    assert run(code, "-W", "ignore") == (0, "0\n", "")


def test_the_frame_that_forked_is_not_kept() -> None:
    code = """
        import os, threading, weakref
        class Mark: pass
        def fork():
            mark = Mark()
            child = os.fork()
            if not child:
                os._exit(0)
            os.waitpid(child, 0)
            marks.append(weakref.ref(mark))
        marks = []
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
        print(marks[0]() is None)
    """

    assert run(code, "-W", "ignore") == (0, "True\n", "")


def test_a_child_has_no_thread_that_it_did_not_start() -> None:
    code = """
        import os, sys, threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        end = threading.Event()
        threads = [threading.Thread(target=end.wait) for _ in range(4)]
        for thread in threads: thread.start()
        pid = os.fork()
        if pid == 0:
            os._exit(len(sys._current_frames()))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        end.set()
        for thread in threads: thread.join()
        print(status)
        """

    assert run(code) == (0, "1\n", "")


def test_a_child_that_waits_from_the_beginning_answers_the_report_signal(tmp_path: Path) -> None:
    code = f"""
        import os, signal
        concagent.install(stderr=False, log=False, report_to="file", report_dir={str(tmp_path)!r})
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
            while True:
                signal.pause()
        while not [name for name in os.listdir({str(tmp_path)!r}) if name.endswith(".txt")]:
            pass
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        [name] = os.listdir({str(tmp_path)!r})
        print(str(pid) in open(os.path.join({str(tmp_path)!r}, name)).read())
        """

    status, out, _ = run(code, prelude="import concagent\n")

    assert (status, out) == (0, "True\n")


def test_children_of_children_fork_without_a_warning_and_end_at_once() -> None:
    code = """
        import os, sys
        for _ in range(5):
            pid = os.fork()
            if pid:
                sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        print("the last")
        """

    assert run(code, "-W", "error") == (0, "the last\n", "")


def test_a_fork_with_the_import_lock_held_leaves_the_parent_its_agent() -> None:
    code = """
        import _imp, os, threading
        _imp.acquire_lock()
        import concagent
        agent = concagent.install(stderr=False, log=False)
        while not agent.monitor._busy.locked(): pass   # the agent's thread wants to import its modules, and cannot
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        _imp.release_lock()
        try:
            threading.RLock().release()
        except RuntimeError:
            pass
        while not concagent.findings():
            pass
        print("found")
        """

    assert run(code, "-W", "ignore", prelude="") == (0, "found\n", "")


def test_a_child_can_import_what_a_thread_of_the_agent_was_just_importing(tmp_path: Path) -> None:
    (tmp_path / "slow_to_load.py").write_text("import builtins\nbuiltins.loading()\nDONE = True\n", encoding="utf-8")
    code = f"""
        import _thread, builtins, os, sys
        from concagent import _real
        sys.path.insert(0, {str(tmp_path)!r})
        begun, go_on = _thread.allocate_lock(), _thread.allocate_lock()
        begun.acquire(), go_on.acquire()
        def loading():
            begun.release()
            go_on.acquire()
        builtins.loading = loading
        _real.start_agent_thread(__import__, ("slow_to_load",))
        begun.acquire()
        pid = os.fork()
        if pid == 0:
            builtins.loading = lambda: None
            import slow_to_load
            print("child", slow_to_load.DONE, flush=True)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        go_on.release()
        import slow_to_load
        print("parent", slow_to_load.DONE)
        """

    assert run(code)[:2] == (0, "child True\nparent True\n")
