"""Row F11: a condition that is waited on or notified without its lock, which Python refuses, and programs that reckon with it."""

from __future__ import annotations

from typing import Any

import pytest

PROGRAM = """
import sys, threading
from scaffold import finish

class Box:
    def __init__(self):
        self.filled = threading.Condition({lock})

    def use(self):
        {use}

box = Box()

def main():
    try:
        box.use()
    except Exception as error:
        print(type(error).__name__, error)

{start}
finish()
"""
IN_MAIN = "main()"
IN_A_THREAD = "worker = threading.Thread(target=main, name='worker'); worker.start(); worker.join()"
USES = {
    "wait": ("self.filled.wait()", "wait"),
    "wait with a time limit": ("self.filled.wait(timeout=1)", "wait"),
    "wait_for": ("self.filled.wait_for(bool)", "wait"),
    "notify": ("self.filled.notify()", "notify"),
    "notify_all": ("self.filled.notify_all()", "notify"),
    "notify caught on the spot": ("try: self.filled.notify()\n        except RuntimeError as error: raise", "notify"),
}


@pytest.fixture(params=["c", "python"])
def twin(request: pytest.FixtureRequest) -> str:
    """Both cores."""
    return str(request.param)


@pytest.mark.parametrize("lock", ["", "threading.RLock()", "threading.Lock()"])
@pytest.mark.parametrize("use", USES)
def test_f11_a_condition_used_without_its_lock_is_a_misuse_and_the_error_is_the_originals(
    runner: Any, use: str, lock: str, twin: str
) -> None:
    line, verb = USES[use]

    outcome = runner.ends(PROGRAM.format(lock=lock, use=line, start=IN_A_THREAD), core=twin)

    found = outcome.only
    assert (found["kind"], found["detail"], found["confidence"]) == ("misuse", "without-lock", "proven")
    assert outcome.stdout == f"RuntimeError cannot {verb} on un-acquired lock\nDONE\n"
    assert [(actor["name"], actor["role"]) for actor in found["actors"]] == [("worker", "member")]
    assert found["actors"][0]["stack"][-1]["function"].rpartition(".")[2] == "use"  # 3.10 names no class
    assert line.partition("\n")[0] == found["actors"][0]["stack"][-1]["source"]
    assert "with condition:" in found["advice"]


def test_f11_the_condition_is_named_by_where_it_was_made(runner: Any) -> None:
    found = runner.ends(PROGRAM.format(lock="", use="self.filled.notify()", start=IN_MAIN)).only

    assert found["title"].startswith("MainThread calls wait() or notify() of condition ")
    assert '.filled" without having its lock' in found["title"]
    assert found["resources"][0]["created"]["function"].rpartition(".")[2] == "__init__"


def test_f11_in_a_loop_it_is_told_once_and_while_the_program_runs(runner: Any) -> None:
    many = "for _ in range(1000): main()"
    child = runner.start(
        PROGRAM.format(lock="", use="self.filled.notify()", start=f"{many}\nthreading.Event().wait(5)")
    )

    told = child.wait_for_findings(1)
    running = child.process.poll() is None
    child.linger()

    assert told
    assert running
    assert len(child.end().findings) == 1


SOUND = {
    "with the lock": "with self.filled: self.filled.notify(); self.filled.wait(0.01)",
    "asked whether the lock is one's own": "self.filled._is_owned()",
    "a test in unittest's words": """import unittest
        unittest.TestCase().assertRaises(RuntimeError, self.filled.notify)""",
    "a test with a block": """import unittest
        with unittest.TestCase().assertRaises(RuntimeError): self.filled.wait()""",
    "another way in the handler": """try:
            self.filled.notify_all()
        except RuntimeError:
            with self.filled:
                self.filled.notify_all()""",
    "what is built on conditions": """import queue
        event, jobs, permits = threading.Event(), queue.Queue(1), threading.Semaphore()
        event.set(); jobs.put(1); jobs.get(); jobs.task_done(); jobs.join(); permits.acquire(); permits.release()""",
}


@pytest.mark.parametrize("use", SOUND)
@pytest.mark.parametrize("lock", ["", "threading.Lock()"])
def test_f11_twin_who_has_the_lock_or_expects_the_refusal_is_silent(
    runner: Any, use: str, lock: str, twin: str
) -> None:
    outcome = runner.silent(PROGRAM.format(lock=lock, use=SOUND[use], start=IN_MAIN), core=twin)

    assert outcome.stdout == "DONE\n"


def test_f11_twin_a_condition_of_its_own_kind_decides_for_itself(runner: Any) -> None:
    """A derived condition that says who owns it is asked, and nobody else."""
    outcome = runner.silent(
        """
        import threading
        from scaffold import finish

        class Open(threading.Condition):
            def _is_owned(self):
                return True

        Open(threading.Lock()).notify()
        finish()
        """
    )

    assert outcome.stdout == "DONE\n"
