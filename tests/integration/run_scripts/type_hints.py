from __future__ import annotations

import dataclasses
import enum
import typing


@dataclasses.dataclass
class Tree:
    left: Tree | None
    label: typing.ClassVar[str] = "tree"


class Colour(enum.Enum):
    RED = 1


Pair = typing.NamedTuple("Pair", [("first", int)])
print(typing.get_type_hints(Tree), dataclasses.fields(Tree)[0].name, repr(Colour.RED), Pair.__module__, Tree(None))
