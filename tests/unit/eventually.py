"""Waiting for what will come, in tests: with an end, and without asserting a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from concagent import _real, core

_LIMIT_NS = 20 * 10**9


def until(condition: Callable[[], Any]) -> Any:
    """Return what a condition says once it is true."""
    deadline_ns = _real.monotonic_ns() + _LIMIT_NS
    while not (found := condition()):
        assert _real.monotonic_ns() < deadline_ns, "it never became true"
        _real.sleep(0.001)
    return found


def wait_of(thread: threading.Thread) -> Any:
    """Return the wait that a thread is in; None if it is in none."""
    record = core.record_of_ident(thread.ident)
    return record.waiting() if record is not None else None
