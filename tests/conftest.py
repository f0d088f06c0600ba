"""What holds for every test: it leaves no thread and no patch behind, or it fails itself and not the next one.

The check reads the originals anew for each test and does not import concagent: a run of the whole suite *under* an
agent must pass too.  A left patch is undone, so that one careless test fails and not all that follow.

Hypothesis has two profiles: ``ci`` repeats itself exactly, ``nightly`` looks fifty times as far
(``HYPOTHESIS_PROFILE=nightly``).
"""

from __future__ import annotations

import _thread
import builtins
import functools
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import pytest

try:
    from hypothesis import settings
except ImportError:  # a matrix leg may go without
    pass
else:
    settings.register_profile("ci", derandomize=True, deadline=None, database=None)
    settings.register_profile("nightly", deadline=None, max_examples=50 * settings.get_profile("ci").max_examples)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Bound here, before any test patches them.
_monotonic = time.monotonic
_sleep = time.sleep

# A run in the background (``nohup``, ``&``) inherits ignored signals and hands them on; programs under test expect theirs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGALRM"):
    # An alarm that a busy machine delivers after its test has ended must not end the process.
    signal.signal(signal.SIGALRM, lambda *_: None)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# How long a thread that has been told to end may take to be gone.
_SETTLE_SECONDS = 5.0

_WATCHED = (
    (threading, "Lock"),
    (threading, "RLock"),
    (threading, "Condition"),
    (threading, "Semaphore"),
    (threading, "BoundedSemaphore"),
    (threading, "Event"),
    (threading, "Barrier"),
    (threading, "_allocate_lock"),
    (threading, "_start_new_thread"),
    (threading.Thread, "start"),
    (threading.Thread, "join"),
    (_thread, "allocate_lock"),
    (_thread, "allocate"),
    (_thread, "RLock"),
    (_thread, "LockType"),
    (_thread, "start_new_thread"),
    (builtins, "open"),
    (io, "open"),
)


def _patchable() -> dict[str, object]:
    """Return what the agent may replace, as it is now."""
    return {f"{owner.__name__}.{name}": getattr(owner, name, None) for owner, name in _WATCHED}


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a patch, a thread of ``threading``, or a thread that ``threading`` does not know."""
    patchable = _patchable()
    known = set(threading.enumerate())
    native = _thread._count()

    yield

    problems = [f"patched: {name}" for name, value in _patchable().items() if value is not patchable[name]]
    if problems:
        _uninstall()
    deadline = _monotonic() + _SETTLE_SECONDS
    while _thread._count() > native or set(threading.enumerate()) - known:
        if _monotonic() > deadline:
            problems += [f"thread: {thread!r}" for thread in threading.enumerate() if thread not in known]
            if _thread._count() > native:
                problems.append(f"{_thread._count() - native} more native threads than before")
            break
        _sleep(0.002)
    if problems:
        pytest.fail("the test left behind: " + "; ".join(problems), pytrace=False)


def _uninstall() -> None:
    """Undo what a test forgot, if the agent can."""
    uninstall = getattr(sys.modules.get("concagent"), "uninstall", None)
    if uninstall is not None:
        uninstall()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests that use the alarm clock themselves be watched by a thread: pytest-timeout's own clock is the same one.

    An alarm of theirs that fell due just after they gave the handler back was taken for the time-out, and ended the run.
    """
    for item in items:
        module = getattr(item, "module", None)
        if module is not None and hasattr(signal, "setitimer") and _uses_the_alarm(module.__file__):
            item.add_marker(pytest.mark.timeout(120, method="thread"))


@functools.cache
def _uses_the_alarm(file: str) -> bool:
    with open(file, encoding="utf-8") as source:
        return "signal.setitimer(" in source.read()
