"""Rows E22, E23, F53, F54 and their kin: what asyncio's tasks wait for, and sound programs that look alike.

The agent sees a task only in its looks, so the programs of silent twins live long enough for several.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest

LOOKS = 2.2  # seconds: at least two looks of the monitor

CROSSED = """
    import asyncio

    async def worker(first, second, other_has_its_own):
        async with first:
            await other_has_its_own.wait()
            async with second:
                pass

    async def main():
        a, b, barrier = asyncio.Lock(), asyncio.Lock(), Meeting()
        one = asyncio.create_task(worker(a, b, barrier), name="one")
        two = asyncio.create_task(worker(b, a, barrier), name="two")
        {then}

    class Meeting:
        def __init__(self):
            self.missing, self.all_here = 2, asyncio.Event()
        async def wait(self):
            self.missing -= 1
            if not self.missing:
                self.all_here.set()
            await self.all_here.wait()

    asyncio.run(main())
    """
ENDINGS = {
    "while the loop works on": "while True: await asyncio.sleep(0.05)",
    "while all wait for them": "await asyncio.gather(one, two)",
    "in a wait for both": "await asyncio.wait({one, two})",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_e22_two_tasks_that_await_each_others_locks_are_a_deadlock(
    runner: Any, assert_deadlock: Any, ending: str
) -> None:
    outcome = runner.hangs(CROSSED.format(then=ENDINGS[ending]))

    assert_deadlock(outcome.only, members=2)
    assert outcome.only["resource_kind"] == "asyncio-lock"
    members = [actor for actor in outcome.only["actors"] if actor["role"] == "member"]
    assert {(actor["type"], actor["name"]) for actor in members} == {("task", "one"), ("task", "two")}
    assert all(actor["id"].partition("/")[2].startswith("a") for actor in members)


def test_e22_the_stack_of_a_task_is_its_await_chain(runner: Any) -> None:
    outcome = runner.hangs(
        """
        import asyncio

        async def take(lock):
            async with lock:
                pass

        async def outer(lock):
            await take(lock)

        async def main():
            lock = asyncio.Lock()
            async with lock:
                await asyncio.create_task(outer(lock), name="inner")

        asyncio.run(main())
        """
    )

    stacks = {actor["name"]: [frame["function"] for frame in actor["stack"]] for actor in outcome.only["actors"]}
    inner = [name.rpartition(".")[2] for name in stacks["inner"]]
    assert inner[:2] == ["outer", "take"]
    assert inner[-1] == "acquire"


@pytest.mark.parametrize("ending", ["await asyncio.wait({one, two}, timeout=2.5)", "await asyncio.sleep(2.5)"])
def test_e22_twin_tasks_that_a_timer_cancels_are_silent(runner: Any, ending: str) -> None:
    runner.silent(
        CROSSED.format(then=ending + "; one.cancel(); two.cancel()"),
    )


TIMED = {
    "wait_for": "await asyncio.wait_for(second.acquire(), 2.5); second.release()",
    "call_later": """loop, me = asyncio.get_running_loop(), asyncio.current_task()
            loop.call_later(2.5, lambda: me.cancel())
            await second.acquire()""",
}
if sys.version_info >= (3, 11):
    TIMED["timeout"] = """async with asyncio.timeout(2.5):
                await second.acquire()"""


@pytest.mark.parametrize("how", TIMED)
def test_e22_twin_a_time_limit_in_the_ring_is_silent(runner: Any, how: str) -> None:
    program = CROSSED.replace("async with second:\n                pass", TIMED[how])
    runner.silent(program.format(then="await asyncio.wait({one, two})"))


def test_e22_twin_tasks_that_take_turns_are_silent(runner: Any) -> None:
    runner.silent(
        f"""
        import asyncio, time

        async def worker(a, b, until):
            while time.monotonic() < until:
                async with a:
                    await asyncio.sleep(0.001)
                    async with b:
                        await asyncio.sleep(0.001)

        async def main():
            a, b, until = asyncio.Lock(), asyncio.Lock(), time.monotonic() + {LOOKS}
            await asyncio.gather(*(worker(a, b, until) for _ in range(20)))

        asyncio.run(main())
        """
    )


def test_e22_a_lock_held_through_a_context_manager_function_counts(runner: Any, assert_deadlock: Any) -> None:
    outcome = runner.hangs(
        """
        import asyncio, contextlib

        @contextlib.asynccontextmanager
        async def holding(lock):
            async with lock:
                yield

        async def worker(first, second, mine, other):
            async with contextlib.AsyncExitStack() as stack:
                await stack.enter_async_context(holding(first))
                mine.set()
                await other.wait()
                async with second:
                    pass

        async def main():
            a, b, x, y = asyncio.Lock(), asyncio.Lock(), asyncio.Event(), asyncio.Event()
            await asyncio.gather(worker(a, b, x, y), worker(b, a, y, x))

        asyncio.run(main())
        """
    )

    assert_deadlock(outcome.only, members=2)


def test_a_task_that_takes_its_own_lock_again_is_a_deadlock(runner: Any, assert_deadlock: Any) -> None:
    outcome = runner.hangs(
        """
        import asyncio

        async def main():
            lock = asyncio.Lock()
            async with lock:
                async with lock:
                    pass

        asyncio.run(main())
        """
    )

    assert_deadlock(outcome.only, members=1)


# ---------------------------------------------------------------- threads and tasks

E23 = """
    import asyncio, threading
    lock = threading.Lock()

    async def holder():
        with lock:
            await asyncio.sleep({held})

    async def blocker():
        await asyncio.sleep(0.05)
        lock.acquire({limit})

    async def main():
        await asyncio.gather(*(asyncio.create_task(f(), name=f.__name__) for f in (holder, blocker)))

    threading.Thread(target=__import__("time").sleep, args=(30,), daemon=True).start()
    asyncio.run(main())
    """


def test_e23_a_thread_lock_kept_over_an_await_blocks_its_own_loop(runner: Any, assert_deadlock: Any) -> None:
    outcome = runner.hangs(E23.format(held=0.2, limit=""))

    assert_deadlock(outcome.only, members=2, behind=2)
    members = [(a["type"], a["name"]) for a in outcome.only["actors"] if a["role"] == "member"]
    assert sorted(members) == [("task", "holder"), ("thread", "MainThread")]
    assert "event loop" in outcome.only["title"]


def test_e23_twin_a_lock_taken_with_a_time_limit_is_silent(runner: Any) -> None:
    runner.silent(E23.format(held=0.2, limit="timeout=2.5"))


def test_e23_twin_a_lock_given_back_before_the_other_comes_is_silent(runner: Any) -> None:
    runner.silent(E23.format(held=0.01, limit=""))


def test_a_loop_that_waits_for_its_own_task_from_a_callback_is_a_deadlock(runner: Any) -> None:
    outcome = runner.hangs(
        """
        import asyncio, threading

        async def work():
            return 1

        async def main():
            asyncio.run_coroutine_threadsafe(work(), asyncio.get_running_loop()).result()

        threading.Thread(target=__import__("time").sleep, args=(30,), daemon=True).start()
        asyncio.run(main())
        """
    )

    finding = outcome.only
    assert (finding["kind"], finding["confidence"]) == ("deadlock", "proven")
    assert [a["name"] for a in finding["actors"] if a["role"] == "member"] == ["MainThread"]


def test_a_ring_through_a_thread_and_a_task_is_a_deadlock(runner: Any) -> None:
    outcome = runner.hangs(
        """
        import asyncio, threading
        lock = threading.Lock()

        async def needs(lock):
            with lock:
                pass

        async def main():
            loop = asyncio.get_running_loop()

            def worker():
                with lock:
                    asyncio.run_coroutine_threadsafe(needs(lock), loop).result()

            thread = threading.Thread(target=worker, name="worker", daemon=True)
            thread.start()
            while True:
                await asyncio.sleep(0.05)

        asyncio.run(main())
        """
    )

    finding = outcome.only
    assert (finding["kind"], finding["confidence"]) == ("deadlock", "proven"), finding["title"]
    members = {(a["type"], a["name"]) for a in finding["actors"] if a["role"] == "member"}
    assert {("thread", "MainThread"), ("thread", "worker")} < members
    assert any(kind == "task" for kind, _ in members)


def test_a_thread_that_waits_for_a_task_which_goes_on_is_silent(runner: Any) -> None:
    runner.silent(
        f"""
        import asyncio

        async def slow():
            await asyncio.sleep({LOOKS})

        async def main():
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, lambda: asyncio.run_coroutine_threadsafe(slow(), loop).result())

        asyncio.run(main())
        """
    )


# ---------------------------------------------------------------- loops that do not turn

BLOCKED = """
    import asyncio, time

    async def handle():
        {slowly}

    async def main():
        await asyncio.create_task(handle(), name="handler")

    asyncio.run(main())
    """


def test_a_loop_that_one_step_keeps_is_blocked_once_with_the_line_that_keeps_it(runner: Any) -> None:
    outcome = runner.ends(BLOCKED.format(slowly="time.sleep(2.5)"), loop_blocked=0.5)

    finding = outcome.only
    assert (finding["kind"], finding["confidence"], finding["resource_kind"]) == ("loop-blocked", "hint", "event-loop")
    assert "task handler is at program.py:4 in handle" in finding["title"]
    assert finding["actors"][0]["stack"][-1]["source"] == "time.sleep(2.5)"


SLOW_BUT_TURNING = {
    "a loop that sleeps in its selector": "await asyncio.sleep(2.5)",
    "a loop with short steps": """end = time.monotonic() + 2.5
        while time.monotonic() < end:
            time.sleep(0.05)
            await asyncio.sleep(0)""",
    "work in another thread": "await asyncio.get_running_loop().run_in_executor(None, time.sleep, 2.5)",
    "a loop in a callback of a descriptor": """import socket
        one, two = socket.socketpair()
        two.send(b"x")
        loop = asyncio.get_running_loop()
        loop.add_reader(one, time.sleep, 0.1)
        await asyncio.sleep(2.5)
        loop.remove_reader(one)""",
}


@pytest.mark.parametrize("how", SLOW_BUT_TURNING)
def test_a_loop_that_turns_is_silent(runner: Any, how: str) -> None:
    runner.silent(BLOCKED.format(slowly=SLOW_BUT_TURNING[how]), loop_blocked=1.5)


# ---------------------------------------------------------------- nobody left

STALLS = {
    "a full queue without a getter": """
        queue = asyncio.Queue(1)
        async def producer():
            while True:
                await queue.put(1)
        await asyncio.create_task(producer(), name="stuck")
        """,
    "a worker that waits for items that nobody puts": """
        queue = asyncio.Queue()
        await asyncio.create_task(queue.get(), name="stuck")
        """,
    "a future that nobody sets": """
        async def waiter():
            await asyncio.get_running_loop().create_future()
        await asyncio.create_task(waiter(), name="stuck")
        """,
}


def _main(body: str, before: str = "") -> str:
    lines = "\n".join("        " + line for line in body.strip("\n").splitlines())
    return f"    import asyncio\n    {before}\n    async def main():\n{lines}\n\n    asyncio.run(main())\n"


@pytest.mark.parametrize("what", STALLS)
def test_f54_and_f53_a_task_that_nobody_is_left_to_wake_is_a_stall(runner: Any, what: str) -> None:
    outcome = runner.hangs(_main(STALLS[what]))

    finding = outcome.only
    assert (finding["kind"], finding["confidence"]) == ("stall", "proven"), finding["title"]
    assert [(a["type"], a["name"]) for a in finding["actors"] if a["role"] == "member"] == [("task", "stuck")]


@pytest.mark.parametrize("what", STALLS)
def test_f54_twin_a_thread_that_is_alive_might_wake_it(runner: Any, what: str) -> None:
    alive = "__import__('threading').Thread(target=__import__('time').sleep, args=(30,), daemon=True).start()"
    child = runner.start(_main(STALLS[what], alive))

    child.linger(LOOKS)

    assert child.end().findings == []


def test_f54_tasks_that_gather_each_other_are_a_deadlock(runner: Any, assert_deadlock: Any) -> None:
    outcome = runner.hangs(
        """
        import asyncio

        async def main():
            tasks = {}

            async def one(other):
                await asyncio.sleep(0)
                await asyncio.gather(tasks[other])

            tasks["a"] = asyncio.create_task(one("b"), name="a")
            tasks["b"] = asyncio.create_task(one("a"), name="b")
            await asyncio.wait(tasks.values())

        asyncio.run(main())
        """
    )

    assert_deadlock(outcome.only, members=2)


SOUND = {
    "a main task that waits for ever": "await asyncio.Event().wait()",
    "a main task that awaits a bare future": "await asyncio.get_running_loop().create_future()",
    "a server without clients": """
        server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
        async with server:
            await server.serve_forever()
        """,
    "workers of a live service": """
        queue = asyncio.Queue()
        async def worker():
            while True:
                await queue.get()
        workers = [asyncio.create_task(worker()) for _ in range(5)]
        server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
        await asyncio.gather(*workers)
        """,
    "a reader of a pipe": """
        import os
        end, _ = os.pipe()
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(end))
        await asyncio.create_task(reader.read(1))
        """,
    "a shielded task and its timer": """
        async def slow():
            await asyncio.sleep(30)
        await asyncio.shield(asyncio.create_task(slow()))
        """,
    "a signal handler": """
        import signal
        event = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, event.set)
        await asyncio.create_task(event.wait())
        """,
    "a child process": """
        process = await asyncio.create_subprocess_exec("sleep", "30")
        await asyncio.create_task(process.wait())
        """,
    "work in another thread": """
        import time
        await asyncio.create_task(asyncio.to_thread(time.sleep, 30))
        """,
    "a lock whose holder sleeps": """
        lock = asyncio.Lock()
        async def hold():
            async with lock:
                await asyncio.sleep(30)
        async def want():
            await asyncio.sleep(0.01)
            async with lock:
                pass
        await asyncio.gather(hold(), want())
        """,
    "a condition whose lock its waiters gave back": """
        condition = asyncio.Condition()
        async def waiter():
            async with condition:
                await condition.wait()
        async def notifier():
            while True:
                await asyncio.sleep(0.05)
                async with condition:
                    condition.notify(1)
        await asyncio.gather(*(waiter() for _ in range(200)), notifier())
        """,
    "a semaphore that passes on": """
        semaphore = asyncio.Semaphore(2)
        async def worker():
            while True:
                async with semaphore:
                    await asyncio.sleep(0.003)
        await asyncio.gather(*(worker() for _ in range(10)))
        """,
}


@pytest.mark.parametrize("what", SOUND)
def test_sound_programs_that_wait_are_silent(runner: Any, what: str) -> None:
    child = runner.start(_main(SOUND[what]))

    child.linger(LOOKS)
    running = child.process.poll() is None
    outcome = child.end()

    assert running, outcome.stderr[-2000:]
    assert [f["title"] for f in outcome.findings] == []
