"""What ``typing.NamedTuple`` promises, asked of both: the original and the one that is made without compiling."""

from __future__ import annotations

import copy
import pickle
import typing
from typing import Any

import pytest

from concagent import tuples


class Ours(tuples.NamedTuple):
    """Three fields, one of which must be given."""

    first: int
    second: str = "two"
    third: Any = None

    @property
    def both(self) -> str:
        """Return the first two."""
        return f"{self.first} {self.second}"

    def more(self) -> Ours:
        """Return one with more."""
        return self._replace(first=self.first + 1)


class Theirs(typing.NamedTuple):
    """Three fields, one of which must be given."""

    first: int
    second: str = "two"
    third: Any = None

    @property
    def both(self) -> str:
        """Return the first two."""
        return f"{self.first} {self.second}"

    def more(self) -> Theirs:
        """Return one with more."""
        return self._replace(first=self.first + 1)


BOTH = pytest.mark.parametrize("made", [Ours, Theirs])


@BOTH
def test_fields_have_names_defaults_and_places(made: Any) -> None:
    value = made(1, third=[3])

    assert (value.first, value.second, value.third) == (1, "two", [3])
    assert value == (1, "two", [3])
    assert list(value) == [1, "two", [3]]
    assert value[0] == 1
    assert made(1, "a", 2) == made(first=1, second="a", third=2)
    assert made._fields == made.__match_args__ == ("first", "second", "third")
    assert made._field_defaults == {"second": "two", "third": None}


@BOTH
def test_methods_and_properties_of_the_class_work(made: Any) -> None:
    value = made(1)

    assert value.both == "1 two"
    assert value.more() == made(2)
    assert type(value.more()) is made
    assert value._asdict() == {"first": 1, "second": "two", "third": None}
    assert repr(value) == f"{made.__name__}(first=1, second='two', third=None)"
    assert made.__doc__ == "Three fields, one of which must be given."


@BOTH
def test_values_are_plain_tuples_that_nobody_changes(made: Any) -> None:
    value = made(1)

    assert made.__mro__ == (made, tuple, object)
    assert type(made) is type
    assert not hasattr(value, "__dict__")
    assert hash(value) == hash((1, "two", None))
    with pytest.raises(AttributeError):
        value.first = 2
    with pytest.raises(AttributeError):
        value.fourth = 2


@BOTH
@pytest.mark.parametrize(
    "call",
    [
        lambda made: made(),
        lambda made: made(1, 2, 3, 4),
        lambda made: made(1, first=1),
        lambda made: made(1, fourth=4),
        lambda made: made(second="a"),
    ],
)
def test_wrong_arguments_are_refused(made: Any, call: Any) -> None:
    with pytest.raises(TypeError):
        call(made)


@BOTH
def test_a_replacement_of_no_field_is_refused(made: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="unexpected field names"):
        made(1)._replace(fourth=4)


@BOTH
def test_values_are_pickled_and_copied(made: Any) -> None:
    value = made(1, "b", [3])

    for again in (copy.copy(value), copy.deepcopy(value)):
        assert again == value
        assert type(again) is made
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(value, protocol))
        assert again == value
        assert type(again) is made


@BOTH
def test_values_are_matched_by_position(made: Any) -> None:
    match made(1, "x"):
        case made(1, second):
            found = second

    assert found == "x"
