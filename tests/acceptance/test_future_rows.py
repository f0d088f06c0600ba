"""Rows F44-F47, E17, L04 and their kin: waits for futures of thread pools, through which tasks wait for each other.

Each shape is found with the workers as its members and whoever waits for them from outside behind; each has its twin that
differs by one worker, one time-out or the order of two lines, and is silent.
"""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

HEAD = """
    from concurrent import futures
    from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
    import threading, time
    from scaffold import Gate, Meeting, finish, pause, until, waiting
    def answer(*_):
        return 42
    """
F44 = """
    pool = ThreadPoolExecutor({workers}, thread_name_prefix="pool")
    def outer():
        return pool.submit(answer).result()
    assert pool.submit(outer).result() == 42
    """
F45 = """
    pool = ThreadPoolExecutor({workers}, thread_name_prefix="pool")
    meeting = Meeting(2)
    def outer():
        meeting.wait()
        return pool.submit(answer).result()
    tasks = [pool.submit(outer) for _ in range(2)]
    assert [task.result() for task in tasks] == [42, 42]
    """
F47 = """
    pool = ThreadPoolExecutor(2, thread_name_prefix="pool")
    both, tasks = Gate(), []
    def one():
        both.wait()
        return tasks[1].result()
    def two():
        both.wait()
        return {two}
    tasks += [pool.submit(one), pool.submit(two)]
    both.open()
    assert tasks[0].result() == 42
    """


def program(body: str, **values: Any) -> str:
    text = textwrap.dedent(HEAD) + textwrap.dedent(body)
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text + "from concagent import state; assert not state.errors(), state.error_texts()\nfinish()\n"


def assert_found(found: dict[str, Any], members: list[str], behind: list[str]) -> None:
    """Check a proven deadlock of these threads, told in time."""
    assert (found["kind"], found["confidence"]) == ("deadlock", "proven"), found["title"]
    roles = {role: sorted(a["name"] for a in found["actors"] if a["role"] == role) for role in ("member", "behind")}
    assert roles == {"member": members, "behind": behind}, found["title"]


def test_f44_a_task_that_waits_for_a_task_of_its_full_pool_is_a_deadlock_of_one(runner: Any, shape: str) -> None:
    outcome = runner.hangs(program(F44, workers=1), shape=shape)

    assert_found(outcome.only, ["pool_0"], ["MainThread"])
    assert outcome.only["resource_kind"] == "future"
    assert "answer()" in outcome.only["title"]
    assert "the only worker is busy" in outcome.only["title"]


def test_f45_two_tasks_that_wait_for_a_third_worker_are_a_deadlock_of_two(runner: Any) -> None:
    outcome = runner.hangs(program(F45, workers=2))

    assert_found(outcome.only, ["pool_0", "pool_1"], ["MainThread"])


def test_f46_with_one_worker_more_they_finish(runner: Any) -> None:
    runner.silent(program(F45, workers=3))
    runner.silent(program(F44, workers=2))


def test_f47_futures_that_wait_for_each_other_are_a_deadlock_of_two(runner: Any) -> None:
    outcome = runner.hangs(program(F47, two="tasks[0].result()"))

    assert_found(outcome.only, ["pool_0", "pool_1"], ["MainThread"])


@pytest.mark.parametrize("two", ["42", "pause(1.3) or 42"])
def test_f47_a_chain_of_futures_finishes(runner: Any, two: str) -> None:
    runner.silent(program(F47, two=two))


def test_e17_a_task_that_waits_for_its_own_future_is_a_deadlock_of_one(runner: Any) -> None:
    body = """
    pool, known, tasks = ThreadPoolExecutor(1, thread_name_prefix="pool"), Gate(), []
    def outer():
        known.wait()
        return tasks[0].result()
    tasks.append(pool.submit(outer))
    known.open()
    tasks[0].result()
    """

    outcome = runner.hangs(program(body))

    assert_found(outcome.only, ["pool_0"], ["MainThread"])


def test_e17_a_future_that_somebody_else_completes_is_awaited_in_silence(runner: Any) -> None:
    body = """
    pool, promise = ThreadPoolExecutor(1), Future()
    threading.Timer(1.3, promise.set_result, [42]).start()
    assert pool.submit(promise.result).result() == 42
    """

    runner.silent(program(body))


def test_e17_main_joins_a_thread_that_joins_main(runner: Any, assert_deadlock: Any) -> None:
    body = "threading.Thread(target=threading.main_thread().join, name='one').start(); waiting(1)\n"
    body += "next(t for t in threading.enumerate() if t.name == 'one').join()\n"

    outcome = runner.hangs(program(body))

    assert_deadlock(outcome.only, 2)


def test_e17_main_ends_while_a_thread_joins_it_with_a_limit(runner: Any) -> None:
    body = (
        "thread = threading.Thread(target=threading.main_thread().join, args=(0.5,)); thread.start(); thread.join()\n"
    )

    runner.silent(program(body))


WAITS = {
    "wait for all": "futures.wait(inner)",
    "wait for the first": "futures.wait(inner, return_when=futures.FIRST_COMPLETED)",
    "wait for the first exception": "futures.wait(inner, return_when=futures.FIRST_EXCEPTION)",
    "as_completed": "list(as_completed(inner))",
    "exception": "inner[0].exception()",
    "map": "list(pool.map(answer, range(3)))",
}
NESTED = """
    pool, meeting = ThreadPoolExecutor({workers}, thread_name_prefix="pool"), Meeting(2)
    def outer():
        meeting.wait()
        inner = [pool.submit(answer) for _ in range(3)]
        {how}
    for task in [pool.submit(outer) for _ in range(2)]:
        task.result()
    """


@pytest.mark.parametrize("how", WAITS.values(), ids=WAITS)
def test_f45_every_way_to_wait_for_futures_is_seen(runner: Any, how: str) -> None:
    outcome = runner.hangs(program(NESTED, workers=2, how=how))

    assert_found(outcome.only, ["pool_0", "pool_1"], ["MainThread"])


@pytest.mark.parametrize("how", WAITS.values(), ids=WAITS)
def test_f46_every_way_to_wait_for_futures_comes_through_with_a_free_worker(runner: Any, how: str) -> None:
    runner.silent(program(NESTED, workers=3, how=how))


MIXED = """
    stuck, helper = ThreadPoolExecutor(1, thread_name_prefix="stuck"), ThreadPoolExecutor(1)
    def outer():
        inner = [stuck.submit(answer), helper.submit({task})]
        return futures.wait(inner, return_when=futures.{which})
    stuck.submit(outer).result()
    """


def test_f45_all_of_several_futures_are_stuck_if_one_is(runner: Any) -> None:
    outcome = runner.hangs(program(MIXED, task="pause, 600", which="ALL_COMPLETED"))

    assert_found(outcome.only, ["stuck_0"], ["MainThread"])


def test_f46_the_first_of_several_futures_is_enough(runner: Any) -> None:
    runner.silent(program(MIXED, task="pause, 1.3", which="FIRST_COMPLETED"))


def test_f45_shutdown_joins_the_workers_of_the_full_pool(runner: Any) -> None:
    body = F44.replace(
        "assert pool.submit(outer).result() == 42", "pool.submit(outer)\n    waiting(1, 'condition')\n    {end}"
    )

    outcome = runner.hangs(program(body, workers=1, end="pool.shutdown()"))

    assert_found(outcome.only, ["pool_0"], ["MainThread"])


def test_f45_a_future_and_a_lock_that_its_task_needs(runner: Any) -> None:
    body = """
    pool, lock = ThreadPoolExecutor(1, thread_name_prefix="pool"), threading.Lock()
    def work():
        with lock:
            return 42
    {before}
    with lock:
        task = pool.submit(work)
        {inside}
    assert task.result() == 42
    """

    outcome = runner.hangs(program(body, before="", inside="task.result()"))
    assert_found(outcome.only, ["MainThread", "pool_0"], [])

    runner.silent(program(body, before="", inside="pass"))


SOUND = {
    "a long task": "pool = ThreadPoolExecutor(1); assert pool.submit(pause, 1.3).result() is None",
    "a long queue": "pool = ThreadPoolExecutor(1); futures.wait([pool.submit(pause, 0.02) for _ in range(70)])",
    "a pool that is idle while everybody waits": """
    pool = ThreadPoolExecutor(2)
    pool.submit(answer).result()
    done = threading.Event()
    threading.Timer(1.3, done.set).start()
    done.wait()
    """,
    "workers of a pool that is gone": """
    def use():
        pool = ThreadPoolExecutor(2)
        list(pool.map(answer, range(5)))
    use()
    pause(1.3)
    """,
    "workers that another thread's wait would be alone with": """
    pool = ThreadPoolExecutor(2)
    pool.submit(answer).result()
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    pause(1.3)
    """,
    "a time-out breaks it": """
    pool = ThreadPoolExecutor(1)
    def outer():
        try:
            return pool.submit(answer).result(1.3)
        except futures.TimeoutError:
            return 42
    assert pool.submit(outer).result() == 42
    """,
    "a task that was cancelled": """
    pool, gate = ThreadPoolExecutor(1), Gate()
    pool.submit(gate.wait)
    task = pool.submit(answer)
    threading.Timer(1.3, task.cancel).start()
    try:
        task.result()
    except futures.CancelledError:
        gate.open()
    """,
    "a pool that was shut down with tasks in it": """
    pool = ThreadPoolExecutor(1)
    tasks = [pool.submit(pause, 0.4) for _ in range(4)]
    pool.shutdown(wait=False)
    assert [task.result() for task in tasks] == [None] * 4
    """,
    "an initializer that fails": """
    import logging
    logging.disable()
    def fail():
        raise ValueError
    task = ThreadPoolExecutor(1, initializer=fail).submit(pause, 1)
    assert isinstance(task.exception(), futures.thread.BrokenThreadPool)
    """,
    "an initializer that takes its time": """
    assert ThreadPoolExecutor(1, initializer=pause, initargs=(1.3,)).submit(answer).result() == 42
    """,
    "a subclass with a queue of its own": """
    import queue
    class Last(ThreadPoolExecutor):
        def __init__(self, *args):
            super().__init__(*args)
            self._work_queue = queue.LifoQueue()
    pool = Last(1)
    assert [t.result() for t in [pool.submit(answer), pool.submit(pause, 1.3)]] == [42, None]
    """,
    "a subclass that helps itself": """
    class Helping(ThreadPoolExecutor):
        def _adjust_thread_count(self):
            super()._adjust_thread_count()
            if self._work_queue.qsize() > 1:
                self._max_workers += 1
                super()._adjust_thread_count()
    pool = Helping(1)
    def outer():
        task = pool.submit(answer)
        pool.submit(answer)
        return task.result()
    assert pool.submit(outer).result() == 42
    """,
    "a future of a subclass": """
    class Mine(Future):
        def result(self, timeout=None):
            return super().result(timeout)
    mine = Mine()
    threading.Timer(1.3, mine.set_result, [42]).start()
    assert mine.result() == 42
    """,
    "a process pool": """
    if __name__ == "__main__":
        with futures.ProcessPoolExecutor(1) as pool:
            assert pool.submit(time.sleep, 1.3).result() is None
            assert futures.wait([pool.submit(abs, 1)]).done
    """,
    "an exception": """
    def fail():
        pause(0.3)
        raise KeyError
    pool = ThreadPoolExecutor(1)
    assert all(isinstance(pool.submit(fail).exception(), KeyError) for _ in range(5))
    """,
}


@pytest.mark.parametrize("body", SOUND.values(), ids=SOUND)
def test_f46_sound_programs_with_futures_are_silent(runner: Any, body: str) -> None:
    runner.silent(program(body if body.startswith("\n") else f"\n    {body}\n"))


def test_a_long_task_that_waits_for_work_is_no_long_wait(runner: Any) -> None:
    body = """
    import queue
    work = queue.Queue()
    pool = ThreadPoolExecutor(1)
    task = pool.submit(work.get)
    threading.Timer(1.8, work.put, [42]).start()
    assert task.result() == 42
    """

    runner.silent(program(body), long_wait=0.5)


HAND_OVERS = {
    "queue": "q = __import__('queue').Queue(); start(lambda: (pause(0.6), q.put(1))); q.get()",
    "event": "e = threading.Event(); start(lambda: (pause(0.6), e.set())); e.wait()",
    "condition": """
    c, there = threading.Condition(), []
    def give():
        pause(0.6)
        with c:
            there.append(1)
            c.notify()
    start(give)
    with c:
        c.wait_for(lambda: there)
    """,
    "barrier": "b = threading.Barrier(2); start(lambda: (pause(0.6), b.wait())); b.wait()",
    "future": "f = Future(); start(lambda: (pause(0.6), f.set_result(1))); f.result()",
}


@pytest.mark.parametrize("body", HAND_OVERS.values(), ids=HAND_OVERS)
def test_l04_a_hand_over_is_silent(runner: Any, body: str) -> None:
    start = "\n    start = lambda f: threading.Thread(target=f).start()\n"
    runner.silent(program(start + (body if body.startswith("\n") else f"    {body}\n")))
