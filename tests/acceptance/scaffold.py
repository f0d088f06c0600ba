"""What the programs of the rows use to force an order, invisible to the agent: raw originals only."""

from __future__ import annotations

import os
import sys
from typing import Any

from concagent import _real


class Gate:
    """Shut until opened, then open for good."""

    def __init__(self) -> None:
        self._lock = _real.allocate_lock()
        self._lock.acquire()

    def open(self) -> None:
        self._lock.release()

    def wait(self) -> None:
        self._lock.acquire()
        self._lock.release()


class Meeting:
    """Lets nobody on before ``number`` threads are here."""

    def __init__(self, number: int) -> None:
        self._missing = number
        self._mutex = _real.allocate_lock()
        self._gate = Gate()

    def wait(self) -> None:
        with self._mutex:
            self._missing -= 1
            last = self._missing == 0
        if last:
            self._gate.open()
        self._gate.wait()


def waiting(number: int, *kinds: str) -> None:
    """Return once the agent sees this many threads in a wait for a lock or a thread's end."""
    from concagent import core

    def seen() -> int:
        waits = [record.waiting() for record in core.records() if not record.agent]
        return sum(w is not None and w.resource.kind in (kinds or ("lock", "rlock", "thread")) for w in waits)

    until(lambda: seen() >= number)


def until(condition: Any) -> None:
    """Poll until the condition holds; the harness bounds us."""
    while not condition():
        _real.sleep(0.001)


def pause(seconds: float) -> None:
    """Let time pass where time is what the row is about."""
    _real.sleep(seconds)


def finish(text: str = "DONE") -> None:
    """Say that the program came through, after what it printed."""
    sys.stdout.flush()
    os.write(1, text.encode() + b"\n")
