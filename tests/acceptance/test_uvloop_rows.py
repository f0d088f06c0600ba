"""Rows E22, E23 and their kin on uvloop, whose loops are in C: the same programs, the same verdicts.

What may wake a loop of uvloop that is asleep cannot be read, so tasks that nobody is left to wake are not told (F53, F54).
"""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

pytestmark = [
    pytest.mark.server,  # where the packages are that not everybody has
    pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed"),
]

LOOKS = 2.2  # seconds: at least two looks of the monitor

RUNS = {
    "uvloop.run": "uvloop.run(main())",
    "a policy": "asyncio.set_event_loop_policy(uvloop.EventLoopPolicy()); asyncio.run(main())",
    "a loop in a function": """
def run():
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(main())
run()
""",
    "a loop in a class, for ever": """
class App:
    def __init__(self):
        self.loop = uvloop.new_event_loop()
    def run(self):
        self.task = self.loop.create_task(main())
        self.task.add_done_callback(lambda _: self.loop.stop())
        self.loop.run_forever()
App().run()
""",
}
HEAD = """
import asyncio, threading, time, warnings
import uvloop
warnings.simplefilter("ignore", DeprecationWarning)  # policies, from 3.14 on
"""
CROSSED = """
async def worker(first, second, mine, other):
    async with first:
        mine.set()
        await other.wait()
        await second.acquire()
        second.release()

async def main():
    a, b, x, y = asyncio.Lock(), asyncio.Lock(), asyncio.Event(), asyncio.Event()
    one = asyncio.create_task(worker(a, b, x, y), name="one")
    two = asyncio.create_task(worker(b, a, y, x), name="two")
    {then}
"""
LIVE = "while True: await asyncio.sleep(0.05)"


def program(body: str, run: str = "uvloop.run", **holes: str) -> str:
    for hole, code in holes.items():
        body = body.replace("{" + hole + "}", code)
    return HEAD + body + "\n" + RUNS[run]


@pytest.mark.parametrize("then", [LIVE, "await asyncio.gather(one, two)"], ids=["the loop works on", "all wait"])
@pytest.mark.parametrize("run", RUNS)
def test_e22_crossed_tasks_are_a_deadlock_however_the_loop_is_run(
    runner: Any, assert_deadlock: Any, run: str, then: str
) -> None:
    outcome = runner.hangs(program(CROSSED, run, then=then))

    assert_deadlock(outcome.only, members=2)
    members = {(a["type"], a["name"]) for a in outcome.only["actors"] if a["role"] == "member"}
    assert members == {("task", "one"), ("task", "two")}


BOTH = "await asyncio.wait({one, two})"
TIMED = {
    "wait_for": "await asyncio.wait_for(asyncio.gather(one, two), 2.5)",
    "call_later": f"asyncio.get_running_loop().call_later(2.5, one.cancel); {BOTH}",
    "a call_later with a function": f"asyncio.get_running_loop().call_later(2.5, lambda: one.cancel()); {BOTH}",
    "sleep and cancel": f"await asyncio.sleep(2.5); one.cancel(); {BOTH}",
}


@pytest.mark.parametrize("how", TIMED)
def test_e22_twin_tasks_that_a_timer_cancels_are_silent(runner: Any, how: str) -> None:
    then = f"try:\n        {TIMED[how]}\n    except asyncio.TimeoutError:\n        pass"

    runner.silent(program(CROSSED, then=then))


def test_e22_twin_tasks_that_take_turns_are_silent(runner: Any) -> None:
    runner.silent(
        program(
            """
async def worker(a, b, until):
    while time.monotonic() < until:
        async with a:
            await asyncio.sleep(0.001)
            await b.acquire()
            await asyncio.sleep(0.001)
            b.release()

async def main():
    a, b, until = asyncio.Lock(), asyncio.Lock(), time.monotonic() + LOOKS
    await asyncio.gather(*(worker(a, b, until) for _ in range(20)))
""".replace("LOOKS", str(LOOKS))
        )
    )


E23 = """
lock = threading.Lock()

async def holder():
    with lock:
        await asyncio.sleep(0.2)

async def blocker():
    await asyncio.sleep(0.05)
    lock.acquire({limit})

async def main():
    await asyncio.gather(*(asyncio.create_task(f(), name=f.__name__) for f in (holder, blocker)))

threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
"""


def test_e23_a_thread_lock_kept_over_an_await_blocks_its_own_loop(runner: Any) -> None:
    found = runner.hangs(program(E23, limit="")).only

    assert (found["kind"], found["confidence"]) == ("deadlock", "proven"), found["title"]
    members = [(a["type"], a["name"]) for a in found["actors"] if a["role"] == "member"]
    assert sorted(members) == [("task", "holder"), ("thread", "MainThread")]


def test_e23_twin_a_lock_taken_with_a_time_limit_is_silent(runner: Any) -> None:
    runner.silent(program(E23, limit="timeout=2.5"))


THREADSAFE = """
async def work():
    return 1

async def main():
    loop = asyncio.get_running_loop()
    {ask}

threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
"""


def test_a_loop_that_waits_for_its_own_task_is_a_deadlock(runner: Any) -> None:
    found = runner.hangs(program(THREADSAFE, ask="asyncio.run_coroutine_threadsafe(work(), loop).result()")).only

    assert (found["kind"], found["confidence"]) == ("deadlock", "proven"), found["title"]
    assert [a["name"] for a in found["actors"] if a["role"] == "member"] == ["MainThread"]


def test_twin_a_thread_that_waits_for_a_task_of_the_loop_is_silent(runner: Any) -> None:
    ask = (
        "await loop.run_in_executor(None, lambda: asyncio.run_coroutine_threadsafe(asyncio.sleep(2.2), loop).result())"
    )

    runner.silent(program(THREADSAFE, ask=ask))


def test_two_loops_that_wait_for_each_other_are_a_deadlock(runner: Any) -> None:
    """Each loop's thread waits for a task of the other, which cannot run."""
    found = runner.hangs(
        program(
            """
loops, ready = [uvloop.new_event_loop() for _ in range(2)], threading.Barrier(2)

async def ask(other):
    ready.wait()
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), other).result()

def other_thread():
    loop = loops[1]
    loop.run_until_complete(ask(loops[0]))

async def main():
    pass

threading.Thread(target=other_thread, name="other", daemon=True).start()
loop = loops[0]
loop.run_until_complete(ask(loops[1]))
"""
        )
    ).only

    assert (found["kind"], found["confidence"]) == ("deadlock", "proven"), found["title"]
    assert sorted(a["name"] for a in found["actors"] if a["role"] == "member") == ["MainThread", "other"]


BLOCKED = """
async def handle():
    {slowly}

async def main():
    await asyncio.create_task(handle(), name="handler")
"""


@pytest.mark.parametrize("run", RUNS)
def test_a_loop_that_one_step_keeps_is_blocked_once_with_the_line_that_keeps_it(runner: Any, run: str) -> None:
    outcome = runner.ends(program(BLOCKED, run, slowly="time.sleep(2.8)"), loop_blocked=0.5)

    found = outcome.only
    assert (found["kind"], found["confidence"], found["resource_kind"]) == ("loop-blocked", "hint", "event-loop")
    assert "task handler is at program.py" in found["title"]
    assert found["actors"][0]["stack"][-1]["source"] == "time.sleep(2.8)"


TURNING = {
    "a loop that sleeps": "await asyncio.sleep(2.8)",
    "a loop with short steps": """end = time.monotonic() + 2.8
    while time.monotonic() < end:
        time.sleep(0.05)
        await asyncio.sleep(0)""",
    "work in another thread": "await asyncio.get_running_loop().run_in_executor(None, time.sleep, 2.8)",
}


@pytest.mark.parametrize("how", TURNING)
def test_a_loop_that_turns_is_silent(runner: Any, how: str) -> None:
    runner.silent(program(BLOCKED, slowly=TURNING[how]), loop_blocked=1.5)


SOUND = {
    "a server without clients": """
async def main():
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    async with server:
        await server.serve_forever()
""",
    "a child process": """
async def main():
    process = await asyncio.create_subprocess_exec("sleep", "30")
    await asyncio.create_task(process.wait())
""",
    "a future that nobody sets, which is not told here": """
async def main():
    await asyncio.create_task(asyncio.Event().wait())
""",
}


@pytest.mark.parametrize("what", SOUND)
def test_sound_programs_that_wait_are_silent(runner: Any, what: str) -> None:
    child = runner.start(program(SOUND[what]))

    child.linger(LOOKS)
    running = child.process.poll() is None
    outcome = child.end()

    assert running, outcome.stderr[-2000:]
    assert [f["title"] for f in outcome.findings] == []
