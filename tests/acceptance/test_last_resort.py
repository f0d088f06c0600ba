"""The stacks of all threads when code in C keeps the GIL: asked for in vain by the signal, never in a program that answers."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from concagent import lastresort

HEAD = "== concagent: last resort =="
TAIL = "== end of last resort =="

pytestmark = pytest.mark.skipif(
    not lastresort.LastResort(1, "", None, to_stderr=True).is_available() or sys.platform != "linux",
    reason="the C core on Linux only",
)

# PyDLL keeps the GIL during the call, as many an extension does; a wait for a mutex, unlike a sleep, no signal ends.
KEEP = """
import ctypes, os, threading, time
from scaffold import Gate, finish, until
C = ctypes.PyDLL(None)
def keep(seconds):
    mutex, until = ctypes.create_string_buffer(64), time.time() + seconds
    C.pthread_mutex_lock(mutex)
    C.pthread_mutex_timedlock(mutex, (ctypes.c_long * 2)(int(until), int(until % 1 * 1e9)))
"""

KEEPS = (
    KEEP
    + """
def worker_waits_here():
    Gate().wait()
threading.Thread(target=worker_waits_here, daemon=True).start()
def main_keeps_the_gil(seconds):
    print("ready", flush=True)
    keep(seconds)
"""
)

ANSWERS = """
import os, threading
from scaffold import finish, until
print("ready", flush=True)
until(lambda: os.path.exists("end"))
finish()
"""


def stuck(runner: Any, program: str, last_resort_after: float = 0.3, **options: Any) -> Any:
    child = runner.start(program, last_resort_after=last_resort_after, **options)
    assert child.until(lambda: "ready" in child.stdout()), child.stderr()
    child.linger(0.05)  # between the print and the call
    return child


def tell(child: Any) -> str:
    child.signal()
    assert child.until(lambda: TAIL in child.stderr()), child.stderr()
    return str(child.stderr())


def test_code_in_c_that_keeps_the_gil_gets_the_stacks_of_all_threads(runner: Any) -> None:
    child = stuck(runner, KEEPS + "main_keeps_the_gil(60)")

    text = tell(child)

    assert HEAD in text
    assert f"Process {child.process.pid}: SIGUSR1 asked for a report" in text
    assert "in main_keeps_the_gil" in text
    assert "in worker_waits_here" in text
    assert "Fatal" not in text
    assert child.process.poll() is None


def test_a_regular_expression_without_end_is_shown(runner: Any) -> None:
    child = stuck(
        runner,
        """
        import re
        def parse():
            print("ready", flush=True)
            re.match(r"(a+)+$", "a" * 60 + "b")
        parse()
        """,
    )

    assert "in parse" in tell(child)
    assert child.process.poll() is None


def test_a_program_that_answers_gets_the_report_only(runner: Any) -> None:
    child = stuck(runner, ANSWERS, last_resort_after=3)  # the machine may be busy
    for _ in range(3):
        before = len(child.stderr())
        child.signal()
        assert child.until(lambda before=before: len(child.stderr()) > before)
    child.linger(3.5)
    (child._folder / "end").touch()
    assert child.wait_for_end()
    outcome = child.end()

    assert outcome.returncode == 0
    assert "MainThread" in outcome.stderr
    assert HEAD not in outcome.stderr


def test_without_a_signal_nothing_is_written(runner: Any) -> None:
    outcome = runner.silent(KEEPS + "main_keeps_the_gil(1)\nfinish()", last_resort_after=0.1)

    assert outcome.stderr == ""


def test_a_report_that_comes_late_comes_after_the_last_resort_and_the_program_goes_on(runner: Any) -> None:
    child = stuck(runner, KEEPS + "main_keeps_the_gil(2)\nuntil(lambda: os.path.exists('end'))\nfinish()")
    tell(child)
    assert child.until(lambda: "MainThread" in child.stderr())
    (child._folder / "end").touch()
    assert child.wait_for_end()
    outcome = child.end()

    assert (outcome.returncode, outcome.stdout) == (0, "ready\nDONE\n")
    assert outcome.stderr.count(HEAD) == 1


def test_each_request_is_told_once_and_ten_at_a_time_are_one(runner: Any) -> None:
    child = stuck(runner, KEEPS + "main_keeps_the_gil(60)")
    for number in (1, 2, 3):
        for _ in range(10):
            child.signal()
        assert child.until(lambda number=number: child.stderr().count(TAIL) == number)
    child.linger(0.6)

    assert child.stderr().count(HEAD) == 3


def test_off_is_off(runner: Any) -> None:
    child = runner.start(KEEPS + "main_keeps_the_gil(60)", last_resort_after=0)
    assert child.until(lambda: "ready" in child.stdout())
    child.linger(0.1)
    child.signal()
    child.linger(0.8)

    assert child.stderr() == ""
    assert len(os.listdir(f"/proc/{child.process.pid}/task")) == 3  # main, the worker, the monitor


@pytest.mark.parametrize("where", ["file", "both"])
def test_it_goes_where_reports_go(runner: Any, tmp_path: Path, where: str) -> None:
    folder = tmp_path / "reports"
    child = stuck(runner, KEEPS + "main_keeps_the_gil(60)", report_to=where, report_dir=folder)
    child.signal()
    assert child.until(lambda: list(folder.glob("*.txt")) and child.stderr().endswith("\n"))
    child.signal()
    assert child.until(lambda: len(list(folder.glob("*.txt"))) == 2)
    child.linger(0.1)
    files = sorted(folder.iterdir())

    assert [file.name for file in files] == [f"last-resort-{child.process.pid}-00000{n}.txt" for n in (1, 2)]
    assert all(file.read_text().count(TAIL) == 1 and file.stat().st_mode & 0o777 == 0o600 for file in files)
    assert "in main_keeps_the_gil" in files[1].read_text()
    if where == "file":
        assert child.stderr().splitlines() == [f"concagent: last resort written to {file}" for file in files]
    else:
        assert "in main_keeps_the_gil" in child.stderr()


def test_a_directory_that_is_gone_does_not_lose_the_stacks(runner: Any, tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    child = stuck(runner, KEEPS + "main_keeps_the_gil(60)", report_to="file", report_dir=folder)
    folder.rmdir()

    assert "in main_keeps_the_gil" in tell(child)


FORKS = (
    KEEP
    + """
import signal, sys, warnings
warnings.simplefilter("error")
def keeps_the_gil():
    os.write(1, b"ready %d\\n" % os.getpid())
    keep(60)
for _ in range(3):
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
)


def test_the_parent_has_it_after_forks(runner: Any) -> None:
    child = stuck(runner, FORKS + "until(lambda: len(os.listdir('/proc/self/task')) == 3)\nkeeps_the_gil()")

    assert "in keeps_the_gil" in tell(child)


def test_a_forks_child_has_its_own(runner: Any) -> None:
    child = stuck(
        runner,
        FORKS
        + """
def in_child(): keeps_the_gil()
child = os.fork()
if child == 0:
    in_child()
until(lambda: os.path.exists("ask"))
os.kill(child, signal.SIGUSR1)
until(lambda: os.path.exists("end"))
os.kill(child, signal.SIGKILL)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
finish()
""",
    )
    number = int(child.stdout().split()[1])
    (child._folder / "ask").touch()
    assert child.until(lambda: TAIL in child.stderr())
    (child._folder / "end").touch()
    assert child.wait_for_end()
    outcome = child.end()

    assert f"Process {number}: " in outcome.stderr
    assert "in in_child" in outcome.stderr
    assert outcome.stderr.count(HEAD) == 1
    assert outcome.stdout.endswith(f"{-signal.SIGKILL}\nDONE\n")


def test_a_request_of_the_parents_is_not_told_in_the_child(runner: Any) -> None:
    outcome = runner.ends(
        """
        import os, signal
        from concagent import core
        from scaffold import finish, pause
        signal.pthread_sigmask(signal.SIG_BLOCK, ())
        before = core.last_resort().last_resort_requests()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert core.last_resort().last_resort_requests() == before + 1
        child = os.fork()
        if child == 0:
            pause(1)
            os._exit(0)
        os.waitpid(child, 0)
        print(child)
        finish()
        """,
        last_resort_after=0.2,
    )

    assert f"Process {outcome.stdout.split()[0]}: " not in outcome.stderr
    assert outcome.returncode == 0


def test_a_program_with_one_thread_forks_without_a_warning(runner: Any) -> None:
    outcome = runner.silent(FORKS + "finish()")

    assert outcome.stderr == ""


def test_the_program_does_not_notice_the_copy(runner: Any) -> None:
    # Another thread asks while the GIL is kept; the copy must leave no zombie, no SIGCHLD and nothing to wait for.
    child = stuck(
        runner,
        KEEPS
        + """
import signal
came = []
signal.signal(signal.SIGCHLD, lambda *_: came.append(1))
main_keeps_the_gil(1.5)
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    print("no child", came)
finish()
""",
    )
    tell(child)
    assert child.wait_for_end()

    assert child.end().stdout == "ready\nno child []\nDONE\n"


def test_a_program_that_closed_all_descriptors_still_gets_it(runner: Any) -> None:
    child = stuck(runner, KEEPS + "os.closerange(3, 1000)\nmain_keeps_the_gil(60)")

    assert "in main_keeps_the_gil" in tell(child)


def test_a_program_with_faulthandler_in_use_keeps_it(runner: Any) -> None:
    # Py_FatalError ends the thread of dump_traceback_later, which the copy does not have.
    child = stuck(
        runner,
        KEEPS
        + """
import faulthandler, sys
faulthandler.enable()
faulthandler.dump_traceback_later(2, file=sys.stdout)
main_keeps_the_gil(60)
""",
    )
    text = tell(child)
    assert child.until(lambda: "Timeout" in child.stdout())

    assert "in main_keeps_the_gil" in text
    assert child.process.poll() is None


def test_its_thread_is_not_a_foreign_one(runner: Any) -> None:
    outcome = runner.silent(
        """
        import os
        import concagent
        from concagent import snapshots
        from scaffold import finish
        print(len(os.listdir("/proc/self/task")), snapshots.take(stacks=False).foreign_threads)
        finish()
        """
    )

    assert outcome.stdout == "3 0\nDONE\n"


def test_uninstall_ends_its_thread(runner: Any) -> None:
    outcome = runner.silent(
        """
        import os
        import concagent
        from scaffold import finish, until
        for _ in range(20):
            concagent.uninstall()
            until(lambda: len(os.listdir("/proc/self/task")) == 1)
            concagent.install()
            until(lambda: len(os.listdir("/proc/self/task")) == 3)
        finish()
        """,
        shape="install",
    )

    assert outcome.stdout == "DONE\n"


def test_standard_error_that_nobody_reads_blocks_no_fork_and_no_end(runner: Any) -> None:
    # The thread cannot get rid of its text; whoever ends it does not wait for that.
    outcome = runner.ends(
        KEEP
        + """
import signal, warnings
warnings.simplefilter("ignore")  # it would be written to where nobody reads, as the report is
read, write = os.pipe()
os.set_blocking(write, False)
try:
    while True: os.write(write, b"x" * 4096)
except BlockingIOError:
    pass
os.set_blocking(write, True)
os.dup2(write, 2)
os.kill(os.getpid(), signal.SIGUSR1)
keep(1)
for _ in range(3):
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
finish()
""",
        last_resort_after=0.1,
    )

    assert (outcome.returncode, outcome.stdout) == (0, "DONE\n")


def test_the_thread_sleeps_while_nobody_asks(runner: Any) -> None:
    child = stuck(runner, ANSWERS)
    (thread,) = [
        task
        for task in Path(f"/proc/{child.process.pid}/task").iterdir()
        if (task / "comm").read_text() == "concagent\n"
    ]

    def switches() -> list[str]:
        return [line for line in (thread / "status").read_text().splitlines() if "ctxt_switches" in line]

    before = switches()
    child.linger(1.5)

    assert switches() == before
