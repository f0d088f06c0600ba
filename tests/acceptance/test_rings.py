"""Rows E and D: present deadlocks on locks and joins, each beside the program that was cured of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

Check = Callable[..., None]

# ---------------------------------------------------------------- E01

E01 = {
    "with": """
        import threading
        from scaffold import Meeting, finish
        A = threading.Lock()
        B = threading.Lock()
        both = Meeting(2)

        def one(first, second):
            with first:
                both.wait()
                with second:
                    pass

        threads = [threading.Thread(target=one, args=pair, name=name) for pair, name in (((A, B), "ab"), ((B, A), "ba"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        """,
    "finally": """
        import threading
        from scaffold import Gate
        class Bank:
            def __init__(self):
                self.accounts = threading.Lock()
                self.audit = threading.Lock()
                self.first, self.second = Gate(), Gate()
            def transfer(self):
                self.accounts.acquire()
                try:
                    self.first.open()
                    self.second.wait()
                    self.audit.acquire()
                    try:
                        pass
                    finally:
                        self.audit.release()
                finally:
                    self.accounts.release()
            def report(self):
                self.audit.acquire()
                try:
                    self.second.open()
                    self.first.wait()
                    self.accounts.acquire()
                    try:
                        pass
                    finally:
                        self.accounts.release()
                finally:
                    self.audit.release()
        bank = Bank()
        threads = [threading.Thread(target=target, daemon=True) for target in (bank.transfer, bank.report)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        """,
    "bare, main polls": """
        import threading, time
        from scaffold import Meeting
        A = threading.Lock()
        B = threading.Lock()
        both = Meeting(2)

        def ab():
            A.acquire()
            both.wait()
            B.acquire()

        def ba():
            B.acquire()
            both.wait()
            A.acquire()

        threads = [threading.Thread(target=ab, daemon=True), threading.Thread(target=ba, daemon=True)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.01)
        """,
    "release at the end, main polls": """
        import threading, time
        from scaffold import Meeting
        locks = [threading.Lock(), threading.Lock()]
        both = Meeting(2)

        def work(i, j):
            locks[i].acquire()
            both.wait()
            locks[j].acquire()
            locks[j].release()
            locks[i].release()

        threads = [threading.Thread(target=work, args=pair) for pair in ((0, 1), (1, 0))]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.01)
        """,
    "main is a member": """
        import threading
        from scaffold import Gate
        A = threading.Lock()
        B = threading.Lock()
        mine, theirs = Gate(), Gate()

        def other():
            with B:
                theirs.open()
                mine.wait()
                A.acquire()
                A.release()

        threading.Thread(target=other).start()
        A.acquire()
        mine.open()
        theirs.wait()
        with B:
            pass
        A.release()
        """,
    "main has ended": """
        import threading
        from scaffold import Meeting
        A = threading.Lock()
        B = threading.RLock()
        both = Meeting(2)

        def one(first, second):
            with first:
                both.wait()
                with second:
                    pass

        threading.Thread(target=one, args=(A, B)).start()
        threading.Thread(target=one, args=(B, A)).start()
        """,
    "_thread": """
        import _thread
        from scaffold import Gate, Meeting
        A = _thread.allocate_lock()
        B = _thread.allocate_lock()
        both, never = Meeting(2), Gate()

        def one(first, second):
            first.acquire()
            both.wait()
            second.acquire()
            second.release()
            first.release()

        _thread.start_new_thread(one, (A, B))
        _thread.start_new_thread(one, (B, A))
        never.wait()
        """,
}


@pytest.mark.parametrize("style", E01)
def test_e01_two_threads_in_opposite_order_form_one_ring(
    runner: Any, shape: str, style: str, assert_deadlock: Check
) -> None:
    found = runner.hangs(E01[style], shape=shape).only

    assert_deadlock(found, 2, sum(actor["role"] == "behind" for actor in found["actors"]))
    assert {actor["name"] for actor in found["actors"] if actor["role"] == "behind"} <= {"MainThread"}


def test_e01_twin_two_threads_in_one_order_are_silent(runner: Any, shape: str) -> None:
    runner.silent(
        """
        import threading
        from scaffold import Gate, finish, waiting
        A = threading.Lock()
        B = threading.Lock()
        taken = Gate()

        def first():
            with A:
                taken.open()
                waiting(2)  # the other one, and main in join
                with B:
                    pass

        def second():
            taken.wait()
            with A:
                with B:
                    pass

        threads = [threading.Thread(target=first), threading.Thread(target=second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        finish()
        """,
        shape=shape,
    )


def test_e01_main_that_joins_a_member_is_behind(runner: Any, assert_deadlock: Check) -> None:
    outcome = runner.hangs(
        """
        import threading
        from scaffold import Meeting, waiting
        A = threading.Lock()
        B = threading.Lock()
        both = Meeting(2)

        def one(first, second):
            with first:
                both.wait()
                waiting(1)  # main in join
                with second:
                    pass

        threads = [threading.Thread(target=one, args=pair) for pair in ((A, B), (B, A))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        """
    )

    assert_deadlock(outcome.only, 2, behind=1)
    assert [a["name"] for a in outcome.only["actors"] if a["role"] == "behind"] == ["MainThread"]


def test_e01_is_reported_once_however_long_it_lasts(runner: Any) -> None:
    child = runner.start(E01["with"])
    child.wait_for_findings(1)
    child.linger(3.0)

    assert child.end().only["count"] == 1


# ---------------------------------------------------------------- E02-E05

RING = """
    import random, sys, threading
    from scaffold import Meeting, finish
    number, times, order = {number}, {times}, {order}
    locks = [threading.{kind}() for _ in range(number)]
    all_hold = Meeting(number if {ring} else 1)

    def member(first, second):
        for _ in range(times):
            first.acquire()
        try:
            all_hold.wait()
            with second:
                pass
        finally:
            for _ in range(times):
                first.release()

    threads = []
    for at, index in enumerate(order):
        following = order[(at + 1) % number]
        pair = (index, following) if {ring} else sorted((index, following))
        threads.append(threading.Thread(target=member, args=[locks[i] for i in pair], name=f"member-{{index}}"))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    finish()
    """


def ring_program(number: int, kind: str = "Lock", times: int = 1, ring: bool = True, seed: int = 0) -> str:
    order = list(range(number))
    if seed:
        random.Random(seed).shuffle(order)
    return RING.format(number=number, kind=kind, times=times, ring=ring, order=order)


def members_of(finding: dict[str, Any]) -> int:
    return sum(actor["role"] == "member" for actor in finding["actors"])


def behind_of(finding: dict[str, Any]) -> int:
    return sum(actor["role"] == "behind" for actor in finding["actors"])


@pytest.mark.parametrize("number", [3, 5, 8])
def test_e02_a_ring_of_locks_has_all_its_members(runner: Any, number: int, assert_deadlock: Check) -> None:
    found = runner.hangs(ring_program(number)).only

    assert_deadlock(found, number, behind_of(found))


@pytest.mark.parametrize("number", [3, 5, 8])
def test_e02_twin_sorted_locks_are_silent(runner: Any, number: int) -> None:
    runner.silent(ring_program(number, ring=False))


PHILOSOPHERS = """
    import threading
    from scaffold import Meeting, finish
    forks = [threading.Lock() for _ in range(5)]
    seated = Meeting(5 if {greedy} else 1)

    class Philosopher(threading.Thread):
        def __init__(self, seat):
            super().__init__(name=f"philosopher {{seat}}")
            self.left, self.right = forks[seat], forks[(seat + 1) % 5]
            if not {greedy} and seat == 4:
                self.left, self.right = self.right, self.left

        def run(self):
            for _ in range(100):
                self.left.acquire()
                seated.wait()
                self.right.acquire()
                self.eat()
                self.right.release()
                self.left.release()

        def eat(self):
            pass

    table = [Philosopher(seat) for seat in range(5)]
    for philosopher in table:
        philosopher.start()
    for philosopher in table:
        philosopher.join()
    finish()
    """


def test_e03_five_philosophers_with_their_left_forks_are_one_ring(runner: Any, assert_deadlock: Check) -> None:
    found = runner.hangs(PHILOSOPHERS.format(greedy=True)).only

    assert_deadlock(found, 5, behind_of(found))


def test_e03_twin_with_one_left_handed_philosopher_is_silent(runner: Any) -> None:
    runner.silent(PHILOSOPHERS.format(greedy=False))


@pytest.mark.parametrize("seed", range(1, 11))
def test_e04_a_shuffled_ring_is_found_whole(runner: Any, seed: int, assert_deadlock: Check) -> None:
    number = 2 + seed % 6
    found = runner.hangs(ring_program(number, seed=seed)).only

    assert_deadlock(found, number, behind_of(found))


def test_e04_twin_shuffled_threads_with_sorted_locks_are_silent(runner: Any) -> None:
    for seed in range(1, 4):
        runner.silent(ring_program(2 + seed % 6, ring=False, seed=seed))


def test_e05_a_ring_of_rlocks_held_twice_is_found(runner: Any, assert_deadlock: Check) -> None:
    found = runner.hangs(ring_program(3, "RLock", times=2)).only

    assert_deadlock(found, 3, behind_of(found))
    assert found["resource_kind"] == "rlock"


def test_e05_twin_sorted_rlocks_held_twice_are_silent(runner: Any) -> None:
    runner.silent(ring_program(3, "RLock", times=2, ring=False))


# ---------------------------------------------------------------- E10, E11

LASSO = """
    import threading
    from scaffold import Gate, Meeting, finish, waiting
    A = threading.Lock()
    B = threading.Lock()
    C = threading.Lock()
    both, tail = Meeting(2), Gate()

    def member(first, second):
        with first:
            both.wait()
            waiting(3)  # T3, T4, and main in join
            with second:
                pass

    def third():
        with C:
            tail.open()
            with A:
                pass

    def fourth():
        tail.wait()
        with C:
            pass

    pairs = ((A, B), (B, A)) if {ring} else ((A, B), (B, C))
    threads = [threading.Thread(target=member, args=pair, name=f"T{{i}}") for i, pair in enumerate(pairs, 1)]
    if not {ring}:
        del threads[1]
        both = Meeting(1)
    for thread in threads:
        thread.start()
    for target, name in ((third, "T3"), (fourth, "T4")):
        threads.append(threading.Thread(target=target, name=name))
    while not A.locked():
        pass
    for thread in threads[-2:]:
        thread.start()
    for thread in threads:
        thread.join()
    finish()
    """


def test_e10_who_waits_behind_a_ring_is_no_member(runner: Any, assert_deadlock: Check) -> None:
    found = runner.hangs(LASSO.format(ring=True)).only

    assert_deadlock(found, 2, behind=3)
    roles = {actor["name"]: actor["role"] for actor in found["actors"]}
    assert roles == {"T1": "member", "T2": "member", "T3": "behind", "T4": "behind", "MainThread": "behind"}


def test_e10_twin_a_queue_behind_a_working_holder_is_silent(runner: Any) -> None:
    runner.silent(LASSO.format(ring=False))


TWO_RINGS = """
    import threading
    from scaffold import Meeting, finish
    A = threading.Lock()
    B = threading.Lock()
    C = threading.Lock()
    D = threading.Lock()
    all_hold = Meeting({number})

    def one(first, second):
        with first:
            all_hold.wait()
            with second:
                pass

    def other(first, second):
        with first:
            all_hold.wait()
            with second:
                pass

    plan = {plan}
    threads = [threading.Thread(target=target, args=pair) for target, pair in plan]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    finish()
    """


def test_e11_two_disjoint_rings_are_two_findings(runner: Any, assert_deadlock: Check) -> None:
    plan = "[(one, (A, B)), (one, (B, A)), (other, (C, D)), (other, (D, C))]"
    outcome = runner.hangs(TWO_RINGS.format(plan=plan, number=4), number=2)

    assert len(outcome.findings) == 2
    for found in outcome.findings:
        assert_deadlock(found, 2, behind_of(found))
    actors = [a["id"] for found in outcome.findings for a in found["actors"] if a["role"] == "member"]
    assert len(set(actors)) == 4


def test_e11_the_same_code_on_other_locks_is_another_ring(runner: Any) -> None:
    plan = "[(one, (A, B)), (one, (B, A)), (one, (C, D)), (one, (D, C))]"
    outcome = runner.hangs(TWO_RINGS.format(plan=plan, number=4), number=2)

    assert len(outcome.findings) == 2


def test_e11_twin_two_disjoint_orders_are_silent(runner: Any) -> None:
    runner.silent(TWO_RINGS.format(plan="[(one, (A, B)), (other, (C, D))]", number=2))


# ---------------------------------------------------------------- E13, E16


def test_e13_a_ring_with_a_timed_wait_is_no_deadlock_before_or_after(runner: Any, shape: str) -> None:
    runner.silent(
        """
        import threading
        from scaffold import Meeting, finish
        A = threading.Lock()
        B = threading.Lock()
        both = Meeting(2)
        got = []

        def patient():
            with A:
                both.wait()
                with B:
                    got.append("B")

        def impatient():
            with B:
                both.wait()
                got.append(A.acquire(timeout=2))

        threads = [threading.Thread(target=patient), threading.Thread(target=impatient)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == [False, "B"], got
        finish()
        """,
        shape=shape,
    )


JOIN_RING = """
    import threading
    from scaffold import Gate, finish, waiting
    A = threading.Lock()
    held = Gate()

    def second():
        held.wait()
        {second}

    def first(other):
        A.acquire()
        held.open()
        {first}

    T2 = threading.Thread(target=second, name="T2")
    T1 = threading.Thread(target=first, args=(T2,), name="T1")
    T2.start()
    T1.start()
    T1.join()
    T2.join()
    finish()
    """


@pytest.mark.parametrize("who_is_last", ["join", "lock"])
def test_e16_a_join_closes_a_ring_with_a_lock(runner: Any, who_is_last: str, assert_deadlock: Check) -> None:
    first = "other.join(); A.release()"
    second = "A.acquire(); A.release()"
    if who_is_last == "join":
        first = "waiting(2); " + first
    else:
        second = "waiting(2); " + second
    found = runner.hangs(JOIN_RING.format(first=first, second=second)).only

    assert_deadlock(found, 2, behind=1)
    assert sorted(resource["kind"] for resource in found["resources"] if resource["holders"]) == [
        "lock",
        "thread",
        "thread",
    ]
    assert "joins" in found["title"]


def test_e16_twin_a_join_after_the_release_is_silent(runner: Any) -> None:
    runner.silent(JOIN_RING.format(first="waiting(2); A.release(); other.join()", second="A.acquire(); A.release()"))


# ---------------------------------------------------------------- D01-D03, J10

D01 = {
    "bare": """
        import threading
        L = threading.Lock()
        L.acquire()
        L.acquire()
        """,
    "with": """
        import threading
        L = threading.Lock()
        with L:
            with L:
                pass
        """,
    "two functions": """
        import threading
        L = threading.Lock()

        def outer():
            L.acquire()
            try:
                inner()
            finally:
                L.release()

        def inner():
            with L:
                pass

        outer()
        """,
    "in a thread, main polls": """
        import threading, time
        L = threading.Lock()

        def outer():
            with L:
                inner()

        def inner():
            L.acquire()
            L.release()

        thread = threading.Thread(target=outer)
        thread.start()
        while thread.is_alive():
            time.sleep(0.01)
        """,
}


@pytest.mark.parametrize("style", D01)
def test_d01_a_lock_taken_twice_is_a_deadlock_of_one(
    runner: Any, shape: str, style: str, assert_deadlock: Check
) -> None:
    found = runner.hangs(D01[style], shape=shape).only

    assert_deadlock(found, 1)


def test_d01_twin_a_lock_taken_again_after_its_release_is_silent(runner: Any) -> None:
    runner.silent(
        """
        import threading
        L = threading.Lock()
        L.acquire()
        L.release()
        L.acquire()
        assert not L.acquire(False)
        L.release()
        with L:
            pass
        """
    )


def test_d02_an_rlock_taken_five_times_is_silent(runner: Any, shape: str) -> None:
    runner.silent(
        """
        import threading
        R = threading.RLock()
        for _ in range(5):
            R.acquire()
        for _ in range(5):
            R.release()
        with R, R, R:
            pass
        """,
        shape=shape,
    )


def test_d03_a_lock_taken_twice_with_a_timeout_returns_false_and_is_silent(runner: Any, shape: str) -> None:
    runner.silent(
        """
        import threading
        L = threading.Lock()
        assert L.acquire(timeout=0.2) is True
        assert L.acquire(timeout=0.2) is False
        assert L.acquire(True, 1.5) is False
        L.release()
        """,
        shape=shape,
    )


J10 = """
    import threading
    from scaffold import finish
    class Store:
        def __init__(self):
            self._lock = threading.{kind}()
            self._items = []

        def add(self, item):
            {take}
                self._items.append(item)
                return self.size()
            {give}

        def size(self):
            {take}
                return len(self._items)
            {give}

    store = Store()
    thread = threading.Thread(target=store.add, args=(1,), name="adder")
    thread.start()
    {main}
    finish()
    """
J10_STYLES = {
    "with": {"take": "if 1:\n             with self._lock:", "give": ""},
    "finally": {"take": "self._lock.acquire()\n            try:", "give": "finally: self._lock.release()"},
}
J10_MAINS = {"join": "thread.join()", "poll": "while thread.is_alive(): pass"}


@pytest.mark.parametrize("style", J10_STYLES)
@pytest.mark.parametrize("main", J10_MAINS)
def test_j10_a_public_method_that_calls_another_is_found_with_both_frames(
    runner: Any, style: str, main: str, assert_deadlock: Check
) -> None:
    found = runner.hangs(J10.format(kind="Lock", main=J10_MAINS[main], **J10_STYLES[style])).only

    assert_deadlock(found, 1, behind_of(found))
    member = next(actor for actor in found["actors"] if actor["role"] == "member")
    functions = [frame["function"].rpartition(".")[2] for frame in member["stack"]]
    assert functions[-2:] == ["add", "size"]
    resource = next(r for r in found["resources"] if r["id"] == member["waits_for"])
    assert resource["name"] in {"Store._lock", "self._lock"}  # Python 3.10 has no class names
    assert resource["holders"][0]["acquired"]["function"].rpartition(".")[2] == "add"


def test_j10_bare_acquire_and_release_are_found_though_main_lives(runner: Any, assert_deadlock: Check) -> None:
    found = runner.hangs(
        """
        import threading
        from scaffold import pause
        class Store:
            def __init__(self):
                self._lock = threading.Lock()
            def add(self):
                self._lock.acquire()
                self.size()
                self._lock.release()
            def size(self):
                self._lock.acquire()
                result = 1
                self._lock.release()
                return result
        thread = threading.Thread(target=Store().add, daemon=True)
        thread.start()
        pause(5)
        """
    ).only

    assert_deadlock(found, 1)


@pytest.mark.parametrize("style", J10_STYLES)
def test_j10_twin_with_an_rlock_is_silent(runner: Any, style: str) -> None:
    runner.silent(J10.format(kind="RLock", main="thread.join()", **J10_STYLES[style]))
