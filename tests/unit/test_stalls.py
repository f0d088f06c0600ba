from __future__ import annotations

from factories import holds, resource, snapshot, waits

from concagent.config import Config
from concagent.stalls import ResidueLook, Stalls
from concagent.told import Told


def looked_at_again(picture):
    """Return whose waits are to be looked at once more after the first look at a picture."""
    asked = []
    stalls = Stalls(Config(), lambda _: None, lambda _, event: asked.append(event), Told(), set())

    stalls.look(picture, picture.monotonic_ns)

    assert all(isinstance(event, ResidueLook) for event in asked)
    return sorted(actor for event in asked for actor, _ in event.keys)


def test_who_waits_for_an_orphaned_lock_has_a_finding_of_that_and_is_in_no_stall():
    picture = snapshot(waits(1, 10), holds(2, 10), states={2: "ended"})

    assert looked_at_again(picture) == []


def test_who_waits_for_a_permit_of_an_ended_thread_is_in_a_stall_for_nothing_else_is_said():
    permits = resource(10, "semaphore", permits=0)
    picture = snapshot(
        waits(1, 10), holds(2, 10), waits(3, 30), states={2: "ended"}, resources=(permits, resource(30, "event"))
    )

    assert looked_at_again(picture) == [1, 3]
