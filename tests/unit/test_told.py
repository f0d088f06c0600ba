from concagent.told import Told

WAIT, OTHER = (1, 7), (2, 3)


def test_what_was_suspected_is_told_once_more_as_proven_and_not_the_other_way_round():
    told = Told()
    told.add([WAIT], proven=False)
    told.add([OTHER], proven=True)

    assert (WAIT in told, OTHER in told, (1, 8) in told) == (True, True, False)
    assert told.covers([WAIT, OTHER], proven=False)
    assert not told.covers([WAIT], proven=True)
    assert told.covers([OTHER], proven=True)


def test_waits_that_are_over_are_forgotten_when_there_are_many():
    told = Told()
    told.add([(serial, 1) for serial in range(300)], proven=True)

    told.forget([(5, 1)])

    assert (set(told.of(proven=False)), set(told.of(proven=True))) == ({(5, 1)}, {(5, 1)})
