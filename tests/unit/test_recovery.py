from concagent.recovery import choose_victim


def test_the_victim_is_the_actor_that_closed_the_ring():
    assert choose_victim("raise", (3, 1, 2), proven=True) == 3


def test_a_ring_that_somebody_outside_may_break_has_no_victim():
    assert choose_victim("raise", (3, 1, 2), proven=False) is None


def test_without_a_policy_nobody_is_a_victim():
    assert choose_victim("off", (3, 1, 2), proven=True) is None
