"""Signals that come again and again, wherever the main thread is, for tests of what they may interrupt."""

# ruff: noqa: N818  an alarm is no error

from __future__ import annotations

import gc
import signal
from collections.abc import Callable
from typing import Any


class Alarm(Exception):
    """Raised by a signal handler."""


class Storm:
    """A timer whose handler is called wherever the main thread is.

    Nothing is collected meanwhile: what a handler raises in a finalizer or in a callback of the collector (the test
    framework has some) is printed and lost, with any lock.
    """

    def __init__(self, seconds: float, handler: Callable[[int, Any], Any]) -> None:
        self.seconds, self.handler = seconds, handler

    def __enter__(self) -> Storm:
        self.was_collecting = gc.isenabled()
        gc.disable()
        self.before = signal.signal(signal.SIGALRM, self.handler)
        signal.setitimer(signal.ITIMER_REAL, self.seconds, self.seconds)
        return self

    def __exit__(self, *exc: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.before)
        if self.was_collecting:
            gc.enable()


class Alarms(Storm):
    """A storm that raises `Alarm` while somebody has said, by ``armed``, that he catches it."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds, self._ring)
        self.armed, self.alarms, self.lost = False, 0, 0

    def _ring(self, _signal: int, _frame: Any) -> None:
        if self.armed:
            self.armed = False  # once: the clean-up of whoever catches it is not what is tested
            raise Alarm

    def __enter__(self) -> Alarms:
        super().__enter__()
        return self

    # The loops are functions of their own: on 3.13 the jump back after a ``with`` is not part of the ``try`` around it.

    def interrupt(self, call: Callable[[], Any]) -> None:
        """Make a call again and again until an alarm ends that."""
        try:
            self._repeat(call)
            self.lost += 1
        except Alarm:
            self.alarms += 1

    def _repeat(self, call: Callable[[], Any]) -> None:
        self.armed = True
        while self.armed:
            call()

    def interrupt_passes(self, lock: Any) -> None:
        """Take the lock and give it back until an alarm ends that."""
        try:
            self._pass(lock)
            self.lost += 1
        except Alarm:
            self.alarms += 1

    def _pass(self, lock: Any) -> None:
        self.armed = True
        while self.armed:
            with lock:
                pass
