"""Rows J01-J06, J11 and E19: wrong uses, each beside the right one."""

from __future__ import annotations

from typing import Any

import pytest


def misuse(outcome: Any, detail: str) -> dict[str, Any]:
    """Return the one misuse, which must be this one."""
    found = outcome.only
    assert (found["kind"], found["detail"], found["confidence"]) == ("misuse", detail, "proven")
    return found  # type: ignore[no-any-return]


def test_j01_a_double_release_raises_and_is_reported(runner: Any, shape: str) -> None:
    outcome = runner.ends(
        """
        import threading
        from scaffold import finish
        L = threading.Lock()
        L.acquire()
        L.release()
        try:
            L.release()
        except RuntimeError as error:
            assert str(error) == "release unlocked lock", error
            finish()
        """,
        shape=shape,
    )

    found = misuse(outcome, "double-release")
    assert outcome.stdout == "DONE\n"
    assert outcome.returncode == 0
    assert found["actors"][0]["stack"][-1]["source"] == "L.release()"


def test_j01_twin_one_release_for_each_acquire_is_silent(runner: Any) -> None:
    runner.silent(
        """
        import threading
        L = threading.Lock()
        for _ in range(3):
            L.acquire()
            L.release()
        """
    )


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_j02_a_release_without_any_acquire_is_reported(runner: Any, kind: str) -> None:
    outcome = runner.ends(
        f"""
        import threading
        L = threading.{kind}()
        try:
            L.release()
        except RuntimeError:
            pass
        """
    )

    assert misuse(outcome, "double-release")["resource_kind"] == kind.lower()


def test_j02_twin_a_release_after_a_successful_try_is_silent(runner: Any) -> None:
    runner.silent(
        """
        import threading
        L = threading.Lock()
        if L.acquire(blocking=False):
            L.release()
        """
    )


J03 = """
    import threading
    from scaffold import finish
    R = threading.RLock()

    def thief():
        try:
            R.release()
        except RuntimeError as error:
            assert str(error) == "cannot release un-acquired lock", error

    def main():
        R.acquire()
        thread = threading.Thread(target={target}, name="thief")
        thread.start()
        thread.join()
        R.release()
    main()
    finish()
    """


def test_j03_an_rlock_released_by_another_thread_is_reported(runner: Any, shape: str) -> None:
    outcome = runner.ends(J03.format(target="thief"), shape=shape)

    found = misuse(outcome, "foreign-release")
    assert {actor["name"]: actor["role"] for actor in found["actors"]} == {"thief": "member", "MainThread": "bystander"}
    assert found["resources"][0]["holders"][0]["acquired"]["function"] == "main"


def test_j03_twin_an_rlock_released_by_its_owner_is_silent(runner: Any) -> None:
    runner.silent(J03.format(target="lambda: R.acquire(blocking=False)"))


def test_j04_a_lock_released_by_another_thread_is_legal_and_a_signal(runner: Any, shape: str) -> None:
    runner.silent(
        """
        import threading
        import concagent
        from concagent import core
        from scaffold import finish
        L = threading.Lock()
        L.acquire()
        thread = threading.Thread(target=L.release)
        thread.start()
        thread.join()
        assert core.cell_of(L).cls.signal
        L.acquire()
        assert all(r.signal_mode for r in concagent.snapshot().resources if r.serial == core.cell_of(L).serial)
        finish()
        """,
        shape=shape,
    )


def test_j05_a_lock_collected_while_held_is_reported_with_both_sites(runner: Any, shape: str) -> None:
    outcome = runner.ends(
        """
        import threading
        def create():
            return threading.Lock()
        def take(lock):
            lock.acquire()
        lock = create()
        take(lock)
        del lock
        """,
        shape=shape,
    )

    found = misuse(outcome, "destroy-held")
    assert found["resources"][0]["created"]["function"] == "create"
    assert found["resources"][0]["holders"][0]["acquired"]["function"] == "take"


def test_j05_twin_a_lock_collected_after_its_release_is_silent(runner: Any) -> None:
    runner.silent(
        """
        import threading
        for _ in range(10):
            lock = threading.Lock()
            lock.acquire()
            lock.release()
            del lock
        """
    )


J06 = """
    import threading
    class Service:
        def __init__(self):
            self.reset()
        def reset(self):
            self.lock = threading.Lock()
        def restart(self):
            self.lock.acquire()
            {work}
    service = Service()
    service.restart()
    """


def test_j06_a_new_lock_in_place_of_a_held_one_is_reported(runner: Any) -> None:
    # What can be seen of it is that the old lock dies while it is held; the detail says so.
    outcome = runner.ends(J06.format(work="self.reset()"))

    found = misuse(outcome, "destroy-held")
    assert found["resources"][0]["name"] in {"Service.lock", "self.lock"}  # Python 3.10 has no class names
    assert found["resources"][0]["holders"][0]["acquired"]["function"].endswith("restart")


def test_j06_twin_a_new_lock_after_the_release_is_silent(runner: Any) -> None:
    runner.silent(J06.format(work="self.lock.release(); self.reset()"))


J11 = """
    import threading
    from scaffold import finish
    L = threading.{kind}()

    def careless():
        L.acquire()
        {end}

    thread = threading.Thread(target=careless, name="careless")
    thread.start()
    thread.join()
    finish()
    """


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
@pytest.mark.parametrize("end", ["return", "raise SystemExit"])
def test_j11_a_thread_that_ends_with_a_lock_is_reported(runner: Any, kind: str, end: str) -> None:
    child = runner.start(J11.format(kind=kind, end=end).replace("finish()", "__import__('scaffold').pause(1)"))
    child.wait_for_findings(1)
    child.wait_for_end()

    found = misuse(child.end(), "exit-held")
    assert found["actors"][0]["name"] == "careless"
    assert found["resources"][0]["holders"][0]["acquired"]["function"] == "careless"


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_j11_twin_a_thread_that_releases_at_its_end_is_silent(runner: Any, kind: str) -> None:
    runner.silent(J11.format(kind=kind, end="L.release()"))


def test_j11_twin_a_lock_handed_over_at_the_end_of_a_thread_is_silent(runner: Any) -> None:
    runner.silent(
        """
        import threading
        from scaffold import finish, pause
        L = threading.Lock()
        thread = threading.Thread(target=L.acquire)
        thread.start()
        thread.join()
        pause(0.1)
        L.release()
        pause(0.6)
        finish()
        """
    )


E19 = """
    import threading, time
    from scaffold import Gate, waiting
    L = threading.{kind}()
    held, here = Gate(), Gate()

    def careless():
        here.wait()  # or the waiter gets the dead thread's id, and an RLock takes him for its owner
        L.acquire()
        held.open()
        {before_death}
        {end}

    def waiter():
        here.open()
        held.wait()
        {before_wait}
        L.acquire()
        L.release()

    dead = threading.Thread(target=careless, name="careless")
    live = threading.Thread(target=waiter, name="waiter", daemon=True)
    dead.start()
    live.start()
    {main}
    """
E19_ORDERS = {
    "waits before the death": {"before_death": "waiting(1, 'lock', 'rlock')", "before_wait": "pass"},
    "waits after the death": {"before_death": "pass", "before_wait": "dead.join()"},
}
E19_MAINS = {"joins": "live.join()", "polls": "while live.is_alive(): time.sleep(0.01)"}


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
@pytest.mark.parametrize("order", E19_ORDERS)
@pytest.mark.parametrize("main", E19_MAINS)
def test_e19_a_lock_whose_holder_has_died_is_an_orphan(runner: Any, kind: str, order: str, main: str) -> None:
    program = E19.format(kind=kind, end="return", main=E19_MAINS[main], **E19_ORDERS[order])
    outcome = runner.hangs(program, number=2)

    assert sorted(outcome.kinds) == ["misuse", "orphaned-lock"]
    found = outcome.of("orphaned-lock")[0]
    assert (found["confidence"], found["detail"]) == ("proven", "owner terminated")
    roles = {actor["name"]: actor["role"] for actor in found["actors"]}
    assert (roles["waiter"], roles["careless"]) == ("member", "bystander")
    assert found["resources"][0]["holders"][0]["acquired"]["function"] == "careless"
    assert outcome.of("misuse")[0]["detail"] == "exit-held"


@pytest.mark.parametrize("order", E19_ORDERS)
def test_e19_twin_a_holder_that_releases_before_it_dies_is_silent(runner: Any, order: str) -> None:
    runner.silent(E19.format(kind="Lock", end="L.release()", main=E19_MAINS["joins"], **E19_ORDERS[order]))
