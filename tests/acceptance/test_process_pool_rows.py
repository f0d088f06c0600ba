"""A pool of processes whose worker was killed with a task: its result never comes; with silent twins."""

from __future__ import annotations

import sys
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the Linux kernel")

PROGRAM = """
    import multiprocessing as mp, os, signal, threading, time
    def job(number):
        {job}
        return number
    def slow(number):
        time.sleep(2.5)
    def main():
        pool = mp.get_context("{method}").Pool(2)
        {call}
        pool.terminate()
        print("DONE", flush=True)
    if __name__ == "__main__":
        main()
"""
KILL = "if number == 3: os.kill(os.getpid(), signal.SIGKILL)"
CALLS = {
    "map": "pool.map(job, range(6), chunksize=1)",
    "apply": "pool.apply_async(job, (3,)).get()",
    "imap": "list(pool.imap(job, range(6)))",
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_the_result_of_a_task_whose_worker_was_killed_never_comes(runner: Any, method: str, call: str) -> None:
    outcome = runner.hangs(PROGRAM.format(method=method, job=KILL, call=CALLS[call]))

    found = outcome.only
    assert (found["kind"], found["confidence"], found["resource_kind"]) == ("stall", "proven", "future")
    assert [actor["name"] for actor in found["actors"] if actor["role"] == "member"] == ["MainThread"]
    assert "lost with its worker: none of 2 workers has it" in found["title"]


@pytest.mark.parametrize(
    ("job", "call"),
    [
        ("time.sleep(2.5)", CALLS["apply"]),
        ("threading.Thread(target=time.sleep, args=(1,)).start(); time.sleep(1.5)", CALLS["map"]),
        ("pass", "pool.apply_async(job, (1,), callback=slow).get()"),
        ("pass", "list(pool.imap(job, (time.sleep(1.4) or number for number in range(2))))"),
        ("print(end=''); time.sleep(1.6)", CALLS["imap"]),
    ],
    ids=["a slow task", "tasks with threads", "a slow callback", "a slow iterable", "a slow imap"],
)
def test_twin_a_result_that_takes_its_time_is_waited_for_in_silence(runner: Any, job: str, call: str) -> None:
    runner.silent(PROGRAM.format(method="fork", job=job, call=call))


def test_twin_a_task_that_waits_for_another_process_is_no_lost_one(runner: Any) -> None:
    runner.silent(
        """
        import multiprocessing as mp, threading, time
        ready = mp.get_context("fork").Event()
        def job(number):
            ready.wait()
            return number
        def main():
            pool = mp.get_context("fork").Pool(2)
            threading.Timer(2.5, ready.set).start()
            print(pool.map(job, range(2)))
            pool.terminate()
        if __name__ == "__main__":
            main()
        """
    )


def test_twin_a_pool_of_threads_is_none_of_processes(runner: Any) -> None:
    runner.silent(
        """
        import time
        from multiprocessing.pool import ThreadPool
        from concagent import state
        pool = ThreadPool(2)
        pool.map(lambda number: time.sleep(1.3), range(4))
        pool.terminate()
        assert state.errors() == (), state.error_texts()
        """
    )
