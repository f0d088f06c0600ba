"""Rows F01, F02, F41, F51, F52: waits that nothing alive can end, while the rest of the program is busy."""

from __future__ import annotations

from typing import Any

import pytest

SOON = {"stall_after": 0.4}

BUSY = """
    import threading, time, queue
    import concagent
    from scaffold import finish, pause, until
"""


def stall(outcome: Any, confidence: str = "proven", kind: str = "stall") -> dict[str, Any]:
    (found,) = [f for f in outcome.findings if f["kind"] in {"stall", "deadlock"}]
    assert (found["kind"], found["confidence"]) == (kind, confidence)
    return found


def names(found: dict[str, Any], role: str = "member") -> list[str]:
    return sorted(actor["name"] for actor in found["actors"] if actor["role"] == role)


STRANDED = {
    "condition": ("threading.Condition()", "with it: it.wait()"),
    "event": ("threading.Event()", "it.wait()"),
    "semaphore": ("threading.Semaphore(0)", "it.acquire()"),
    "queue": ("queue.Queue()", "it.get()"),
    "lock": ("threading.Lock()", "it.acquire(); it.acquire()"),
}


@pytest.mark.parametrize("kind", STRANDED)
@pytest.mark.parametrize("given", ["argument", "closure"])
def test_f01_only_the_waiter_refers_to_what_it_waits_for(runner: Any, kind: str, given: str) -> None:
    make, wait = STRANDED[kind]
    start = (
        f"def work(it):\n        {wait}\n    def begin(): threading.Thread(target=work, args=({make},), name='W').start()"
        if given == "argument"
        else f"def begin():\n        it = {make}\n        def work():\n            {wait}\n"
        "        threading.Thread(target=work, name='W').start()"
    )
    outcome = runner.hangs(
        f"""{BUSY}
    {start}
    begin()
    while True:
        time.sleep(0.05)
    """,
        shape="install",
        **SOON,
    )

    found = stall(outcome, kind="deadlock" if kind == "lock" else "stall")
    assert names(found) == ["W"]
    assert found["reason"].startswith("nothing alive refers any more")


@pytest.mark.parametrize("kind", STRANDED)
def test_f01_twin_a_global_refers_to_it(runner: Any, kind: str) -> None:
    make, wait = STRANDED[kind]
    runner.silent(
        f"""{BUSY}
    it = {make}
    def work():
        {wait}
    threading.Thread(target=work, daemon=True).start()
    pause(2.5)
    finish()
    """,
        shape="install",
        **SOON,
    )


def test_f02_the_only_path_that_notifies_has_ended(runner: Any) -> None:
    outcome = runner.hangs(
        f"""{BUSY}
    def begin():
        ready = threading.Condition()
        def waiter():
            with ready:
                ready.wait()
        def notifier(early):
            if early:
                return
            with ready:
                ready.notify()
        threading.Thread(target=waiter, name="waiter").start()
        thread = threading.Thread(target=notifier, args=(True,))
        thread.start()
        thread.join()
    begin()
    while True:
        time.sleep(0.05)
    """,
        shape="install",
        **SOON,
    )

    assert names(stall(outcome)) == ["waiter"]


def test_f02_twin_the_notifier_is_still_at_work(runner: Any) -> None:
    runner.silent(
        f"""{BUSY}
    def begin():
        ready = threading.Condition()
        def waiter():
            with ready:
                ready.wait()
        def notifier():
            pause(2.5)
            with ready:
                ready.notify()
        threads = [threading.Thread(target=waiter), threading.Thread(target=notifier)]
        for thread in threads:
            thread.start()
    begin()
    pause(3)
    finish()
    """,
        shape="install",
        **SOON,
    )


def test_f41_the_only_thread_that_ever_released_has_ended(runner: Any) -> None:
    outcome = runner.hangs(
        f"""{BUSY}
    def begin():
        permits = threading.Semaphore(0)
        def taker():
            permits.acquire()
            permits.acquire()
        def giver():
            permits.release()
        threading.Thread(target=taker, name="taker").start()
        threading.Thread(target=giver).start()
    begin()
    while True:
        time.sleep(0.05)
    """,
        shape="install",
        **SOON,
    )

    assert names(stall(outcome)) == ["taker"]


F51 = f"""{BUSY}
    def work(jobs):
        jobs.get()
    def begin():
        global jobs
        jobs = queue.Queue()
        threading.Thread(target=work, args=(jobs,), name="W").start()
    begin()
    {{after}}
    while True:
        time.sleep(0.05)
    """


@pytest.mark.parametrize("asked", ["signal", "call"])
def test_f51_a_queue_that_only_its_getter_refers_to_is_proven_when_somebody_asks(runner: Any, asked: str) -> None:
    program = F51.format(
        after="del jobs; pause(0.3); finish('READY')"
        + ("\n    while not concagent.check(): pause(0.2)" if asked == "call" else "")
    )
    child = runner.start(program, shape="install", stall_after=60)
    if asked == "signal":
        assert child.until(lambda: "READY" in child.stdout())
        child.signal()
    child.wait_for_findings(1)

    found = stall(child.end())
    assert names(found) == ["W"]


@pytest.mark.parametrize("asked", ["signal", "call"])
def test_f52_a_queue_in_a_global_is_suspected_when_somebody_asks_and_the_global_is_named(
    runner: Any, asked: str
) -> None:
    program = F51.format(
        after="pause(0.9); finish('READY')"
        + ("\n    while not concagent.check(): pause(0.2)" if asked == "call" else "")
    )
    child = runner.start(program, shape="install", stall_after=0.3)
    if asked == "signal":
        assert child.until(lambda: "READY" in child.stdout())
        child.signal()
    child.wait_for_findings(1)

    found = stall(child.end(), "suspected")
    assert names(found) == ["W"]
    assert "__main__.jobs" in found["reason"]


def test_f52_twin_nobody_asks_and_nothing_is_said(runner: Any) -> None:
    runner.silent(F51.format(after="pause(2.5); jobs.put(1); finish(); raise SystemExit"), shape="install", **SOON)


@pytest.mark.parametrize(
    "idle",
    [
        "pool = concurrent.futures.ThreadPoolExecutor(2); list(pool.map(abs, [1, 2, 3]))",
        "for _ in range(2): threading.Thread(target=jobs.get).start()",
        "threading.Thread(target=jobs.get, daemon=True).start()",
        "threading.Thread(target=lambda: [jobs.get() for _ in range(3)]).start(); pause(0.2); jobs.put(1)",
    ],
)
def test_f52_twin_idle_workers_are_not_suspected_when_somebody_asks(runner: Any, idle: str) -> None:
    runner.silent(
        f"""{BUSY}
    import concurrent.futures
    jobs = queue.Queue()
    {idle}
    pause(0.8)
    found = concagent.check()
    assert not found, found
    for _ in range(4):
        jobs.put(1)
    finish()
    """,
        shape="install",
        **SOON,
    )


def test_f51_twin_a_queue_that_a_pending_timer_refers_to(runner: Any) -> None:
    runner.silent(
        f"""{BUSY}
    def begin():
        jobs = queue.Queue()
        threading.Thread(target=jobs.get).start()
        threading.Timer(2.5, jobs.put, [1]).start()
    begin()
    pause(3)
    finish()
    """,
        shape="install",
        **SOON,
    )


F53 = f"""{BUSY}
    import asyncio, gc
    async def alone():
        await asyncio.get_running_loop().create_future()
    async def main():
        task = asyncio.create_task(alone(), name="alone")
        {{keep}}
        del task
        for _ in range(50):
            await asyncio.sleep(0.05)
        finish()
    asyncio.run(main())
    """


def test_f53_a_task_that_awaits_a_future_nobody_else_refers_to_is_proven_when_somebody_asks(runner: Any) -> None:
    program = F53.format(keep="kept.append(task)").replace("async def main():", "kept = []\n    async def main():")
    asked = program.replace(
        "        finish()", "        while not await asyncio.to_thread(concagent.check): pass\n        finish()"
    )
    outcome = runner.ends(asked, shape="install", **SOON)

    assert names(stall(outcome)) == ["alone"]


def test_f53_twin_somebody_has_the_future(runner: Any) -> None:
    runner.silent(
        F53.format(keep="await asyncio.sleep(0); kept.append(task._fut_waiter)").replace(
            "async def main():", "kept = []\n    async def main():"
        ),
        shape="install",
        **SOON,
    )


POOL_OF_ONE = """
    import queue, socket, threading
    from scaffold import finish, pause
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=server.accept, daemon=True).start()  # somebody is alive

    class Pool:
        def __init__(self):
            self.idle = queue.LifoQueue(1)
            self.idle.put(object())
        def use(self, retries):
            connection = self.idle.get()
            if retries:
                {{before}}{{again}}  # with the connection in hand
            {{after}}
            finish()

    def main():
        Pool().use(1)
    main()
    """.replace("{{", "{").replace("}}", "}")


@pytest.mark.parametrize(
    "again",
    [
        "self.use(retries - 1)",
        "self.use(retries=retries - 1)",
        "getattr(self, 'use')(retries - 1)",
        "self.use(*[retries - 1])",
        "self.use(**{'retries': retries - 1})",
    ],
)
def test_a_pool_that_its_only_user_has_emptied_is_a_stall_of_the_main_thread(runner: Any, again: str) -> None:
    program = POOL_OF_ONE.format(again=again, before="", after="self.idle.put(connection)")
    found = stall(runner.hangs(program, shape="install", **SOON))

    assert names(found) == ["MainThread"]
    assert "(empty, 1 taken)" in found["title"]


def test_twin_a_pool_whose_user_gives_back_before_he_tries_again_is_silent(runner: Any) -> None:
    back = "self.idle.put(connection); "
    runner.silent(
        POOL_OF_ONE.format(again="self.use(retries - 1)", before=back, after="pause(1)"), shape="install", **SOON
    )
