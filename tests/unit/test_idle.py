"""Everybody is asleep: does the main thread wait for the end of the program, or for what will never come?"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from factories import actor, resource, snapshot, waits

from concagent import idle
from concagent.words import NO_WORK

MAIN, OTHER = 1, 2


def is_idle(main, other=None, *, daemon=True):
    """Return the verdict on a main thread that waits for the resource, and one more thread."""
    edges = [waits(MAIN, main.serial)] + ([waits(OTHER, other.serial)] if other else [])
    picture = snapshot(
        *edges,
        resources=(main, other) if other else (main,),
        actors=(actor(MAIN), actor(OTHER, daemon=daemon)) if other else (actor(MAIN),),
    )
    return idle.is_idle(picture, frozenset(edge.actor for edge in edges), MAIN)


EVENT = resource(10, "event")
JOBS = resource(20, "queue", detail="empty, 7 taken")


@pytest.mark.parametrize("worker", [JOBS, resource(20, "condition"), resource(20, "queue", detail="empty")])
def test_daemons_that_wait_for_work_are_idle_and_so_is_who_waits_for_the_end(worker):
    assert is_idle(EVENT, worker)
    assert not is_idle(EVENT, worker, daemon=False)


def test_workers_of_a_pool_are_idle_though_they_are_no_daemons():
    assert is_idle(EVENT, resource(20, "queue", detail=NO_WORK), daemon=False)


@pytest.mark.parametrize("other", [resource(20, kind) for kind in ("event", "lock", "semaphore", "barrier")])
def test_who_waits_for_something_else_than_work_is_not_idle(other):
    assert not is_idle(EVENT, other)


@pytest.mark.parametrize(
    "asked",
    [
        resource(10, "queue", detail="full, 1 of 1"),
        resource(10, "queue", detail="empty, 1 taken"),
        resource(10, "queue", detail="1 task not done"),
        resource(10, "semaphore"),
        resource(10, "barrier"),
        resource(10, "lock"),
    ],
)
def test_a_main_thread_that_waits_for_what_was_to_come_is_not_idle(asked):
    assert not is_idle(asked, JOBS)


def test_a_main_thread_alone_waits_for_its_children_or_for_nobody():
    assert not is_idle(EVENT)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert is_idle(EVENT)
    finally:
        child.communicate(b"\n")
    assert not is_idle(EVENT)


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="no waitid")
def test_asking_for_children_takes_none_away():
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert idle.has_children()
    assert child.wait() == 3
