"""Rows H01-H04 and H07: deadlocks and orphans between processes, on all start methods, each with its silent twin."""

from __future__ import annotations

import glob
import sys
import textwrap
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is a board on Linux only")

LIMIT_SECONDS = 40.0  # several interpreters start one after the other
METHODS = ["fork", "spawn", "forkserver"]
# Children begin with the same first line as their parent, so they install the agent, too.
HEAD = """
    import multiprocessing as mp, os, signal, sys, threading
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

    def meet(here, number):
        until(lambda: sum(here) >= number)

    def nest(outer, inner, here, me, number):
        with outer:
            here[me] = 1
            meet(here, number)
            with inner:
                pass
        here[me] = 2

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


# ---------------------------------------------------------------- H01, H02


@pytest.mark.parametrize("method", METHODS)
def test_h01_two_processes_in_opposite_order_are_one_deadlock(runner: Any, method: str) -> None:
    main = """
    a, b, here = CTX.Lock(), CTX.Lock(), CTX.RawArray("i", 2)
    both = start(nest, a, b, here, 0, 2), start(nest, b, a, here, 1, 2)
    told()
    print(*(process.pid for process in both))
    end(*both)
    """

    outcome = runner.ends(program(method, "", main), shape="install")

    finding = outcome.only
    roles = [actor["role"] for actor in finding["actors"]]
    assert (finding["kind"], finding["confidence"]) == ("deadlock", "proven")
    assert (roles, finding["resource_kind"]) == (["member", "member"], "mp-lock")
    assert sorted(members(finding)) == sorted(int(word) for word in outcome.stdout.split()[:2])
    assert all("with inner" in str(actor["stack"]) for actor in finding["actors"])
    assert all(r["holders"][0]["acquired"]["function"] == "nest" for r in finding["resources"])
    assert outcome.returncode == 0, outcome.stderr[-2000:]


def test_h01_two_rlocks_in_opposite_order_are_one_deadlock(runner: Any) -> None:
    main = """
    a, b, here = CTX.RLock(), CTX.RLock(), CTX.RawArray("i", 2)
    both = start(nest, a, b, here, 0, 2), start(nest, b, a, here, 1, 2)
    told()
    end(*both)
    """

    finding = found(runner, "fork", "", main)

    assert (finding["kind"], finding["confidence"], finding["resource_kind"]) == ("deadlock", "proven", "mp-rlock")


@pytest.mark.parametrize("method", METHODS)
def test_h01_twin_two_processes_in_one_order_are_silent(runner: Any, method: str) -> None:
    functions = """
    def slowly(outer, inner):
        with outer, inner:
            pause(1.5)
    """
    main = """
    a, b = CTX.Lock(), CTX.Lock()
    both = start(slowly, a, b), start(slowly, a, b)
    for process in both:
        process.join()
    """

    silent(runner, method, functions, main)


def test_h01_twin_a_wait_with_a_time_limit_is_no_part_of_a_deadlock(runner: Any) -> None:
    functions = """
    def patiently(outer, inner, here, me):
        with outer:
            here[me] = 1
            meet(here, 2)
            inner.acquire(True, 2.5)
    """
    main = """
    a, b, here = CTX.Lock(), CTX.Lock(), CTX.RawArray("i", 2)
    both = start(patiently, a, b, here, 0), start(nest, b, a, here, 1, 2)
    for process in both:
        process.join()
    """

    silent(runner, "fork", functions, main)


@pytest.mark.parametrize("method", METHODS)
def test_h02_four_processes_in_a_ring_are_one_deadlock(runner: Any, method: str) -> None:
    main = """
    locks, here = [CTX.Lock() for _ in range(4)], CTX.RawArray("i", 4)
    ring = [start(nest, locks[i], locks[(i + 1) % 4], here, i, 4) for i in range(4)]
    told()
    end(*ring)
    """

    finding = found(runner, method, "", main)

    assert (finding["kind"], finding["confidence"]) == ("deadlock", "proven")
    assert len(set(members(finding))) == 4


def test_h02_twin_four_processes_of_which_one_turns_round_are_silent(runner: Any) -> None:
    functions = """
    def dine(first, second, here, me):
        here[me] = 1
        meet(here, 4)
        with first:
            pause(0.4)
            with second:
                pause(0.2)
    """
    main = """
    locks, here = [CTX.Lock() for _ in range(4)], CTX.RawArray("i", 4)
    pairs = [(locks[i], locks[(i + 1) % 4]) if i < 3 else (locks[0], locks[3]) for i in range(4)]
    ring = [start(dine, *pairs[i], here, i) for i in range(4)]
    for process in ring:
        process.join()
    """

    silent(runner, "fork", functions, main)


# ---------------------------------------------------------------- H03, H04

HOLD = """
    def keep(lock, here):
        with lock:
            here[0] = 1
            pause(60)

    def want(lock, here=None, me=0):
        if here is not None:
            here[me] = 1
        with lock:
            pass
    """


@pytest.mark.parametrize("method", METHODS)
def test_h03_a_lock_of_a_killed_process_is_an_orphan(runner: Any, method: str) -> None:
    main = """
    lock, here = CTX.Lock(), CTX.RawArray("i", 3)
    holder = start(keep, lock, here)
    meet(here, 1)
    waiters = start(want, lock, here, 1), start(want, lock, here, 2)
    meet(here, 3)
    pause(0.7)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    told()
    print(holder.pid)
    end(*waiters)
    """

    outcome = runner.ends(program(method, HOLD, main), shape="install")

    finding, pid = outcome.only, int(outcome.stdout.split()[0])
    dead = [actor for actor in finding["actors"] if actor["role"] == "bystander"]
    assert (finding["kind"], finding["confidence"]) == ("orphaned-lock", "proven")
    assert [actor["pid"] for actor in dead] == [pid]
    assert f"(pid {pid})" in finding["title"]
    assert finding["resources"][0]["holders"][0]["acquired"]["function"] == "keep"
    assert len(members(finding)) == 2
    assert outcome.returncode == 0, outcome.stderr[-2000:]


@pytest.mark.parametrize("taken_before", [False, True])
def test_h03_a_lock_whose_holder_was_killed_before_he_could_sign_is_an_orphan(runner: Any, taken_before: bool) -> None:
    functions = """
    def take_and_die(lock):
        made = lock._semlock
        made.cell.attempt()
        type(made).__base__.acquire(made, False)  # the original's: nobody signs
        os.kill(os.getpid(), signal.SIGKILL)
    """
    main = f"""
    lock = CTX.Lock()
    if {taken_before}:
        with lock:
            pass
    holder = start(take_and_die, lock)
    holder.join()
    waiters = start(want, lock), start(want, lock)
    told()
    print(holder.pid)
    end(*waiters)
    """

    outcome = runner.ends(program("fork", textwrap.dedent(HOLD) + textwrap.dedent(functions), main), shape="install")

    finding = outcome.only
    assert finding["kind"] == "orphaned-lock"
    assert f"(pid {outcome.stdout.split()[0]})" in finding["title"]


@pytest.mark.parametrize("method", METHODS)
def test_h03_twin_a_lock_given_back_before_the_kill_and_one_held_for_long_are_silent(runner: Any, method: str) -> None:
    functions = """
    def keep(lock, here):
        with lock:
            here[0] = 1
            pause(2.0)
        here[0] = 2
        pause(60)

    def want(lock):
        with lock:
            pass
    """
    main = """
    lock, here = CTX.Lock(), CTX.RawArray("i", 1)
    holder = start(keep, lock, here)
    meet(here, 1)
    waiter = start(want, lock)
    meet(here, 2)
    os.kill(holder.pid, signal.SIGKILL)
    waiter.join()
    holder.join()
    with lock:
        pass
    """

    silent(runner, method, functions, main)


def test_h03_twin_a_lock_that_one_process_takes_and_another_gives_back_is_silent(runner: Any) -> None:
    functions = """
    def take(lock, here):
        lock.acquire()
        here[0] = 1

    def give(lock):
        pause(2.5)
        lock.release()
    """
    main = """
    lock, here = CTX.Lock(), CTX.RawArray("i", 1)
    taker = start(take, lock, here)
    meet(here, 1)
    taker.join()
    giver = start(give, lock)
    with lock:
        pass
    giver.join()
    """

    silent(runner, "fork", functions, main)


def test_h03_twin_a_lock_that_a_plain_fork_leaves_in_another_process_is_silent(runner: Any) -> None:
    main = """
    lock = CTX.Lock()
    if os.fork() == 0:
        with lock:
            if os.fork() != 0:
                os._exit(0)
            pause(2.5)
        os._exit(0)
    os.wait()
    pause(0.2)
    with lock:
        pass
    """

    silent(runner, "fork", "", main)


def test_h04_a_holder_whose_number_another_process_has_now_is_dead(runner: Any) -> None:
    main = """
    lock, here = CTX.Lock(), CTX.RawArray("i", 1)
    holder = start(keep, lock, here)
    meet(here, 1)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    from concagent import shared
    board = shared.board()
    words, cell = board._words, lock._semlock.cell.place
    pause(0.05)  # start times are told in hundredths of a second; no number is given out again that soon
    alive = start(pause, 60)
    words[cell + 1] = alive.pid << 22 | alive.pid  # the number is given out again; the start time differs
    waiter = start(want, lock)
    told()
    end(waiter, alive)
    """

    finding = found(runner, "fork", HOLD, main)

    assert (finding["kind"], finding["confidence"]) == ("orphaned-lock", "proven")


# ---------------------------------------------------------------- H07


@pytest.mark.parametrize("method", METHODS)
def test_h07_a_thread_that_joins_a_child_that_waits_for_its_lock_is_a_deadlock(runner: Any, method: str) -> None:
    main = """
    lock = CTX.Lock()
    children = []
    def work():
        with lock:
            children.append(start(want, lock))
            children[0].join()
    thread = threading.Thread(target=work, name="worker")
    thread.start()
    told()
    end(*children)
    thread.join()
    """

    finding = found(runner, method, HOLD, main)

    assert (finding["kind"], finding["confidence"]) == ("deadlock", "proven")
    assert len(set(members(finding))) == 2
    assert any("worker" in actor["name"] for actor in finding["actors"])


def test_h07_a_ring_through_a_lock_of_threads_is_a_deadlock_of_three(runner: Any) -> None:
    functions = """
    def child(a, b, here):
        with b:
            here[0] = 1
            meet(here, 2)
            with a:
                pass
    """
    main = """
    a, b, here = CTX.Lock(), CTX.Lock(), CTX.RawArray("i", 2)
    inner = threading.Lock()
    other = start(child, a, b, here)
    meet(here, 1)
    ready = Gate()
    def first():
        with a:
            ready.wait()
            with inner:
                pass
    def second():
        with inner:
            ready.open()
            here[1] = 1
            with b:
                pass
    threads = [threading.Thread(target=function) for function in (first, second)]
    for thread in threads:
        thread.start()
    told()
    end(other)
    b.release()
    for thread in threads:
        thread.join()
    """

    finding = found(runner, "fork", functions, main)

    assert (finding["kind"], finding["confidence"]) == ("deadlock", "proven")
    assert len(members(finding)) == 3
    assert len(set(members(finding))) == 2


@pytest.mark.parametrize("method", METHODS)
def test_h07_twin_a_thread_that_gives_its_lock_back_before_it_joins_is_silent(runner: Any, method: str) -> None:
    main = """
    lock = CTX.Lock()
    def work():
        with lock:
            child = start(want, lock)
            pause(2.0)
        child.join()
    thread = threading.Thread(target=work, name="worker")
    thread.start()
    thread.join()
    """

    silent(runner, method, HOLD, main)


# ---------------------------------------------------------------- nothing is left, nothing is made


def boards(pid: str) -> list[str]:
    return glob.glob(f"/dev/shm/concagent-board-*-{pid}-*")


def test_a_program_without_shared_locks_loads_nothing_and_makes_no_file(runner: Any) -> None:
    text = """
    import sys
    import threading
    with threading.Lock():
        pass
    names = {"_multiprocessing", "multiprocessing", "concagent.shared", "concagent.board", "concagent.union"}
    assert not names & set(sys.modules), names & set(sys.modules)
    import os
    assert not any(str(os.getpid()) in name for name in os.listdir("/dev/shm") if name.startswith("concagent"))
    """

    runner.silent(text, shape="install")


def test_the_board_goes_with_the_program_and_after_a_kill_with_the_next_one(runner: Any) -> None:
    makes = "import glob, multiprocessing, os, signal\nlock = multiprocessing.Lock()\nprint(os.getpid(), flush=True)\n"
    makes += "assert glob.glob(f'/dev/shm/concagent-board-*-{os.getpid()}-*')\n"

    killed = runner.ends(makes + "os.kill(os.getpid(), signal.SIGKILL)\n", shape="install").stdout.strip()
    ended = runner.silent(makes, shape="install").stdout.strip()

    assert boards(killed) == boards(ended) == []


def test_without_a_place_for_a_board_the_program_runs_and_is_told_once(runner: Any) -> None:
    text = """
    from concagent import board, state
    board.folders = lambda: ["/nonexistent"]
    import multiprocessing
    from concagent import shared
    shared.folders = board.folders
    locks = [multiprocessing.Lock() for _ in range(3)]
    for lock in locks:
        with lock:
            pass
    assert [count for border, count in state.errors() if border == "board"] == [1], state.errors()
    """

    runner.silent(text, shape="install")
