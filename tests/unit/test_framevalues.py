"""Reading variables of running functions."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

from concagent.framevalues import attribute_of, value_of, values_of


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


# ---------------------------------------------------------------- dotted names


class Slots:
    __slots__ = ("empty", "full")

    def __init__(self) -> None:
        self.full = 1


class Plain:
    of_class = 2

    def __init__(self) -> None:
        self.own = 3
        self.slots = Slots()

    @property
    def computed(self) -> int:
        raise AssertionError

    def __getattr__(self, name: str) -> int:
        raise AssertionError


class Strange(Plain):
    @property
    def __dict__(self) -> dict[str, int]:  # type: ignore[override]
        raise AssertionError


def test_a_dotted_name_is_followed_through_objects_classes_slots_and_modules() -> None:
    def running(names: str, plain: Plain) -> Any:  # noqa: ARG001
        return value_of(sys._getframe(), names.split("."))

    found = [
        running(names, Plain())
        for names in ("plain.own", "plain.of_class", "plain.slots.full", "Plain.of_class", "sys.maxsize")
    ]

    assert found == [3, 2, 1, 2, sys.maxsize]


def test_what_only_code_of_the_program_would_tell_is_not_asked() -> None:
    asked = [
        (Plain(), "computed"),
        (Plain(), "absent"),
        (Plain(), "slots", "empty"),
        (Strange(), "own"),
        (None, "x"),
    ]

    assert [attribute_of(value, names) for value, *names in asked] == [None] * len(asked)
