"""Row H08 and its kin: locks on files between processes, however these were started; each with its silent twins."""

from __future__ import annotations

import glob
import sys
import textwrap
from typing import Any

import pytest
from pollinglibrary import LIBRARY

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is a board on Linux only")

LIMIT_SECONDS = 20.0  # several interpreters start one after the other
METHODS = ["fork", "spawn", "forkserver"]
# Children begin with the same first line as their parent, so they install the agent, too.
HEAD = """
    import fcntl, multiprocessing as mp, os, signal, subprocess, sys, threading, time
    from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, flock, lockf
    from scaffold import Gate, finish, pause, until

    CTX = mp.get_context("{method}")

    def start(function, *args):
        process = CTX.Process(target=function, args=args)
        process.start()
        return process

    def told(number=1):
        def lines():
            try:
                with open(os.environ["CONCAGENT_FINDINGS"]) as file:
                    return file.read().count("\\n")
            except FileNotFoundError:
                return 0
        until(lambda: lines() >= number)
        pause(1.2)

    def end(*processes):
        for process in processes:
            process.kill()
        for process in processes:
            process.join()

    def sign(name):
        os.close(os.open("here-" + name, os.O_CREAT | os.O_WRONLY))

    def meet(*names):
        until(lambda: all(os.path.exists("here-" + name) for name in names))

    def nest(lock, outer, inner, me, *all_of_us):
        with open(outer, "w") as one, open(inner, "w") as two:
            lock(one, LOCK_EX)
            sign(me)
            meet(*all_of_us)
            lock(two, LOCK_EX)
        sign(me + "-done")

    class Held:
        def __init__(self, path, lock=flock, mode=LOCK_EX):
            self.path, self.lock, self.mode = path, lock, mode
        def __enter__(self):
            self.file = open(self.path, "w")
            self.lock(self.file, self.mode)
            return self.file
        def __exit__(self, *_):
            self.lock(self.file, LOCK_UN)
            self.file.close()

    """
TAIL = """
        from concagent import state
        assert not state.errors(), state.error_texts()
        finish()
    """


@pytest.fixture(autouse=True)
def time_for_several_processes(runner: Any) -> None:
    runner.limit_seconds = LIMIT_SECONDS


def program(method: str, functions: str, main: str) -> str:
    body = textwrap.indent(textwrap.dedent(main).strip("\n"), "    ")
    text = textwrap.dedent(HEAD).replace("{method}", method) + textwrap.dedent(functions)
    return f"{text}\nif __name__ == '__main__':\n{body}\n{textwrap.indent(textwrap.dedent(TAIL), '    ')}"


def found(runner: Any, method: str, functions: str, main: str, **options: Any) -> dict[str, Any]:
    outcome = runner.ends(program(method, functions, main), shape="install", **options)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    assert outcome.stdout.endswith("DONE\n")
    return outcome.only  # type: ignore[no-any-return]


def silent(runner: Any, method: str, functions: str, main: str, **options: Any) -> None:
    outcome = runner.silent(program(method, functions, main), shape="install", **options)
    assert outcome.stdout.endswith("DONE\n")


def members(finding: dict[str, Any]) -> list[int]:
    return [actor["pid"] for actor in finding["actors"] if actor["role"] == "member"]


def assert_ring(finding: dict[str, Any], number: int, *kinds: str, confidence: str = "proven") -> None:
    assert (finding["kind"], finding["confidence"]) == ("deadlock", confidence), finding["title"]
    assert len(set(members(finding))) == number, finding["title"]
    assert {resource["kind"] for resource in finding["resources"]} == set(kinds)


# ---------------------------------------------------------------- rings of files


@pytest.mark.parametrize("method", METHODS)
def test_h08_two_files_in_opposite_order_are_one_deadlock_of_two_processes(runner: Any, method: str) -> None:
    main = """
    both = start(nest, flock, "a", "b", "1", "1", "2"), start(nest, flock, "b", "a", "2", "1", "2")
    told()
    print(*(process.pid for process in both))
    print(*(os.stat(name).st_ino for name in "ab"))
    end(*both)
    """

    outcome = runner.ends(program(method, "", main), shape="install")

    assert_ring(outcome.only, 2, "file-lock")
    lines = outcome.stdout.splitlines()
    assert sorted(members(outcome.only)) == sorted(map(int, lines[0].split()))
    resources = outcome.only["resources"]
    assert outcome.only["resource_kind"] == "file-lock"
    assert sorted(r["name"] for r in resources) == ["a", "b"]
    assert sorted(int(r["detail"].rpartition(" ")[2]) for r in resources) == sorted(map(int, lines[1].split()))
    assert [r["holders"][0]["acquired"]["function"] for r in resources] == ["nest", "nest"]
    assert lines[-1] == "DONE"


@pytest.mark.parametrize("method", METHODS)
def test_h08_two_processes_with_one_order_are_silent(runner: Any, method: str) -> None:
    functions = """
    def work(me):
        for _ in range(3):
            with Held("a"), Held("b"):
                pause(0.5)
        sign(me)
    """
    main = """
    both = start(work, "1"), start(work, "2")
    meet("1", "2")
    for process in both:
        process.join()
    """
    silent(runner, method, functions, main, stall_after=1)


def test_h08_children_that_were_started_as_programs_are_one_deadlock(runner: Any) -> None:
    main = """
    code = "import sys; sys.argv[0] = 'x'; import program; program.nest(program.flock, *sys.argv[1:])"
    both = [subprocess.Popen([sys.executable, "-c", code, *names, "1", "2"]) for names in (("a", "b", "1"), ("b", "a", "2"))]
    told()
    for process in both:
        process.kill()
        process.wait()
    """
    assert_ring(found(runner, "fork", "", main), 2, "file-lock")


def test_h08_four_processes_in_a_ring(runner: Any) -> None:
    main = """
    ring = [start(nest, flock, str(me), str((me + 1) % 4), f"{me}", *"0123") for me in range(4)]
    told()
    end(*ring)
    """
    assert_ring(found(runner, "fork", "", main), 4, "file-lock")


def test_h08_each_of_several_who_share_a_file_is_enough(runner: Any) -> None:
    """The second of two readers waits for what the writer has; the first is about to end."""
    functions = """
    def reader(me, last):
        with Held("a", flock, LOCK_SH):
            sign(me)
            meet("1", "2", "3")
            if last:
                with Held("b"):
                    pass
            else:
                pause(5)
    def writer():
        with Held("b"):
            sign("3")
            meet("1", "2", "3")
            with Held("a"):
                pass
    """
    main = """
    all_of_them = start(reader, "1", False), start(reader, "2", True), start(writer)
    told()
    end(*all_of_them)
    """
    finding = found(runner, "fork", functions, main)
    assert_ring(finding, 2, "file-lock")


def test_h08_a_lock_of_lockf_and_one_of_flock(runner: Any) -> None:
    """The kernel refuses rings of POSIX locks only; this one it does not see."""
    functions = """
    def one():
        with Held("a", lockf):
            sign("1")
            meet("1", "2")
            with Held("b"):
                pass
    def two():
        with Held("b"):
            sign("2")
            meet("1", "2")
            with Held("a", lockf):
                pass
    """
    main = """
    both = start(one), start(two)
    told()
    end(*both)
    """
    assert_ring(found(runner, "fork", functions, main), 2, "file-lock")


REFUSED = """
    import errno
    def work(outer, inner, me):
        try:
            nest(lockf, outer, inner, me, "1", "2")
        except OSError as error:
            assert error.errno == errno.EDEADLK, error
            print("refused", os.getpid(), flush=True)
            pause(1)
    """


@pytest.mark.parametrize("method", METHODS)
def test_h08_a_ring_of_lockf_that_the_kernel_refuses_is_told_with_both_sides(runner: Any, method: str) -> None:
    main = """
    both = start(work, "a", "b", "1"), start(work, "b", "a", "2")
    for process in both:
        process.join()
    print(*(process.pid for process in both))
    told()
    """

    outcome = runner.ends(program(method, REFUSED, main), shape="install")

    lines = outcome.stdout.splitlines()
    assert lines[0].startswith("refused ")
    assert lines[-1] == "DONE"
    finding = outcome.only
    assert_ring(finding, 2, "file-lock")
    assert "EDEADLK" in finding["reason"]
    assert sorted(members(finding)) == sorted(map(int, lines[1].split()))
    assert members(finding)[0] == int(lines[0].split()[1])
    assert len(finding["resources"]) == 2
    assert finding["actors"][0]["stack"][-1]["function"] == "nest"


# ---------------------------------------------------------------- through libraries that poll

POLLING = """
    def poll(outer, inner, me, *more):
        from {module} import {lock} as Lock
        with Lock(outer):
            sign(me)
            meet("1", "2")
            try:
                with Lock(inner, *more):
                    pass
            except Exception as error:
                assert more, error
    """
MODULES = {
    "a stand-in": ("filelock", "FileLock", None),
    "filelock": ("filelock", "FileLock", "filelock"),
    "fasteners": ("fasteners", "InterProcessLock", "fasteners"),
}


def polling(case: tuple[str, str, str | None]) -> str:
    module, lock, needed = case
    if needed is not None:
        pytest.importorskip(needed)
    ours = f"open('filelock.py', 'w').write({LIBRARY!r})" if needed is None else "sys.path.pop(0)"
    return textwrap.dedent(POLLING.replace("{module}", module).replace("{lock}", lock)) + f"\n{ours}\n"


@pytest.mark.parametrize("case", MODULES.values(), ids=MODULES)
def test_h08_two_processes_that_poll_for_each_others_file_for_ever_are_a_deadlock(runner: Any, case: Any) -> None:
    main = """
    both = start(poll, "a", "b", "1"), start(poll, "b", "a", "2")
    told()
    end(*both)
    """
    assert_ring(found(runner, "fork", polling(case), main), 2, "file-lock")


def test_h08_two_processes_that_poll_with_a_time_limit_are_silent(runner: Any) -> None:
    main = """
    both = start(poll, "a", "b", "1", 3), start(poll, "b", "a", "2", 3)
    for process in both:
        process.join()
    """
    silent(runner, "fork", polling(MODULES["a stand-in"]), main, stall_after=1)


def test_h08_two_processes_that_try_again_and_again_are_suspected(runner: Any) -> None:
    """Nobody knows whether such code gives up; the silent twin does."""
    functions = """
    def insist(outer, inner, me):
        with Held(outer), open(inner, "w") as file:
            sign(me)
            meet("1", "2")
            while True:
                try:
                    flock(file, LOCK_EX | LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.03)
    """
    main = """
    both = start(insist, "a", "b", "1"), start(insist, "b", "a", "2")
    told()
    end(*both)
    """
    finding = found(runner, "fork", functions, main, stall_after=2)
    assert_ring(finding, 2, "file-lock", confidence="suspected")
    assert "give up" in finding["reason"]


def test_h08_two_processes_that_try_again_and_give_up_are_silent(runner: Any) -> None:
    functions = """
    def work(first, second, me):
        with Held(first), open(second, "w") as file:
            sign(me)
            meet("1", "2")
            for _ in range(80):
                try:
                    flock(file, LOCK_EX | LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.03)
    """
    main = """
    both = start(work, "a", "b", "1"), start(work, "b", "a", "2")
    for process in both:
        process.join()
    """
    silent(runner, "fork", functions, main)


def test_h08_portalocker_waits_in_the_open(runner: Any) -> None:
    pytest.importorskip("portalocker")
    functions = """
    import portalocker
    def work(outer, inner, me):
        with open(outer, "w") as one, open(inner, "w") as two:
            portalocker.lock(one, portalocker.LOCK_EX)
            sign(me)
            meet("1", "2")
            portalocker.lock(two, portalocker.LOCK_EX)
    """
    main = """
    both = start(work, "a", "b", "1"), start(work, "b", "a", "2")
    told()
    end(*both)
    """
    assert_ring(found(runner, "fork", functions, main), 2, "file-lock")


# ---------------------------------------------------------------- rings of files and other things


@pytest.mark.parametrize("method", METHODS)
def test_h08_a_file_and_a_lock_of_multiprocessing(runner: Any, method: str) -> None:
    functions = """
    def file_first(lock):
        with Held("a"):
            sign("1")
            meet("1", "2")
            with lock:
                pass
    def lock_first(lock):
        with lock:
            sign("2")
            meet("1", "2")
            with Held("a"):
                pass
    """
    main = """
    lock = CTX.Lock()
    both = start(file_first, lock), start(lock_first, lock)
    told()
    end(*both)
    """
    assert_ring(found(runner, method, functions, main), 2, "file-lock", "mp-lock")


def test_h08_through_a_lock_of_threads(runner: Any) -> None:
    functions = """
    def threads():
        lock = threading.Lock()
        def inner():
            with lock:
                sign("1")
                meet("1", "2")
                with Held("b"):
                    pass
        with Held("a"):
            thread = threading.Thread(target=inner, daemon=True)
            thread.start()
            meet("1", "2")
            with lock:
                pass
    def other():
        with Held("b"):
            sign("2")
            meet("1", "2")
            with Held("a"):
                pass
    """
    main = """
    both = start(threads), start(other)
    told()
    end(*both)
    """
    finding = found(runner, "fork", functions, main)
    assert_ring(finding, 2, "file-lock", "lock")
    assert len(members(finding)) == 3


@pytest.mark.parametrize("method", METHODS)
def test_h08_a_parent_joins_a_child_that_waits_for_its_file(runner: Any, method: str) -> None:
    functions = """
    def child():
        with Held("a"):
            pass
    def parent():
        with Held("a"):
            process = start(child)
            sign(str(process.pid))
            process.join()
    """
    main = """
    process = start(parent)
    told()
    process.kill()
    for name in os.listdir("."):
        if name.startswith("here-"):
            os.kill(int(name[5:]), signal.SIGKILL)
    process.join()
    """
    assert_ring(found(runner, method, functions, main), 2, "file-lock", "process")


def test_h08_a_parent_waits_for_a_program_that_waits_for_its_file(runner: Any) -> None:
    functions = """
    CODE = "from program import *; pid = os.getpid(); sign(str(pid)); file = open('a', 'w'); flock(file, LOCK_EX)"
    def parent():
        with Held("a"):
            subprocess.call([sys.executable, "-c", CODE])
    """
    main = """
    thread = threading.Thread(target=parent)
    thread.start()
    told()
    os.kill(next(int(name[5:]) for name in os.listdir(".") if name.startswith("here-")), signal.SIGKILL)
    thread.join()
    """
    assert_ring(found(runner, "fork", functions, main), 2, "file-lock", "process")


# ---------------------------------------------------------------- what could still end


def test_h08_an_opening_that_another_process_has_too_is_a_suspicion_only(runner: Any) -> None:
    """A helper was given the descriptor, and may unlock it."""
    functions = """
    def one():
        with open("a", "w") as first, Held("b") as _:
            flock(first, LOCK_EX)
            helper = subprocess.Popen(["sleep", "60"], pass_fds=[first.fileno()])
            sign("1")
            sign(f"helper-{helper.pid}")
            meet("1", "2")
            with Held("c"):
                pass
    def two():
        with Held("c"):
            sign("2")
            meet("1", "2")
            with Held("a"):
                pass
    """
    main = """
    both = start(one), start(two)
    told()
    end(*both)
    os.kill(next(int(name[12:]) for name in os.listdir(".") if name.startswith("here-helper")), signal.SIGKILL)
    """
    finding = found(runner, "fork", functions, main, stall_after=1)
    assert_ring(finding, 2, "file-lock", confidence="suspected")
    assert "shared with pid" in finding["reason"]


def test_h08_a_thread_that_could_unlock_makes_it_a_suspicion(runner: Any) -> None:
    functions = """
    def work(*names):
        threading.Thread(target=pause, args=(600,), daemon=True).start()
        nest(flock, *names)
    """
    main = """
    both = start(work, "a", "b", "1", "1", "2"), start(work, "b", "a", "2", "1", "2")
    told()
    end(*both)
    """
    finding = found(runner, "fork", functions, main, stall_after=1)
    assert_ring(finding, 2, "file-lock", confidence="suspected")


# ---------------------------------------------------------------- silent twins

SOUND = {
    "an alarm ends the wait": (
        """
        class TooLong(Exception):
            pass
        def ring(*_):
            raise TooLong
        def work(*names):
            signal.signal(signal.SIGALRM, ring)
            signal.alarm(4)
            try:
                nest(flock, *names)
            except TooLong:
                pass
        """,
        """
        both = start(work, "a", "b", "1", "1", "2"), start(work, "b", "a", "2", "1", "2")
        for process in both:
            process.join()
        """,
    ),
    "shared by both": (
        """
        def work(first, second, me):
            with Held(first, flock, LOCK_SH):
                sign(me)
                meet("1", "2")
                with Held(second, flock, LOCK_SH):
                    pause(2)
        """,
        """
        both = start(work, "a", "b", "1"), start(work, "b", "a", "2")
        for process in both:
            process.join()
        """,
    ),
    "different bytes": (
        """
        def work(me, mine, other):
            with open("a", "r+") as file:
                lockf(file, LOCK_EX, 10, mine)
                sign(me)
                meet("1", "2")
                lockf(file, LOCK_EX, 10, mine + 5)
                with Held("b"):
                    pause(2)
        """,
        """
        open("a", "w").close()
        both = start(work, "1", 0, 100), start(work, "2", 100, 0)
        for process in both:
            process.join()
        """,
    ),
    "two who wait for one file wait for different bytes of it": (
        """
        ALL = "1234"
        def first_bytes():
            with open("a", "r+") as file:
                lockf(file, LOCK_EX, 10, 0)
                sign("1")
                meet(*ALL)
                with Held("b"):
                    pass
        def other_bytes():
            with open("a", "r+") as file:
                lockf(file, LOCK_EX, 10, 20)
                sign("2")
                meet(*ALL)
                pause(4)
        def wants_first():
            with open("a", "r+") as file:
                sign("3")
                meet(*ALL)
                pause(0.2)
                lockf(file, LOCK_EX, 10, 0)
        def wants_other():
            with open("a", "r+") as file, Held("b"):
                sign("4")
                meet(*ALL)
                lockf(file, LOCK_EX, 10, 20)
        """,
        """
        open("a", "w").close()
        processes = [start(function) for function in (first_bytes, other_bytes, wants_first, wants_other)]
        for process in processes:
            process.join()
        """,
    ),
    "another thread of the holder's has locked the same bytes, and unlocks them for both": (
        """
        def holder():
            def early():
                with open("a", "r+") as file, Held("a", lockf):
                    sign("early")
                    meet("1", "2")
                    pause(4)
            thread = threading.Thread(target=early)
            thread.start()
            meet("early")
            with Held("a", lockf):
                sign("1")
                meet("1", "2")
                with Held("b"):
                    pass
            thread.join()
        def other():
            with Held("b"):
                sign("2")
                meet("1", "2")
                with Held("a", lockf):
                    pass
        """,
        """
        open("a", "w").close()
        both = start(holder), start(other)
        for process in both:
            process.join()
        """,
    ),
    "a POSIX lock is lost with any descriptor of the file": (
        """
        def one():
            with open("a", "w") as file, Held("b"):
                lockf(file, LOCK_EX)
                open("a").close()
                sign("1")
                meet("1", "2")
                with Held("c"):
                    pass
        def two():
            with Held("c"):
                sign("2")
                meet("1", "2")
                with open("a", "w") as file:
                    lockf(file, LOCK_EX)
                    pause(2)
        """,
        """
        both = start(one), start(two)
        for process in both:
            process.join()
        """,
    ),
    "a holder that is killed leaves no lock": (
        """
        def dies():
            file = open("a", "w")
            flock(file, LOCK_EX)
            sign("1")
            pause(600)
        def waits():
            meet("1")
            with Held("a"):
                sign("2")
        """,
        """
        both = start(dies), start(waits)
        meet("1")
        pause(3)
        both[0].kill()
        meet("2")
        for process in both:
            process.join()
        """,
    ),
    "the other process gives it back": (
        """
        def slow():
            with Held("a"):
                sign("1")
                pause(4)
        """,
        """
        process = start(slow)
        meet("1")
        with Held("b"), Held("a"):
            pass
        process.join()
        """,
    ),
    "a forked child gives its parent's lock back": (
        """
        def child():
            with open("b", "w") as file:
                meet("1")
                pause(3)
                flock(GIVEN, LOCK_UN)
                flock(file, LOCK_EX)
        """,
        """
        GIVEN = open("a", "w")
        flock(GIVEN, LOCK_EX)
        held = open("b", "w")
        flock(held, LOCK_EX)
        process = start(child)
        sign("1")
        other = open("a", "w")
        flock(other, LOCK_EX)
        flock(held, LOCK_UN)
        process.join()
        """,
    ),
}


@pytest.mark.parametrize("case", SOUND.values(), ids=SOUND)
def test_h08_ordinary_use_of_files_between_processes_is_silent(runner: Any, case: tuple[str, str]) -> None:
    functions, main = case

    silent(runner, "fork", functions, main, stall_after=1)


# ---------------------------------------------------------------- long waits


@pytest.mark.parametrize("lock", ["flock", "lockf"])
def test_h08_who_waits_long_for_a_file_of_another_process_is_told_who_has_it(runner: Any, lock: str) -> None:
    functions = f"""
    def slow():
        with Held("a", {lock}):
            sign("1")
            pause(5)
    """
    main = f"""
    process = start(slow)
    meet("1")
    with Held("a", {lock}):
        pass
    process.join()
    print(process.pid)
    """

    outcome = runner.ends(program("fork", functions, main), shape="install", long_wait=2)

    finding = outcome.only
    pid = int(outcome.stdout.split()[0])
    assert (finding["kind"], finding["confidence"]) == ("long-wait", "hint")
    assert f"(pid {pid})" in finding["title"]
    assert [(a["role"], a["pid"]) for a in finding["actors"] if a["role"] == "bystander"] == [("bystander", pid)]


def test_h08_a_file_of_another_program_is_no_long_wait_of_this_one(runner: Any) -> None:
    main = """
    code = "import fcntl, os; f = open('a', 'w'); fcntl.flock(f, 2); os.open('here-1', os.O_CREAT); import time; time.sleep(5)"
    if os.fork() == 0:
        os.setsid()
        subprocess.Popen([sys.executable, "-S", "-c", code])
        os._exit(0)
    os.wait()
    meet("1")
    with Held("a"):
        pass
    """

    silent(runner, "fork", "", main, long_wait=2)


# ---------------------------------------------------------------- the board


def test_h08_a_program_that_waits_for_files_leaves_no_board_behind(runner: Any) -> None:
    main = """
    pids = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            with Held("a"):
                pause(2)
            os._exit(0)
        pids.append(pid)
    until(lambda: any(str(os.getpid()) in name for name in os.listdir("/dev/shm")))
    for pid in pids:
        os.waitpid(pid, 0)
    print(os.getpid())
    """

    outcome = runner.silent(program("fork", "", main), shape="install")

    assert not glob.glob(f"/dev/shm/concagent-board-*-{outcome.stdout.split()[0]}-*")


def test_h08_a_process_without_relatives_makes_no_board(runner: Any) -> None:
    main = """
    code = "import fcntl; f = open('a', 'w'); fcntl.flock(f, 2); print(1, flush=True); input()"
    if os.fork() == 0:  # a stranger: it has become a child of init
        os.setsid()
        if os.fork() == 0:
            subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=open("out", "w"))
            pause(4)
        os._exit(0)
    os.wait()
    until(lambda: os.path.exists("out") and os.path.getsize("out"))
    with Held("a"):
        pass
    assert not [name for name in os.listdir("/dev/shm") if f"-{os.getpid()}-" in name]
    """

    runner.silent(program("fork", "", main), shape="install")
