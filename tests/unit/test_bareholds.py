"""What a suspended coroutine holds, from its code alone: each case is stepped from one suspension to the next."""

from __future__ import annotations

from typing import Any

import pytest

from concagent import bareholds


class Lock:
    """Acquired by an await that suspends once."""

    def acquire(self) -> Any:
        return self

    def release(self) -> None:
        pass

    def __await__(self) -> Any:
        yield "acquire"

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *error: object) -> None:
        pass


class Stop:
    """An await for something else."""

    def __await__(self) -> Any:
        yield "stop"


async def with_finally(a: Any, b: Any) -> None:
    await a.acquire()
    try:
        await Stop()
        await b.acquire()
        b.release()
    finally:
        a.release()


async def released_between(a: Any, b: Any) -> None:  # noqa: ARG001
    await a.acquire()
    await Stop()
    a.release()
    await Stop()


async def in_some_cases(a: Any, b: Any) -> None:
    if b:
        await a.acquire()
    await Stop()
    if b:
        a.release()


async def in_a_loop(a: Any, b: Any) -> None:  # noqa: ARG001
    for _ in range(2):
        await a.acquire()
        try:
            await Stop()
        except ValueError:
            pass
        finally:
            a.release()
        await Stop()


async def handed_on(a: Any, b: Any) -> None:
    await a.acquire()
    b.callback = a.release
    await Stop()


async def never_released(a: Any, b: Any) -> None:  # noqa: ARG001
    await a.acquire()
    await Stop()


async def taken_twice(a: Any, b: Any) -> None:  # noqa: ARG001
    await a.acquire()
    await Stop()
    await a.acquire()
    await Stop()
    a.release()


async def tried_before(a: Any, b: Any) -> None:  # noqa: ARG001
    try:
        await a.acquire()
        await Stop()
    finally:
        a.release()


async def swallowed(a: Any, b: Any) -> None:
    try:
        await a.acquire()
        await b
    except ValueError:
        pass
    await Stop()
    a.release()


async def inside_another_block(a: Any, b: Any) -> None:
    await a.acquire()
    async with b:
        await Stop()
    await Stop()
    a.release()


async def another_value(a: Any, b: Any) -> None:
    await a.acquire()
    a = b
    await Stop()
    a.release()


async def through_attributes(a: Any, b: Any) -> None:
    b.x = a
    await b.x.acquire()
    await Stop()
    b.x.release()


async def perhaps_never_round(a: Any, b: Any) -> None:  # noqa: ARG001
    for _ in range(2):
        await a.acquire()
    await Stop()
    a.release()


async def not_awaited_here(a: Any, b: Any) -> None:  # noqa: ARG001
    waiting = a.acquire()
    await waiting
    await Stop()
    a.release()


A = ("a",)
HELD = {(A, "later")}
BARE = {(A, "bare")}
NONE: set[Any] = set()
CASES = {
    with_finally: [NONE, HELD, HELD],
    released_between: [NONE, HELD, NONE],
    in_some_cases: [NONE, NONE],
    in_a_loop: [NONE, HELD, NONE, NONE, HELD, NONE],
    handed_on: [NONE, NONE],
    never_released: [NONE, BARE],
    taken_twice: [NONE, BARE, BARE, HELD],
    tried_before: [NONE, HELD],
    swallowed: [NONE, HELD, NONE],
    inside_another_block: [NONE, HELD, HELD],
    another_value: [NONE, NONE],
    through_attributes: [NONE, {(("b", "x"), "later")}],
    perhaps_never_round: [NONE, NONE, NONE],
    not_awaited_here: [NONE, NONE],
}


def suspensions(function: Any) -> list[Any]:
    """Return (code, offset) of each place where a coroutine is suspended until it ends."""
    coroutine = function(Lock(), Lock())
    found = []
    try:
        while True:
            coroutine.send(None)
            found.append((coroutine.cr_frame.f_code, coroutine.cr_frame.f_lasti))
    except StopIteration:
        return found


@pytest.mark.parametrize("function", CASES, ids=lambda function: function.__name__)
def test_what_is_held_at_each_suspension(function: Any) -> None:
    held = [{(hold.expression, hold.discipline) for hold in bareholds.held_at(*at)} for at in suspensions(function)]

    assert held == CASES[function]


def test_a_hold_says_which_line_has_acquired() -> None:
    code, lasti = suspensions(with_finally)[1]
    (hold,) = bareholds.held_at(code, lasti)

    lines = [line for start, end, line in code.co_lines() if start <= hold.lasti < end]
    assert lines == [code.co_firstlineno + 1]


@pytest.mark.parametrize(
    ("function", "habits"),
    [
        (with_finally, ["later", "bare", "later"]),
        (never_released, ["bare", "bare"]),
        (taken_twice, ["bare"] * 2 + ["later", "bare"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_follows_an_acquire_that_is_awaited(function: Any, habits: list[str]) -> None:
    assert [bareholds.awaited_habit(*at) for at in suspensions(function)] == habits


class Always:
    def __init__(self) -> None:
        self.lock = Lock()

    async def __aenter__(self) -> Any:
        await self.lock.acquire()
        return self

    async def __aexit__(self, *error: object) -> None:
        self.lock.release()


class Sometimes:
    lock: Any

    async def __aenter__(self) -> Any:
        if self.lock:
            await self.lock.acquire()
        return self


def test_what_an_aenter_has_acquired_whenever_it_returns() -> None:
    assert bareholds.left_held(Always.__aenter__.__code__) == {("self", "lock")}
    assert bareholds.released(Always.__aexit__.__code__) == {("self", "lock")}
    assert bareholds.left_held(Sometimes.__aenter__.__code__) == frozenset()


def test_a_function_that_names_no_lock_is_not_looked_at() -> None:
    def function(x: Any) -> Any:
        return x.value

    assert bareholds.held_at(function.__code__, 0) == ()
    assert bareholds.awaited_habit(function.__code__, 0) == "bare"
    assert bareholds.left_held(function.__code__) == bareholds.released(function.__code__) == frozenset()
