"""Rows F09 and E24: programs that hang in some schedules only; the schedules are drawn from seeds that are printed.

A round is over when all its threads have ended, or when each that has not is asleep and nobody is left to wake it: this the
program finds out by itself, from the waits that the agent publishes, and only then does the main thread join them.
"""

from __future__ import annotations

from typing import Any

import pytest

SCHEDULES = 1000
HEAD = """
import random, sys, threading
from scaffold import finish, pause, until
from concagent import core

def is_over(threads):
    idents = {thread.ident for thread in threads if thread.is_alive()}
    asleep = [r for r in core.records() if r.ident in idents and not r.ended and r.waiting() is not None]
    return len(asleep) >= len(idents)

def hangs(threads):
    for thread in threads:
        thread.start()
    until(lambda: is_over(threads))
    for _ in range(3):  # who was just woken shows as a waiter still
        pause(0.002)
        until(lambda: is_over(threads))
    return any(thread.is_alive() for thread in threads)

def play(seeds):
    for seed in seeds:
        threads = round_of(seed)
        if hangs(threads):
            print("seed", seed, flush=True)
        for thread in threads:
            thread.join()
    finish()
"""

# Cargill: one condition for readers and writers, and one thread woken for each change.  Who is woken may be of the wrong kind.
BUFFER = """
class Buffer:
    def __init__(self, places, rng):
        self.items, self.places, self.rng = [], places, rng
        {conditions}
    def put(self, item):
        with self.not_full:
            while len(self.items) == self.places:
                self.not_full.wait()
            self.items.append(item)
            {put}
    def get(self):
        with self.not_empty:
            while not self.items:
                self.not_empty.wait()
            self.items.pop()
            {get}

def round_of(seed):
    rng = random.Random(seed)
    buffer = Buffer(1, rng)
    def reader(rests):
        for rest in rests:
            buffer.get()
            pause(rest)
    def writer(rests):
        for rest in rests:
            buffer.put(rest)
            pause(rest)
    def rests(number):
        return [rng.choice([0, 0, 0.0002]) for _ in range(number)]
    threads = [threading.Thread(target=reader, args=(rests(6),), name="reader") for _ in range(4)]
    threads += [threading.Thread(target=writer, args=(rests(12),), name="writer") for _ in range(2)]
    rng.shuffle(threads)
    return threads

play(range({rounds}))
"""
ONE = "self.not_full = self.not_empty = threading.Condition()"
TWO = "lock = threading.Lock(); self.not_full, self.not_empty = threading.Condition(lock), threading.Condition(lock)"


def test_f09_cargills_buffer_with_notify_hangs_in_one_of_a_thousand_schedules(runner: Any) -> None:
    runner.limit_seconds = 60.0
    signal = "self.not_full.notify()"

    outcome = runner.hangs(HEAD + BUFFER.format(conditions=ONE, put=signal, get=signal, rounds=SCHEDULES))

    found = outcome.only
    assert (found["kind"], found["confidence"]) == ("stall", "proven"), found["title"]
    members = {actor["name"] for actor in found["actors"] if actor["role"] == "member"}
    assert members
    assert members <= {"reader", "writer"}
    assert outcome.stdout.startswith("seed ")


@pytest.mark.parametrize(
    ("conditions", "put", "get"),
    [
        (ONE, "self.not_full.notify_all()", "self.not_full.notify_all()"),
        (TWO, "self.not_empty.notify()", "self.not_full.notify()"),
    ],
    ids=["notify_all", "two conditions"],
)
def test_f09_twin_notify_all_or_two_conditions_hang_in_no_schedule(
    runner: Any, conditions: str, put: str, get: str
) -> None:
    runner.limit_seconds = 60.0

    outcome = runner.silent(HEAD + BUFFER.format(conditions=conditions, put=put, get=get, rounds=60))

    assert outcome.stdout.endswith("DONE\n")


CROSSED = """
A, B = threading.Lock(), threading.Lock()
def worker(first, second, rests):
    for rest in rests:
        pause(rest)
        with first:
            pause(rest)
            with {second}:
                pass

def round_of(seed):
    rng = random.Random(seed)
    plans = [[rng.choice([0, 0.0001, 0.0003]) for _ in range(40)] for _ in range(2)]
    ends = [(A, B), (B, A)] if rng.random() < 0.5 else [(B, A), (A, B)]
    names = ["left", "right"]
    return [threading.Thread(target=worker, args=(*ends[i], plans[i]), name=names[i]) for i in range(2)]

play({seeds})
"""


def test_e24_a_hundred_runs_under_random_delays_and_the_same_verdict_from_the_same_seed(
    runner: Any, assert_deadlock: Any
) -> None:
    runner.limit_seconds = 60.0

    first = runner.hangs(HEAD + CROSSED.format(seeds="range(100)", second="second"))
    seed = int(first.stdout.split()[-1])
    again = [runner.hangs(HEAD + CROSSED.format(seeds=f"[{seed}] * 100", second="second")) for _ in range(2)]

    for outcome in (first, *again):
        assert_deadlock(outcome.only, members=2, behind=1)
        assert {a["name"] for a in outcome.only["actors"] if a["role"] == "member"} == {"left", "right"}
        assert outcome.stdout.split()[-1] == str(seed)
    assert len({outcome.only["fingerprint"] for outcome in (first, *again)}) == 1


def test_e24_twin_the_same_delays_without_the_crossing_are_silent(runner: Any) -> None:
    runner.limit_seconds = 60.0

    outcome = runner.silent(HEAD + CROSSED.format(seeds="range(30)", second="threading.Lock()"))

    assert outcome.stdout.endswith("DONE\n")
