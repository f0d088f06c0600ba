"""install and uninstall: all or nothing, from anywhere, and as if it had never been."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap

import pytest

STATE = """
import _thread, builtins, io, os, signal, sys, threading
def state():
    places = [(threading, n) for n in ("Lock", "RLock", "_CRLock", "_allocate_lock", "Condition", "Thread")]
    places += [(_thread, n) for n in ("allocate_lock", "allocate", "LockType", "RLock")]
    places += [(threading.Condition, "wait"), (threading.Semaphore, "acquire"), (threading.Semaphore, "__enter__"),
               (threading.Semaphore, "release"), (threading.BoundedSemaphore, "release"), (threading.Thread, "join"),
               (threading.Thread, "start"), (builtins, "open"), (io, "open")]
    return ([getattr(o, n, None) for o, n in places], [n for o, n in places if n in vars(o)],
            signal.getsignal(signal.SIGUSR1), _thread._count(), sorted(os.listdir("/proc/self/fd")))
import concagent
"""


def run(code: str, *options: str, prelude: str = STATE, **kwargs: object) -> tuple[int, str, str]:
    """Return status, stdout and stderr of a program."""
    environment = {name: value for name, value in os.environ.items() if name != "CONCAGENT_FINDINGS"}
    environment.update(kwargs.pop("environment", {}))  # type: ignore[call-overload]
    done = subprocess.run(  # type: ignore[call-overload]
        [sys.executable, *options, "-c", prelude + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
        **kwargs,
    )
    return done.returncode, done.stdout, done.stderr


def test_uninstall_leaves_everything_as_it_was() -> None:
    code = """
        concagent.install(stderr=False, log=False); concagent.uninstall()  # what is loaded once stays loaded
        before = state()
        for _ in range(3):
            concagent.install(stderr=False, log=False, metrics_port=0)
            concagent.install()
            concagent.uninstall()
            concagent.uninstall()
        print(state() == before)
        """

    assert run(code) == (0, "True\n", "")


@pytest.mark.parametrize(
    "options",
    ["long_wait='x'", "colour=1", "report_signal='SIGFOO'", "recover='maybe'", "suppressions='/no/such/file'",
     "findings='/no/such/dir/x'", "metrics_port=-1", "patch='locks,colours'"],
)  # fmt: skip
def test_a_bad_option_is_refused_before_anything_is_patched(options: str) -> None:
    code = f"""
        before = state()
        try:
            concagent.install({options})
        except concagent.ConfigError as error:
            print("refused", state() == before, {options.partition("=")[0]!r} in str(error))
        """

    assert run(code) == (0, "refused True True\n", "")


@pytest.mark.parametrize("failing", ["_apply_patches", "_listen_to_signal", "_start_thread", "_open_listeners"])
def test_a_step_that_fails_takes_back_all_before_it(failing: str) -> None:
    code = f"""
        from concagent import bootstrap
        concagent.install(stderr=False, log=False); concagent.uninstall()
        original = bootstrap.Agent.{failing}
        def fail(self):
            original(self)
            raise MemoryError("no more")
        bootstrap.Agent.{failing} = fail
        before = state()
        try:
            concagent.install(stderr=False, log=False, metrics_port=0)
        except MemoryError:
            print("raised", state() == before)
        bootstrap.Agent.{failing} = original
        concagent.install(stderr=False, log=False)
        print(bool(concagent.snapshot().actors))
        """

    assert run(code) == (0, "raised True\nTrue\n", "")


def test_a_restore_that_fails_does_not_keep_the_others() -> None:
    code = """
        before = state()
        agent = concagent.install(stderr=False, log=False)
        class Broken:
            label = "broken"
            def apply(self): pass
            def restore(self): raise OSError("will not")
        agent._patches._steps.insert(5, Broken()) if hasattr(agent._patches, "_steps") else agent._patches.add(Broken())
        try:
            concagent.uninstall()
        except concagent.PatchError as error:
            print("broken" in str(error) or "will not" in str(error))
        print([a is b for a, b in zip(state()[0], before[0])].count(False))
        """
    status, out, err = run(code)

    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "0"


@pytest.mark.parametrize("tool", ["gevent", "eventlet"])
def test_a_tool_that_has_patched_before_is_named(tool: str) -> None:
    pytest.importorskip(tool)
    patch = (
        "import gevent.monkey as m; m.patch_all()" if tool == "gevent" else "import eventlet; eventlet.monkey_patch()"
    )
    code = f"""
        import warnings; warnings.simplefilter("ignore")
        {patch}
        before = state()[0]
        try:
            concagent.install()
        except concagent.PatchError as error:
            print("{tool}" in str(error), "start concagent first" in str(error), state()[0] == before)
        """

    assert run(code)[1] == "True True True\n"


def test_a_stranger_in_the_place_of_allocate_lock_is_refused() -> None:
    code = """
        before = _thread.allocate_lock
        def allocate_lock(): return before()
        allocate_lock.__module__ = "stranger.locks"
        _thread.allocate_lock = threading.Lock = allocate_lock
        try:
            concagent.install()
        except concagent.PatchError as error:
            print(error)
        print(threading.Lock is allocate_lock)
        """
    status, out, err = run(code)

    assert (status, err) == (0, "")
    assert "already replaced by stranger" in out
    assert out.endswith("True\n")


def test_install_works_where_warnings_are_errors() -> None:
    code = """
        concagent.install(stderr=False, log=False, metrics_port=0)
        with threading.Lock(): pass
        concagent.uninstall()
        print("ok")
        """

    assert run(code, "-W", "error", "-X", "dev") == (0, "ok\n", "")


def test_install_works_outside_of_the_main_thread() -> None:
    code = """
        def work():
            concagent.install(stderr=False, log=False)
            try: threading.RLock().release()
            except RuntimeError: pass
            print([f.kind for f in concagent.findings()])
        t = threading.Thread(target=work); t.start(); t.join()
        concagent.uninstall()
        print("ok")
        """

    assert run(code) == (0, "['misuse']\nok\n", "")


def test_install_works_with_the_standard_streams_closed() -> None:
    code = """
        for fd in (0, 1, 2): os.close(fd)
        sys.stdin = sys.stdout = sys.stderr = None
        concagent.install()
        try: threading.RLock().release()
        except RuntimeError: pass
        found = concagent.findings()
        concagent.uninstall()
        os._exit(0 if len(found) == 1 else 1)
        """

    assert run(code)[0] == 0


def test_a_signal_handler_of_the_program_is_called_too() -> None:
    code = """
        import time
        calls = []
        handler = lambda *a: calls.append(1)
        signal.signal(signal.SIGUSR1, handler)
        concagent.install(stderr=False, log=False, report_to="file", report_dir=os.environ["REPORTS"])
        os.kill(os.getpid(), signal.SIGUSR1)
        end = time.monotonic() + 20
        while not (calls and os.listdir(os.environ["REPORTS"])) and time.monotonic() < end: time.sleep(0.01)
        concagent.uninstall()
        print(calls, signal.getsignal(signal.SIGUSR1) is handler)
        os.kill(os.getpid(), signal.SIGUSR1)
        print(calls)
        """
    with tempfile.TemporaryDirectory() as reports:
        status, out, err = run(code, environment={"REPORTS": reports})

    assert (status, out) == (0, "[1] True\n[1, 1]\n")
    assert err.startswith("concagent: report written to ")


def test_importing_patches_nothing_and_loads_nothing_heavy() -> None:
    code = """
        print([name for name in ("networkx", "prometheus_client", "click", "rich", "psutil", "asyncio", "ctypes", "http.server")
               if name in sys.modules], threading.Lock)
        concagent.install(stderr=False, log=False)
        print([name for name in ("networkx", "prometheus_client", "click", "rich", "asyncio", "http.server", "ssl")
               if name in sys.modules])
        """
    status, out, err = run(code)

    assert (status, err) == (0, "")
    assert out.splitlines()[0].startswith("[] <")
    assert out.splitlines()[1] == "[]"


def test_install_loads_neither_regular_expressions_nor_the_other_twin() -> None:
    code = """
        import signal, sys, typing  # what these load is theirs
        names = ("re", "dataclasses", "inspect", "logging", "traceback", "opcode")
        for name in names:
            sys.modules.pop(name, None)  # the start of the interpreter may have loaded it
        import concagent
        concagent.install(stderr=False, log=False)
        from concagent import core
        print([name for name in names if name in sys.modules and (name != "opcode" or core.NAME == "c")])
        print(("concagent._pycore" in sys.modules) == (core.NAME == "python"))
        """
    status, out, err = run(code, prelude="")

    assert (status, out, err) == (0, "[]\nTrue\n", "")
