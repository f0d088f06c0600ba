"""What was suspected while somebody could still end it is proven when nobody can any more, and told once more."""

from __future__ import annotations

from typing import Any

import pytest

SUSPECTED_ORPHAN = """
    import threading
    from scaffold import finish, pause, waiting
    from concagent import findings
    L = threading.Lock()

    def give():
        L.release()

    taker = threading.Thread(target=lambda: L.acquire(), name="taker")
    taker.start()
    taker.join()
    waiter = threading.Thread(target=lambda: L.acquire(), name="waiter")
    waiter.start()
    while not findings():
        pause(0.05)
    {then}
    waiter.join()
    finish()
    """

SUSPECTED_RING = """
    import threading
    from scaffold import finish, Meeting, pause
    from concagent import findings
    one, two, meeting = threading.Semaphore(1), threading.Semaphore(1), Meeting(2)

    def take(first, second):
        first.acquire()
        meeting.wait()
        second.acquire()
        second.release()
        first.release()

    threads = [
        threading.Thread(target=take, args=both, name=name) for both, name in (((one, two), "T1"), ((two, one), "T2"))
    ]
    for thread in threads:
        thread.start()
    while not findings():
        pause(0.05)
    {then}
    for thread in threads:
        thread.join()
    finish()
    """


@pytest.mark.parametrize(
    ("program", "kind", "members"),
    [(SUSPECTED_ORPHAN, "orphaned-lock", {"waiter"}), (SUSPECTED_RING, "deadlock", {"T1", "T2"})],
    ids=["orphan", "ring of permits"],
)
def test_a_suspicion_is_told_once_more_when_it_is_proven(
    runner: Any, program: str, kind: str, members: set[str]
) -> None:
    outcome = runner.hangs(program.format(then="pass"), number=2, shape="install", stall_after=0.4)

    found = outcome.of(kind)
    assert [each["confidence"] for each in found] == ["suspected", "proven"]
    assert found[0]["fingerprint"] == found[1]["fingerprint"]
    for each in found:
        assert {actor["name"] for actor in each["actors"] if actor["role"] == "member"} == members


@pytest.mark.parametrize(
    ("program", "then", "kind"),
    [(SUSPECTED_ORPHAN, "give()", "orphaned-lock"), (SUSPECTED_RING, "one.release()", "deadlock")],
    ids=["orphan", "ring of permits"],
)
def test_twin_a_suspicion_that_comes_to_nothing_is_told_once(runner: Any, program: str, then: str, kind: str) -> None:
    outcome = runner.ends(program.format(then=then), shape="install", stall_after=0.4)

    assert [(each["kind"], each["confidence"]) for each in outcome.findings] == [(kind, "suspected")]
