"""Rows M17-M20: coming, going, what was there before, and what interrupts."""

from __future__ import annotations

from typing import Any

import pytest


def test_m17_what_one_case_did_is_invisible_in_the_next(runner: Any) -> None:
    runner.silent(
        """
        import threading
        import concagent
        from concagent import core, state
        from scaffold import finish

        def half(first, second):
            with first:
                with second:
                    pass

        def locks():
            return threading.Lock(), threading.Lock()

        A, B = locks()
        thread = threading.Thread(target=half, args=(A, B))
        thread.start()
        thread.join()
        concagent.uninstall()
        core.reset_for_tests()
        state.reset_for_tests()
        concagent.install()
        assert concagent.install().statistics().order_edges == 0
        thread = threading.Thread(target=half, args=(B, A))
        thread.start()
        thread.join()
        concagent.install().monitor.flush()
        assert concagent.findings() == ()
        finish()
        """,
        shape="install",
    )


def test_m17_findings_of_one_installation_are_not_those_of_the_next(runner: Any) -> None:
    outcome = runner.ends(
        """
        import threading
        import concagent
        def release():
            try:
                threading.Lock().release()
            except RuntimeError:
                pass
        for _ in range(2):
            concagent.install()
            assert concagent.findings() == ()
            release()
            assert [f.kind for f in concagent.findings()] == ["misuse"]
            concagent.uninstall()
        release()
        assert concagent.findings() == ()
        """,
        shape="plain",
    )

    assert outcome.returncode == 0, outcome.stderr
    assert outcome.kinds == ["misuse", "misuse"]


M18 = """
    import _thread, builtins, io, queue, threading
    PLACES = (
        (threading, "Lock"), (threading, "RLock"), (threading, "_CRLock"), (threading, "Condition"),
        (threading, "Semaphore"), (threading, "Event"), (threading.Thread, "start"), (threading.Thread, "join"),
        (threading.Condition, "wait"), (threading.Semaphore, "acquire"), (threading.Semaphore, "release"),
        (_thread, "allocate_lock"), (_thread, "RLock"), (_thread, "LockType"), (builtins, "open"), (io, "open"),
    )
    def now():
        return [getattr(owner, name) for owner, name in PLACES]
    before = now()
    import concagent
    from scaffold import Gate, finish, waiting
    assert now() == before
    {body}
    finish()
    """


def m18(runner: Any, body: str, end: str = "DONE\n") -> None:
    lines = "\n    ".join(line[4:] for line in body.strip("\n").split("\n"))
    outcome = runner.silent(M18.format(body=lines), shape="plain")
    assert outcome.stdout == end


def test_m18_install_is_idempotent_and_uninstall_restores_every_original(runner: Any) -> None:
    m18(
        runner,
        """
    agent = concagent.install()
    patched = now()
    assert patched != before
    assert concagent.install() is agent
    assert now() == patched
    concagent.uninstall()
    assert now() == before
    concagent.uninstall()
    assert now() == before
    assert concagent.install() is not agent
    assert [a is b for a, b in zip(now(), before)] == [a is b for a, b in zip(patched, before)]
    concagent.uninstall()
    assert now() == before
    """,
    )


def test_m18_tracked_locks_go_on_as_plain_locks_after_uninstall(runner: Any) -> None:
    m18(
        runner,
        """
    concagent.install()
    L, R, C, S, Q = threading.Lock(), threading.RLock(), threading.Condition(), threading.Semaphore(1), queue.Queue(1)
    L.acquire()
    order = []

    def waiter():
        with L:
            order.append("waiter")
        with R, R, S:
            Q.put(1)
        with C:
            C.notify()

    thread = threading.Thread(target=waiter)
    thread.start()
    waiting(1)
    concagent.uninstall()
    assert now() == before
    assert L.locked() and not L.acquire(False) and not L.acquire(timeout=0.01)
    order.append("main")
    with C:
        L.release()
        C.wait()
    thread.join()
    assert order == ["main", "waiter"]
    assert Q.get() == 1
    with L, R, S:
        pass
    concagent.install()
    with L, R, S:
        assert L.locked()
    concagent.uninstall()
    """,
    )


def test_m18_uninstall_while_threads_contend_loses_no_wake_up(runner: Any) -> None:
    m18(
        runner,
        """
    import sys
    sys.setswitchinterval(1e-5)
    concagent.install()
    L, R, count = threading.Lock(), threading.RLock(), [0]

    def work():
        for _ in range(3000):
            with L:
                with R:
                    count[0] += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        concagent.uninstall()
        concagent.install()
    concagent.uninstall()
    for thread in threads:
        thread.join()
    assert count == [12000]
    assert not L.locked()
    assert now() == before
    """,
    )


def test_m19_locks_from_before_install_work_and_are_said_to_be_untracked(runner: Any) -> None:
    outcome = runner.silent(
        """
        import threading
        old = threading.Lock()
        old_reentrant = threading.RLock()
        import concagent
        from scaffold import finish, pause
        concagent.install()
        new = threading.Lock()
        assert concagent.snapshot().untracked_locks >= 2

        def work():
            with old, old_reentrant, new:
                pass

        old.acquire()
        thread = threading.Thread(target=work)
        thread.start()
        pause(1.5)
        old.release()
        thread.join()
        with old_reentrant, old_reentrant:
            pass
        finish()
        """,
        shape="plain",
    )

    assert outcome.stdout == "DONE\n"


def test_m19_positive_twin_locks_from_after_install_are_seen(runner: Any, assert_deadlock: Any) -> None:
    found = runner.hangs(
        """
        import threading
        import concagent
        concagent.install()
        L = threading.Lock()
        with L:
            with L:
                pass
        """,
        shape="plain",
    ).only

    assert_deadlock(found, 1)


M20 = """
    import os, random, signal, threading
    import concagent
    from concagent import core
    from scaffold import finish
    armed = []

    def interrupt(*_):
        if armed:
            armed.clear()
            raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    dice = random.Random({seed})
    L = threading.{kind}()
    other = threading.Lock()
    interrupted = 0

    def plain():
        L.acquire()
        try:
            pass
        finally:
            L.release()

    def with_block():
        with L:
            with other:
                pass

    def contended():
        with L:
            pass

    def busy():
        while not over:
            with L:
                pass

    over = []
    thread = threading.Thread(target=busy, daemon=True)
    thread.start()
    for round in range(300):
        body = (plain, with_block, contended)[round % 3]
        try:
            armed.append(1)
            # It repeats: a signal between the last look at signals and the sleep in the kernel ends no wait, not in the
            # original either, and a lock that leaked is waited for until one does.
            signal.setitimer(signal.ITIMER_REAL, dice.uniform(1e-6, 3e-4), 0.02)
            for _ in range(30):
                body()
            armed.clear()
        except KeyboardInterrupt:
            interrupted += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    over.append(1)
    """


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
@pytest.mark.parametrize("seed", [1, 2])
def test_m20_an_interrupt_at_any_moment_leaves_the_held_set_as_the_locks_are(runner: Any, kind: str, seed: int) -> None:
    # An interrupt between ``acquire`` and ``try`` leaks the lock with the original, too: what matters is that who holds
    # it according to us is who holds it in fact, and that a lock that raised out of ``acquire`` is not held.
    outcome = runner.ends(
        M20.format(kind=kind, seed=seed)
        + """
    got = L.acquire(timeout=2)
    held = {edge.resource for edge in concagent.snapshot().assignments if edge.holder == core.current_record().serial}
    cell = core.cell_of(L)
    leaked = not got
    if got:
        assert cell.serial in held, "we hold it, and the picture does not say so"
        L.release()
        now = {edge.resource for edge in concagent.snapshot().assignments}
        assert cell.serial not in now or L._is_owned(), "nobody holds it, and the picture says so"
    else:
        assert cell.serial in held, "it is held, and not by us"
    other_free = other.acquire(False)
    assert other_free or core.cell_of(other).serial in held
    print(interrupted, leaked)
    finish()
        """,
        shape="install",
    )

    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.endswith("DONE\n")
    assert int(outcome.stdout.split()[0]) > 0
    # A leaked lock that is taken again is a self-deadlock, until the next interrupt ends it.
    leaked = outcome.stdout.split()[1] == "True"
    assert leaked or [f["title"] for f in outcome.findings if f["kind"] in {"deadlock", "stall"}] == []


def test_m20_an_interrupted_wait_is_over(runner: Any, shape: str) -> None:
    runner.silent(
        """
        import _thread, os, signal, threading
        import concagent
        from concagent import core
        from scaffold import Gate, finish, waiting
        L = threading.Lock()
        held, free = Gate(), Gate()

        def holder():
            with L:
                held.open()
                waiting(1, "lock")
                os.kill(os.getpid(), signal.SIGINT)
                free.wait()

        thread = threading.Thread(target=holder)
        thread.start()
        held.wait()
        try:
            with L:
                raise AssertionError
        except KeyboardInterrupt:
            pass
        assert not core.current_record().waits
        picture = concagent.snapshot()
        assert core.current_record().serial not in {edge.actor for edge in picture.requests}
        assert core.current_record().serial not in {edge.holder for edge in picture.assignments}
        free.open()
        thread.join()
        assert L.acquire(timeout=5)
        L.release()
        finish()
        """,
        shape=shape,
    )
