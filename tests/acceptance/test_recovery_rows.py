"""Rows I01, I03, I19, I20: a victim that unwinds, and callbacks that misbehave."""

from __future__ import annotations

from typing import Any

import pytest

I01 = """
    import threading
    import concagent
    from scaffold import Gate, Meeting, finish, waiting
    A = threading.{kind}()
    B = threading.{kind}()
    both, first_waits = Meeting(2), Gate()
    victims, finished = [], []

    def first():
        try:
            with A:
                both.wait()
                with B:
                    pass
            finished.append("first")
        except concagent.DeadlockError as error:
            victims.append(("first", error))

    def second():
        try:
            with B:
                both.wait()
                waiting(1, "lock", "rlock")
                {inner}
            finished.append("second")
        except concagent.DeadlockError as error:
            victims.append(("second", error))

    threads = [threading.Thread(target=target, name=target.__name__) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not A.acquire(False) or A.release() is None
    print(finished, [name for name, _ in victims])
    if victims:
        error = victims[0][1]
        assert isinstance(error, RuntimeError)
        assert error.finding.kind == "deadlock"
        assert error.finding.id in str(error)
        assert A.acquire(False) and B.acquire(False)
        A.release(), B.release()
    finish()
    """


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_i01_the_victim_unwinds_and_the_other_one_finishes(runner: Any, shape: str, kind: str) -> None:
    outcome = runner.ends(I01.format(kind=kind, inner="with A: pass"), recover="raise", shape=shape)

    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout == "['first'] ['second']\nDONE\n"
    found = outcome.only
    assert (found["kind"], found["confidence"]) == ("deadlock", "proven")
    roles = {actor["name"]: actor["role"] for actor in found["actors"]}
    assert (roles["first"], roles["second"]) == ("member", "victim")


def test_i01_twin_without_a_ring_nothing_is_raised(runner: Any) -> None:
    outcome = runner.silent(I01.format(kind="Lock", inner="pass"), recover="raise")

    assert sorted(outcome.stdout.split("]")[0]) == sorted("['second', 'first'")


def test_i01_a_signal_is_no_deadlock_for_recovery_either(runner: Any) -> None:
    runner.silent(
        """
        import signal, threading
        from scaffold import finish
        L = threading.Lock()
        L.acquire()
        threading.Timer(0.5, L.release).start()
        L.acquire()
        signal.signal(signal.SIGALRM, lambda *_: L.release())
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        L.acquire()
        finish()
        """,
        recover="raise",
    )


def test_i01_a_self_deadlock_raises_at_the_second_call(runner: Any) -> None:
    outcome = runner.ends(
        """
        import threading
        import concagent
        from scaffold import finish
        L = threading.Lock()
        try:
            with L:
                with L:
                    pass
        except concagent.DeadlockError:
            assert not L.locked()
            finish()
        """,
        recover="raise",
    )

    assert outcome.stdout == "DONE\n", outcome.stderr
    assert [actor["role"] for actor in outcome.only["actors"]] == ["victim"]


def test_i03_of_five_equals_the_last_to_join_the_ring_is_the_victim(runner: Any) -> None:
    outcome = runner.ends(
        """
        import threading
        import concagent
        from scaffold import Meeting, finish, waiting
        locks = [threading.Lock() for _ in range(5)]
        all_hold = Meeting(5)
        victims = []

        def member(index):
            try:
                with locks[index]:
                    all_hold.wait()
                    waiting(index, "lock")  # those before us
                    with locks[(index + 1) % 5]:
                        pass
            except concagent.DeadlockError:
                victims.append(index)

        threads = [threading.Thread(target=member, args=(index,)) for index in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(victims)
        """,
        recover="raise",
    )

    assert outcome.stdout == "[4]\n"
    assert len(outcome.findings) == 1


I19 = """
    import threading
    import concagent
    from scaffold import Meeting, finish, pause, until
    A = threading.Lock()
    B = threading.Lock()
    both, told, entered = Meeting(2), [], []

    def greedy(finding):
        entered.append(finding)
        {greedy}

    def broken(finding):
        entered.append(finding)
        raise ValueError("broken callback")

    def good(finding):
        told.append(finding.kind)

    for callback in ({callbacks}):
        concagent.on_finding(callback)

    def one(first, second):
        with first:
            both.wait()
            with second:
                pass

    def release():
        try:
            threading.Lock().release()
        except RuntimeError:
            pass
    """


def test_i19_a_callback_that_takes_a_lock_of_the_ring_stops_nobody_else(runner: Any) -> None:
    program = (
        I19.format(greedy="A.acquire()", callbacks="greedy,")
        + """
    for pair in ((A, B), (B, A)):
        threading.Thread(target=one, args=pair, daemon=True).start()
    until(lambda: entered)
    release()
    until(lambda: len(concagent.findings()) == 2)
    assert len(concagent.snapshot().requests) >= 2
    finish()
    """
    )
    outcome = runner.ends(program)

    assert outcome.stdout == "DONE\n", outcome.stderr
    assert sorted(outcome.kinds) == ["deadlock", "misuse"]


def test_i19_findings_that_a_stuck_callback_keeps_waiting_are_counted_as_dropped(runner: Any) -> None:
    program = (
        I19.format(greedy="A.acquire()", callbacks="greedy,")
        + """
    for pair in ((A, B), (B, A)):
        threading.Thread(target=one, args=pair, daemon=True).start()
    until(lambda: entered)
    agent = concagent.install()
    finding = agent.findings()[0]
    for number in range(3000):
        agent.monitor.publish(finding.with_changes(fingerprint=f"{number:016x}", kind="misuse"))
    assert sum(count for _, count in agent.statistics().dropped_events) > 0, agent.statistics().dropped_events
    finish()
    """
    )
    outcome = runner.ends(program)

    assert outcome.stdout == "DONE\n", outcome.stderr


def test_i19_twin_a_callback_that_takes_a_free_lock_is_called_for_each(runner: Any) -> None:
    program = (
        I19.format(greedy="A.acquire(); A.release()", callbacks="greedy, good")
        + """
    release()
    try:
        A.release()
    except RuntimeError:
        pass
    until(lambda: len(told) == 2)
    finish()
    """
    )
    outcome = runner.ends(program)

    assert outcome.stdout == "DONE\n", outcome.stderr
    assert outcome.kinds == ["misuse", "misuse"]


def test_i20_a_callback_that_raises_is_removed_and_the_others_are_told(runner: Any) -> None:
    program = (
        I19.format(greedy="", callbacks="broken, good")
        + """
    for pair in ((A, B), (B, A)):
        threading.Thread(target=one, args=pair, daemon=True).start()
    until(lambda: told == ["deadlock"])
    release()
    until(lambda: told == ["deadlock", "misuse"])
    # Each callback has a thread of its own: the broken one may come later than the good one.
    until(lambda: sum(count for _, count in concagent.install().statistics().agent_errors) == 1)
    assert len(entered) == 1
    finish()
    """
    )
    outcome = runner.ends(program, log=True)

    assert outcome.stdout == "DONE\n", outcome.stderr
    assert outcome.stderr.count("ValueError: broken callback") == 1


def test_i20_twin_a_good_callback_is_never_removed(runner: Any) -> None:
    program = (
        I19.format(greedy="", callbacks="good,")
        + """
    for pair in ((A, B), (B, A)):
        threading.Thread(target=one, args=pair, daemon=True).start()
    until(lambda: told == ["deadlock"])
    release()
    until(lambda: told == ["deadlock", "misuse"])
    assert concagent.install().statistics().agent_errors == ()
    finish()
    """
    )

    assert runner.ends(program).stdout == "DONE\n"
