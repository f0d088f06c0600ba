"""Row E22 without ``async with``: locks, conditions and permits that tasks take by a bare ``await lock.acquire()``.

The holder is known where the code of a suspended function shows it; a lock that is acquired by one task to be released by another
one looks alike, and must not be told.
"""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

LOOKS = 2.2  # seconds: at least two looks of the monitor

HEAD = """
import asyncio, contextlib

class Meeting:
    def __init__(self, number=2):
        self.missing, self.all_here = number, asyncio.Event()
    async def wait(self):
        self.missing -= 1
        if not self.missing:
            self.all_here.set()
        await self.all_here.wait()

async def run(**coroutines):
    tasks = [asyncio.create_task(one, name=name) for name, one in coroutines.items()]
    {then}
"""
LIVE = "while True: await asyncio.sleep(0.05)"
BOTH = "await asyncio.gather(*tasks)"

MAIN = """
async def main():
    a, b, meeting = asyncio.{kind}, asyncio.{kind}, Meeting()
    await run(one=worker(a, b, meeting), two=worker(b, a, meeting))

asyncio.run(main())
"""
CROSSED = {
    "try and finally": """
        async def worker(first, second, meeting):
            await first.acquire()
            try:
                await meeting.wait()
                await second.acquire()
                second.release()
            finally:
                first.release()
        """,
    "one after the other": """
        async def worker(first, second, meeting):
            await first.acquire()
            await meeting.wait()
            await second.acquire()
            second.release()
            first.release()
        """,
    "in a loop": """
        async def worker(first, second, meeting):
            while True:
                await first.acquire()
                try:
                    await meeting.wait()
                    await second.acquire()
                    second.release()
                except ValueError:
                    continue
                finally:
                    first.release()
        """,
    "one of them by async with": """
        async def worker(first, second, meeting):
            async with first:
                await meeting.wait()
                await second.acquire()
                second.release()
        """,
    "the other by async with": """
        async def worker(first, second, meeting):
            await first.acquire()
            await meeting.wait()
            async with second:
                pass
            first.release()
        """,
    "attributes, and a function between": """
        class Account:
            def __init__(self, lock):
                self.lock = lock
            async def pay(self, other, meeting):
                await self.lock.acquire()
                try:
                    await meeting.wait()
                    await other.take()
                finally:
                    self.lock.release()
            async def take(self):
                await self.lock.acquire()
                self.lock.release()
        accounts = {}
        async def worker(first, second, meeting):
            for lock in (first, second):
                accounts.setdefault(id(lock), Account(lock))
            await accounts[id(first)].pay(accounts[id(second)], meeting)
        """,
    "slots": """
        class Account:
            __slots__ = ("lock",)
        async def worker(first, second, meeting):
            mine = Account()
            mine.lock = first
            await mine.lock.acquire()
            await meeting.wait()
            await second.acquire()
            second.release()
            mine.lock.release()
        """,
    "a generator of a context manager": """
        @contextlib.asynccontextmanager
        async def holding(lock):
            await lock.acquire()
            try:
                yield
            finally:
                lock.release()
        async def worker(first, second, meeting):
            async with contextlib.AsyncExitStack() as stack:
                await stack.enter_async_context(holding(first))
                await meeting.wait()
                async with holding(second):
                    pass
        """,
    "a context manager of its own": """
        class Holding:
            def __init__(self, lock):
                self._lock = lock
            async def __aenter__(self):
                await self._lock.acquire()
                return self
            async def __aexit__(self, *error):
                self._lock.release()
        async def worker(first, second, meeting):
            async with Holding(first):
                await meeting.wait()
                async with Holding(second):
                    pass
        """,
}


def program(body: str, main: str, then: str, **holes: str) -> str:
    text = HEAD.replace("{then}", then) + textwrap.dedent(body) + main
    for hole, code in holes.items():
        text = text.replace("{" + hole + "}", code)
    return text


def assert_two(outcome: Any, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = outcome.only
    assert (found["kind"], found["confidence"], found["resource_kind"]) == ("deadlock", "proven", kind), found["title"]
    members = {(actor["type"], actor["name"]) for actor in found["actors"] if actor["role"] == "member"}
    assert members == {("task", "one"), ("task", "two")}
    return found


@pytest.mark.parametrize("then", [LIVE, BOTH], ids=["while the loop works on", "while all wait for them"])
@pytest.mark.parametrize("how", CROSSED)
def test_e22_locks_taken_bare_and_crossed_are_a_deadlock(runner: Any, how: str, then: str) -> None:
    found = assert_two(runner.hangs(program(CROSSED[how], MAIN, then, kind="Lock()")), "asyncio-lock")

    assert {resource["holders"][0]["actor"] for resource in found["resources"]} == {
        actor["id"] for actor in found["actors"] if actor["role"] == "member"
    }


def test_e22_the_hold_says_where_the_lock_was_acquired(runner: Any) -> None:
    outcome = runner.hangs(program(CROSSED["try and finally"], MAIN, LIVE, kind="Lock()"))

    acquired = [resource["holders"][0]["acquired"] for resource in outcome.only["resources"]]
    assert [site["function"] for site in acquired] == ["worker", "worker"]
    lines = HEAD.lstrip("\n").splitlines() + textwrap.dedent(CROSSED["try and finally"]).splitlines()
    assert lines[acquired[0]["line"] - 1].strip() == "await first.acquire()"


@pytest.mark.parametrize("how", ["try and finally", "in a loop", "a context manager of its own"])
@pytest.mark.parametrize("kind", ["Condition()", "BoundedSemaphore(1)"])
def test_e22_conditions_and_the_permits_of_bounded_semaphores_crossed_are_a_deadlock(
    runner: Any, kind: str, how: str
) -> None:
    outcome = runner.hangs(program(CROSSED[how], MAIN, LIVE, kind=kind))

    assert_two(outcome, "asyncio-lock" if kind == "Condition()" else "asyncio-semaphore")


@pytest.mark.parametrize("how", ["try and finally", "a generator of a context manager", "a context manager of its own"])
def test_e22_permits_of_a_plain_semaphore_crossed_are_a_deadlock_when_nobody_is_left(runner: Any, how: str) -> None:
    outcome = runner.hangs(program(CROSSED[how], MAIN, BOTH, kind="Semaphore(1)"))

    assert_two(outcome, "asyncio-semaphore")


def test_e22_while_the_loop_works_on_nobody_knows_how_many_permits_a_plain_semaphore_has(runner: Any) -> None:
    child = runner.start(program(CROSSED["try and finally"], MAIN, LIVE, kind="Semaphore(1)"), stall_after=1)

    child.linger(LOOKS)

    assert child.end().findings == []


def test_e22_a_task_that_takes_its_own_lock_again_in_a_function_that_it_calls_is_a_deadlock(
    runner: Any, assert_deadlock: Any
) -> None:
    outcome = runner.hangs(
        program(
            """
            class Store:
                def __init__(self):
                    self.lock = asyncio.Lock()
                async def put(self):
                    await self.lock.acquire()
                    try:
                        await self.size()
                    finally:
                        self.lock.release()
                async def size(self):
                    await self.lock.acquire()
                    self.lock.release()
            async def main():
                await run(one=Store().put())
            asyncio.run(main())
            """,
            "",
            LIVE,
        )
    )

    assert_deadlock(outcome.only, members=1)


SOUND = {
    "one takes it, another one gives it back": """
        async def taker(lock):
            await lock.acquire()
            await lock.acquire()
            lock.release()
        async def giver(lock):
            await asyncio.sleep(LOOKS)
            lock.release()
        async def main():
            lock = asyncio.Lock()
            await run(one=taker(lock), two=giver(lock))
        """,
    "a ring of locks that another one opens": """
        async def worker(mine, other):
            await mine.acquire()
            await asyncio.sleep(0.1)
            await other.acquire()
        async def giver(a, b):
            await asyncio.sleep(LOOKS)
            a.release(); b.release()
        async def main():
            a, b = asyncio.Lock(), asyncio.Lock()
            await run(one=worker(a, b), two=worker(b, a), three=giver(a, b))
        """,
    "permits as signals": """
        async def consumer(filled, room):
            for _ in range(3):
                await filled.acquire()
                room.release()
        async def producer(filled, room):
            for _ in range(3):
                await room.acquire()
                await asyncio.sleep(LOOKS / 3)
                filled.release()
        async def main():
            filled, room = asyncio.Semaphore(0), asyncio.Semaphore(1)
            await run(one=consumer(filled, room), two=producer(filled, room))
        """,
    "a permit that somebody else has": """
        async def other(permits, begun):
            {takes}
            begun.set()
            await asyncio.sleep(LOOKS)
            {gives}
        async def one(permits, lock, begun):
            await begun.wait()
            async with permits:
                await asyncio.sleep(0.1)
                async with lock: pass
        async def two(permits, lock):
            async with lock:
                await asyncio.sleep(0.2)
                async with permits: pass
        async def main():
            permits, lock, begun = asyncio.{kind}(2), asyncio.Lock(), asyncio.Event()
            await run(three=other(permits, begun), one=one(permits, lock, begun), two=two(permits, lock))
        """,
    "a lock that is taken in some cases only": """
        async def worker(mine, other, locked):
            if locked:
                await mine.acquire()
            await asyncio.sleep(0.1)
            await other.acquire()
            await asyncio.sleep(LOOKS)
            other.release()
            if locked:
                mine.release()
        async def main():
            a, b = asyncio.Lock(), asyncio.Lock()
            await run(one=worker(a, b, True), two=worker(b, a, False))
        """,
    "a condition that has given its lock back": """
        async def waiter(condition):
            await condition.acquire()
            try:
                await condition.wait()
            finally:
                condition.release()
        async def notifier(condition):
            await asyncio.sleep(0.1)
            await condition.acquire()
            await asyncio.sleep(LOOKS)
            condition.notify_all()
            condition.release()
        async def late(condition):
            await asyncio.sleep(0.2)
            await condition.acquire()
            condition.release()
        async def main():
            condition = asyncio.Condition()
            await run(one=waiter(condition), two=notifier(condition), three=late(condition))
        """,
    "a lock given back by a function that is called": """
        class Store:
            def __init__(self):
                self.lock = asyncio.Lock()
            def unlock(self):
                self.lock.release()
            async def use(self):
                await self.lock.acquire()
                self.unlock()
                await asyncio.sleep(0.1)
                await self.lock.acquire()
                await asyncio.sleep(LOOKS)
                self.unlock()
        async def main():
            store = Store()
            await run(one=store.use(), two=store.use())
        """,
    "with a time limit": """
        async def worker(mine, other):
            await mine.acquire()
            await asyncio.sleep(0.1)
            try:
                await asyncio.wait_for(other.acquire(), LOOKS)
                other.release()
            except asyncio.TimeoutError:
                pass
            mine.release()
        async def main():
            a, b = asyncio.Lock(), asyncio.Lock()
            await run(one=worker(a, b), two=worker(b, a))
        """,
}
HOLES = {
    "a permit that somebody else has": [
        {"kind": kind, "takes": takes, "gives": gives}
        for kind in ("Semaphore", "BoundedSemaphore")
        for takes, gives in (
            ("await permits.acquire()", "permits.release()"),
            ("await permits.__aenter__()", "await permits.__aexit__(None, None, None)"),
            ("stack = contextlib.AsyncExitStack(); await stack.enter_async_context(permits)", "await stack.aclose()"),
        )
    ],
}


@pytest.mark.parametrize(
    ("what", "holes"),
    [
        pytest.param(what, holes, id=f"{what}-{number}")
        for what in SOUND
        for number, holes in enumerate(HOLES.get(what, [{}]))
    ],
)
def test_e22_twin_a_lock_or_permit_that_somebody_gives_back_is_silent(
    runner: Any, what: str, holes: dict[str, str]
) -> None:
    text = program(SOUND[what], "\nasyncio.run(main())\n", BOTH, **holes).replace("LOOKS", str(LOOKS))

    runner.silent(text, stall_after=1)
