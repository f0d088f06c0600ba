# ruff: noqa: ARG001, ARG002 - what the interpreter gives is there, and nobody needs it
"""Who called a function is told from what it was given: each kind of interruption, and calls that look like one."""

from __future__ import annotations

import gc
import signal
import sys
import weakref
from typing import Any

import pytest

from concagent import interruptions

found: list[str | None] = []


def note(_depth: int = 1) -> None:
    found.append(interruptions.kind_of(sys._getframe(_depth)))


class Thing:
    """Can be referred to weakly."""


class WithFinalizer:
    """Notes how it was finalized."""

    def __del__(self) -> None:
        note()


class Child(WithFinalizer):
    """Calls its parent's finalizer, which nothing interrupts then."""

    def __del__(self) -> None:
        super().__del__()
        note()


@pytest.fixture(autouse=True)
def _nothing_found() -> None:
    found.clear()


def test_a_finalizer_is_one_and_a_call_of_it_is_not() -> None:
    things = [WithFinalizer()]

    things[0].__del__()
    before = list(found)
    _drop(things)

    assert (before, found[1:]) == ([None], ["finalizer"])


def _drop(things: list[Any]) -> None:
    things.clear()


def test_a_finalizer_that_calls_its_parents_is_one_interruption() -> None:
    _drop([Child()])

    assert found == [None, "finalizer"]


def test_a_weakref_callback_gets_a_dead_reference() -> None:
    def forget(reference: Any) -> None:
        note()

    thing = Thing()
    reference = weakref.ref(thing, forget)
    forget(reference)
    del thing

    assert found == [None, "weakref callback"]


def test_a_finalize_object_is_a_callback_too() -> None:
    thing = Thing()
    weakref.finalize(thing, note)
    del thing

    assert found == ["weakref callback"]


def test_a_gc_callback_gets_phase_and_counts() -> None:
    def callback(phase: str, info: dict[str, int]) -> None:
        note()

    gc.callbacks.append(callback)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(callback)
    seen = set(found)
    found.clear()
    callback("start", {})

    assert (seen, found) == ({"gc callback"}, [None])


def _plain(number: int, frame: Any) -> None:
    note()


def _any(*arguments: Any) -> None:
    note()


def _closure() -> Any:
    def handler(number: int, frame: Any) -> Any:
        note()
        return lambda: (number, frame)

    return handler


class _Server:
    def handler(self, number: int, frame: Any) -> None:
        note()


@pytest.mark.parametrize(
    "handler", [_plain, _any, _closure(), _Server().handler], ids=["plain", "any", "cells", "method"]
)
def test_a_signal_handler_gets_a_number_and_a_frame(handler: Any) -> None:
    before = signal.signal(signal.SIGUSR2, handler)
    try:
        signal.raise_signal(signal.SIGUSR2)
        handler(signal.SIGUSR2, None)
    finally:
        signal.signal(signal.SIGUSR2, before)

    assert found == ["signal handler", None]


def test_looking_keeps_no_local_alive() -> None:
    thing = Thing()
    reference = weakref.ref(thing)

    assert interruptions.find(sys._getframe(), 0) == {}
    del thing

    assert reference() is None


def test_what_runs_over_a_hold_is_named_with_the_function_that_it_interrupted() -> None:
    said: list[str | None] = []

    class Cache:
        def __del__(self) -> None:
            said.append(interruptions.over(sys._getframe(), take.__code__, -1, lambda _code: False))

    def take() -> None:
        cache = Cache()
        del cache

    take()

    (text,) = said
    assert text is not None
    assert text.startswith("`__del__` of ")
    assert text.endswith("take()")


# ---------------------------------------------------------------- whose error is it?


def _raise_by(handler):
    """Return what is raised when a signal comes while this handler is in force."""
    before = signal.signal(signal.SIGUSR2, handler)
    try:
        signal.raise_signal(signal.SIGUSR2)
    except ValueError as error:
        return error
    finally:
        signal.signal(signal.SIGUSR2, before)
    raise AssertionError("nothing was raised")


def _interrupt(*_):
    raise ValueError


def _deep(_number, _frame):
    int("no number")


def _with_other_values(number, frame):
    number = frame = None
    _interrupt(number, frame)


class _Owner:
    def on_signal(self, _number, _frame):
        raise ValueError


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="no SIGUSR2")
@pytest.mark.parametrize("handler", [_interrupt, _deep, _Owner().on_signal, lambda *_: _interrupt()])
def test_an_error_of_a_signal_handler_is_told_by_its_traceback(handler):
    assert interruptions.is_of_handler(_raise_by(handler))


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="no SIGUSR2")
def test_a_handler_that_gave_its_arguments_other_values_is_known_while_it_is_in_force():
    before = signal.signal(signal.SIGUSR2, _with_other_values)
    try:
        with pytest.raises(ValueError) as caught:
            signal.raise_signal(signal.SIGUSR2)
        assert interruptions.is_of_handler(caught.value)
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_an_error_of_our_own_is_none_of_a_handler():
    with pytest.raises(ValueError) as caught:
        _interrupt()

    assert not interruptions.is_of_handler(caught.value)
    assert not interruptions.is_of_handler(ValueError())
