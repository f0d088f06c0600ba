"""Rows E06-E08, E14, E15, M10: waiting that looks bad and is none."""

from __future__ import annotations

from typing import Any

import pytest

E06 = """
    import threading
    from scaffold import Gate, finish, pause
    L = threading.Lock()
    held = Gate()

    def slow():
        with L:
            held.open()
            pause({seconds})

    def waiter():
        held.wait()
        with L:
            pass

    threads = [threading.Thread(target=slow, name="slow"), threading.Thread(target=waiter, name="waiter")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pause({after})
    finish()
    """


def test_e06_a_slow_holder_is_a_long_wait_once_and_no_deadlock(runner: Any) -> None:
    outcome = runner.ends(E06.format(seconds=3, after=1.2), long_wait=0.5, long_hold=0.5)

    assert sorted(outcome.kinds) == ["long-hold", "long-wait"]
    waited = outcome.of("long-wait")[0]
    assert waited["title"].startswith("waiter has waited")
    assert {actor["name"]: actor["role"] for actor in waited["actors"]} == {"waiter": "member", "slow": "bystander"}
    assert "slow" in waited["title"]


def test_e06_twin_a_quick_holder_is_silent(runner: Any) -> None:
    runner.silent(E06.format(seconds=0.1, after=0), long_wait=2, long_hold=2)


def test_e07_a_look_while_a_lock_passes_to_its_waiter_reports_nothing(runner: Any) -> None:
    # Between the release and the waiter's waking nobody holds the lock; looks fall into that moment now and then.
    runner.silent(
        """
        import sys, threading
        import concagent
        from scaffold import finish
        sys.setswitchinterval(1e-5)
        L = threading.Lock()
        over = []

        def worker():
            while not over:
                with L:
                    pass

        threads = [threading.Thread(target=worker) for _ in range(3)]
        for thread in threads:
            thread.start()
        looks = [concagent.snapshot() for _ in range(300)]
        over.append(True)
        for thread in threads:
            thread.join()
        free = [p for p in looks if any(r.kind == "lock" for r in p.resources) and not p.assignments]
        print(len(free), "looks at a wait for a lock without a holder")
        finish()
        """
    )


def test_e07_positive_twin_the_same_looks_at_a_ring_see_it_each_time(runner: Any, assert_deadlock: Any) -> None:
    outcome = runner.hangs(
        """
        import threading
        import concagent
        from scaffold import Meeting, finish
        A = threading.Lock()
        B = threading.Lock()
        both = Meeting(2)

        def one(first, second):
            with first:
                both.wait()
                with second:
                    pass

        for pair in ((A, B), (B, A)):
            threading.Thread(target=one, args=pair, daemon=True).start()
        while not concagent.findings():
            pass
        assert all(len(concagent.snapshot().requests) == 2 for _ in range(50))
        finish()
        """
    )

    assert_deadlock(outcome.only, 2)
    assert outcome.stdout == "DONE\n"


def test_e08_a_hundred_readers_and_three_writers_are_silent(runner: Any) -> None:
    outcome = runner.ends(
        """
        import threading, time
        from scaffold import finish
        class ReadersWriter:
            def __init__(self):
                self.readers = 0
                self.entry = threading.Lock()
                self.room = threading.Lock()
            def __enter__(self):
                with self.entry:
                    self.readers += 1
                    if self.readers == 1:
                        self.room.acquire()
            def __exit__(self, *exc):
                with self.entry:
                    self.readers -= 1
                    if self.readers == 0:
                        self.room.release()
        rw = ReadersWriter()
        until = time.monotonic() + 5

        def read():
            while time.monotonic() < until:
                with rw:
                    pass
                time.sleep(0.002)

        def write():
            while time.monotonic() < until:
                with rw.room:
                    pass
                time.sleep(0.002)

        threads = [threading.Thread(target=read) for _ in range(100)] + [threading.Thread(target=write) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        finish()
        """,
        long_wait=0.05,
        long_hold=0.05,
        stall_after=0.05,
    )

    assert set(outcome.kinds) <= {"long-wait", "long-hold"}


E14 = """
    import threading
    from scaffold import Meeting, finish
    for _ in range(20):
        L = threading.Lock()
        M = threading.{kind}()
        changes = [0]
        start = Meeting(3)

        def owner():
            start.wait()
            while True:
                with L:
                    with M:
                        changes[0] += 1
                        if changes[0] > 1000:
                            return

        def plain():
            start.wait()
            while True:
                M.acquire()
                try:
                    if changes[0] > 1000:
                        return
                finally:
                    M.release()
                L.acquire()
                L.release()

        threads = [threading.Thread(target=target) for target in (owner, owner, plain)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finish()
    """


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_e14_a_lock_that_changes_hands_a_thousand_times_is_silent_20_times(runner: Any, kind: str) -> None:
    runner.silent(E14.format(kind=kind))


def test_e14_positive_twin_the_same_threads_with_the_locks_crossed_are_found(runner: Any, assert_deadlock: Any) -> None:
    found = runner.hangs(
        """
        import threading
        from scaffold import Gate
        L = threading.Lock()
        M = threading.Lock()
        changes, crossed = [0], [Gate(), Gate()]

        def owner(first, second, mine, theirs):
            while True:
                with first:
                    changes[0] += 1
                    if changes[0] > 1000:
                        mine.open()
                        theirs.wait()
                        with second:
                            return

        args = ((L, M, *crossed), (M, L, *reversed(crossed)))
        threads = [threading.Thread(target=owner, args=a, daemon=True) for a in args]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        """
    ).only

    assert_deadlock(found, 2, behind=sum(a["role"] == "behind" for a in found["actors"]))


E15 = """
    import sys, threading
    from scaffold import Gate, Meeting, finish
    sys.setswitchinterval(1e-6)
    A = threading.{kind}()
    B = threading.{kind}()
    rounds, start = {rounds}, Meeting(2)

    def nests():
        start.wait()
        for _ in range(rounds):
            with A:
                with B:
                    pass

    def alternates():
        start.wait()
        for _ in range(rounds):
            B.acquire()
            {first}
            A.acquire()
            A.release()
            {second}

    threads = [threading.Thread(target=nests), threading.Thread(target=alternates)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    finish()
    """


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_e15_an_owner_that_lets_go_between_two_readings_is_no_edge_in_1000_rounds(runner: Any, kind: str) -> None:
    # ``nests`` waits for B with A held; B's holder releases it and then waits for A, which the walk may see next.
    runner.silent(E15.format(rounds=1000, kind=kind, first="B.release()", second="pass"))


def test_e15_positive_twin_an_owner_that_keeps_it_is_found(runner: Any, assert_deadlock: Any) -> None:
    found = runner.hangs(E15.format(rounds="10**9", kind="Lock", first="pass", second="B.release()")).only

    assert_deadlock(found, 2, behind=sum(a["role"] == "behind" for a in found["actors"]))


M10 = """
    import random, threading
    from scaffold import finish
    class App:
        def __init__(self):
            self.lock = threading.RLock()
        def visit(self, other):
            with self.lock:
                {inner}
    apps = [App() for _ in range(20)]
    gate = threading.Lock()

    def run(seed):
        dice = random.Random(seed)
        for _ in range(500):
            i, j = dice.randrange(20), dice.randrange(20)
            with gate:
                apps[i].visit(apps[j])

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    finish()
    """


def test_m10_per_object_order_without_a_ring_makes_no_noise(runner: Any) -> None:
    outcome = runner.ends(M10.format(inner="with other.lock: pass"), log=True)

    assert len(outcome.findings) <= 1, [finding["title"] for finding in outcome.findings]
    assert set(outcome.kinds) <= {"lock-order-inversion"}
    if not outcome.findings:
        assert outcome.stderr == ""


def test_m10_twin_one_object_at_a_time_is_silent(runner: Any) -> None:
    outcome = runner.silent(M10.format(inner="pass"), log=True)

    assert outcome.stderr == ""
