"""CPython's own tests of locks, on every twin; and of what is built on locks, with the agent installed."""

from __future__ import annotations

import subprocess
import sys
import threading
import unittest
from typing import Any

import pytest

lock_tests = pytest.importorskip("test.lock_tests", reason="this interpreter ships without its tests")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def _run(base: type[unittest.TestCase], **types: Any) -> unittest.TestResult:
    """Run all tests of a class of ``lock_tests`` with the types under test."""
    case = type(base.__name__, (base,), {name: staticmethod(value) for name, value in types.items()})
    result = unittest.TestResult()
    unittest.TestLoader().loadTestsFromTestCase(case).run(result)
    return result


def _problems(result: unittest.TestResult) -> str:
    return "\n".join(text for _, text in (*result.failures, *result.errors))


def test_lock(twin: Any) -> None:
    result = _run(lock_tests.LockTests, locktype=twin.allocate_lock)

    assert result.testsRun > 10
    assert not _problems(result)


def test_rlock(twin: Any) -> None:
    result = _run(lock_tests.RLockTests, locktype=twin.RLock)

    assert result.testsRun > 10
    assert not _problems(result)


def test_condition_over_our_locks(twin: Any) -> None:
    def condition(lock: Any = None) -> threading.Condition:
        return threading.Condition(lock if lock is not None else twin.RLock())  # some of the tests take it twice

    result = _run(lock_tests.ConditionTests, condtype=condition)

    assert result.testsRun > 5
    assert not _problems(result)


SCRIPT = """
import concagent, sys
concagent.install(stderr=False, log=False, report_signal="off", socket=False)
import threading, unittest
from test import lock_tests

types = {
    "LockTests": {"locktype": threading.Lock}, "RLockTests": {"locktype": threading.RLock},
    "EventTests": {"eventtype": threading.Event}, "ConditionTests": {"condtype": threading.Condition},
    "SemaphoreTests": {"semtype": threading.Semaphore}, "BoundedSemaphoreTests": {"semtype": threading.BoundedSemaphore},
    "BarrierTests": {"barriertype": threading.Barrier},
}
bad, ran = 0, 0
for name, attributes in types.items():
    base = getattr(lock_tests, name)
    case = type(name, (base,), {key: staticmethod(value) for key, value in attributes.items()})
    result = unittest.TestResult()
    unittest.TestLoader().loadTestsFromTestCase(case).run(result)
    ran += result.testsRun
    for test, text in (*result.failures, *result.errors):
        bad += 1
        print(test.id(), text)
from concagent import state
found = [f.title for f in concagent.findings() if f.confidence == "proven" and f.kind in ("deadlock", "stall")]
print("ran", ran, "bad", bad, "errors", state.errors(), "found", found)
"""


def test_everything_built_on_locks_with_the_agent_installed() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=100, check=False)

    assert "bad 0 errors () found []" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0
