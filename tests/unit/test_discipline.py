"""Who took a plain Lock is going to release it, or not: read from the code that took it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from concagent import _real
from concagent.discipline import discipline, releases_for_others

lock = None
table: dict[str, Any] = {}


class Spy:
    """Looks like a lock; remembers the instruction that acquired it."""

    def __init__(self) -> None:
        self.site: tuple[Any, int] | None = None

    def acquire(self, *_args: Any, **_kwargs: Any) -> bool:
        frame = _real.getframe(1)
        if self.site is None:
            self.site = frame.f_code, frame.f_lasti
        return True

    acquire_lock = acquire

    def release(self) -> None:
        pass

    release_lock = release


class Owner:
    def __init__(self, spy: Spy) -> None:
        self.lock = spy
        self.inner = self


def try_finally(lock: Any) -> None:
    lock.acquire()
    try:
        threading.current_thread()
    finally:
        lock.release()


def try_finally_of_an_attribute(lock: Any) -> None:
    owner = Owner(lock)
    owner.inner.lock.acquire()
    try:
        threading.current_thread()
    finally:
        owner.inner.lock.release()


def if_acquired_try(lock: Any) -> None:
    if lock.acquire(timeout=1):
        try:
            threading.current_thread()
        finally:
            lock.release()


def in_a_closure(lock: Any) -> None:
    def inner() -> None:
        lock.acquire()
        try:
            threading.current_thread()
        finally:
            lock.release()

    inner()


def by_the_old_names(lock: Any) -> None:
    lock.acquire_lock()
    try:
        threading.current_thread()
    finally:
        lock.release_lock()


def a_release_further_down(lock: Any) -> None:
    lock.acquire()
    threading.current_thread()
    lock.release()


def no_release(lock: Any) -> None:
    lock.acquire()


def a_try_that_releases_another(lock: Any) -> None:
    other = Spy()
    lock.acquire()
    try:
        threading.current_thread()
    finally:
        other.release()


def a_stored_method(lock: Any) -> None:
    take = lock.acquire
    take()


def an_item_of_a_table(lock: Any) -> None:
    table["x"] = lock
    table["x"].acquire()
    try:
        threading.current_thread()
    finally:
        table["x"].release()


def a_release_above(lock: Any) -> None:
    lock.release()
    lock.acquire()


@pytest.mark.parametrize(
    ("take", "expected"),
    [
        (try_finally, "finally"),
        (try_finally_of_an_attribute, "finally"),
        (if_acquired_try, "finally"),
        (in_a_closure, "finally"),
        (by_the_old_names, "finally"),
        (a_release_further_down, "later"),
        (no_release, "bare"),
        (a_try_that_releases_another, "bare"),
        (a_stored_method, "bare"),
        (an_item_of_a_table, "bare"),
        (a_release_above, "bare"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_code_says_who_releases(take: Callable[[Any], None], expected: str) -> None:
    spy = Spy()

    take(spy)

    assert spy.site is not None
    assert discipline(*spy.site) == expected


def test_nothing_is_known_without_code() -> None:
    assert discipline(None, 0) == "bare"


def test_an_offset_before_the_first_instruction_is_nobodys() -> None:
    assert discipline(try_finally.__code__, -1) == "bare"


def test_an_instruction_that_acquires_nothing_is_bare() -> None:
    assert discipline(Spy.__init__.__code__, 2) == "bare"


# ---------------------------------------------------------------- who may be meant to release what others have taken


def takes_and_gives() -> None:
    lock.acquire()
    try:
        table.clear()
    finally:
        lock.release()


def takes_one_and_gives_another(owner: Owner) -> None:
    owner.lock.acquire()
    lock.release()


def gives(owner: Owner) -> None:
    owner.lock.release()


def lets_a_timer_give() -> None:
    lock.acquire()
    threading.Timer(1, table["lock"].release)


def starts_who_takes_and_gives() -> None:
    threading.Thread(target=lock.acquire)
    lock.release()


def takes() -> None:
    lock.acquire()


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (takes_and_gives, False),
        (takes, False),
        (takes_one_and_gives_another, True),
        (gives, True),
        (lets_a_timer_give, True),
        (starts_who_takes_and_gives, True),
    ],
)
def test_who_releases_what_he_has_not_taken_may_do_it_for_others(function: Callable[..., None], expected: bool) -> None:
    assert releases_for_others(function.__code__) is expected
