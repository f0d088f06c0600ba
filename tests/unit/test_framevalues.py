"""Reading variables of running functions."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

from concagent.framevalues import values_of


class Big:
    pass


def test_what_was_read_does_not_outlive_the_variable() -> None:
    def running(look: Callable[[Any], dict[str, Any]]) -> Any:
        big = Big()
        watch = weakref.ref(big)
        assert look(sys._getframe())["big"] is big
        del big
        return watch()

    assert running(lambda frame: values_of(frame, ["big"])) is None


def test_a_dictionary_that_the_program_has_keeps_what_is_in_it() -> None:
    def running(look: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        number = 7
        mine = locals()
        look(sys._getframe())
        assert number
        return mine

    assert running(lambda frame: values_of(frame, ["number"]))["number"] == 7


def test_only_what_was_asked_for_and_is_there_is_returned() -> None:
    one, two = 1, 2

    def running() -> dict[str, Any]:
        three = one + two
        assert three
        return values_of(sys._getframe(), ["three", "one", "four"])

    assert running() == {"three": 3, "one": 1}


def test_no_code_of_the_program_runs() -> None:
    class Odd(dict[str, Any]):
        def __contains__(self, key: object) -> bool:
            raise AssertionError(key)

    seen: list[dict[str, Any]] = []
    exec("look(frame())", {"look": lambda frame: seen.append(values_of(frame, ["x"])), "frame": sys._getframe}, Odd())

    assert seen == [{}]
