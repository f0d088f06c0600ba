"""Says where in a function a resource dies that was never more than a temporary.

``open(p).read()``, ``json.load(open(p))``, ``for line in open(p)``: nobody closes these files, and yet the program is
sound: the only reference is on the interpreter's evaluation stack, and the statement that made it drops it.  What a
variable, an attribute or a list has held is another matter: how long that lives nobody sees from the line.

The difference is in the bytecode.  From the call that opens we follow the slot of the stack that the result is in: through
calls that take it as an argument (their result may hold it, ``csv.reader(open(p))``, and takes its place in the chain),
round a loop that iterates over it, into the handlers inside of that loop; up to the instruction that ends the chain by
storing, returning, yielding or discarding it.  The instructions on the way are where a temporary may die.  Lines play no
part, so it does not matter how many lines a statement has.

Pure: a code object in, offsets out.  Costs a millisecond for a large function; asked once for each site.

Limits     an expression that hands the file to a C function that keeps it, and drops it again within the same statement
           of the same call, looks the same; so it is, to the program.
"""

from __future__ import annotations

import dis
import sys
from bisect import bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

# These end the chain if they take what is followed: from here on the program has it, or nobody wanted it.
_KEEPS: Final = (
    *("STORE_", "DELETE_", "LIST_APPEND", "SET_ADD", "MAP_ADD", "YIELD_VALUE", "RETURN_", "RAISE_", "RERAISE"),
)
# These take what is followed and leave nothing in its place that could hold it.
_EATS: Final = (
    *("POP_JUMP_", "JUMP_IF_", "FOR_ITER", "END_FOR", "POP_", "LIST_EXTEND", "SET_UPDATE", "DICT_", "UNPACK_"),
    *("SEND", "END_SEND", "YIELD_FROM", "BEFORE_", "SETUP_"),
)
_NEVER_FALL_THROUGH: Final = (
    *("RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE", "JUMP_FORWARD", "JUMP_ABSOLUTE", "JUMP_BACKWARD"),
    *("JUMP_BACKWARD_NO_INTERRUPT", "INTERPRETER_EXIT"),
)
# Slots of the stack that an iteration takes: since 3.15 an index lies above the iterator, for lists and tuples.
_ITERATOR: Final = 2 if sys.version_info >= (3, 15) else 1
# Whatever they drop, it was in a variable or a container before.
_OVERWRITES: Final = ("STORE_", "DELETE_", "MAP_ADD")


def temporary_ends(code: CodeType, opened_at: int) -> frozenset[int]:
    """Return the offsets at which the result of the instruction at ``opened_at`` may die as a temporary."""
    flow = Flow(code)
    opened = flow.depths.get(opened_at)
    if opened is None:
        return frozenset()
    ends: set[int] = set()
    seen: set[tuple[int, int, bool]] = set()
    todo: list[tuple[int, int, bool]] = []

    def go_on(after: int, slot: int, looping: bool) -> None:
        for target, depth in flow.edges(after):
            if depth > slot:
                todo.append((target, slot, looping))

    go_on(opened_at, opened + flow.effect(opened_at) - 1, False)
    while todo:
        state = todo.pop()
        if state in seen:
            continue
        seen.add(state)
        at, slot, looping = state
        name = flow.at[at].opname
        depth = flow.depths[at]
        on_top = depth - 1 == slot
        if name == "POP_TOP" and on_top:
            if looping:
                ends.add(at)  # `break`
            continue
        left = depth + flow.effect(at)
        takes = left <= slot or (on_top and name.startswith("YIELD_VALUE"))
        if takes and name.startswith(_KEEPS):
            continue
        if not name.startswith(_OVERWRITES):
            ends.add(at)
        for target, kept, _ in flow.handlers(at):
            if kept > slot:  # a `try` inside of the loop
                todo.append((target, slot, looping))
        if takes and not name.startswith(_EATS):
            slot, looping = left - 1, False
        go_on(at, slot, looping or (name == "FOR_ITER" and depth - slot == _ITERATOR))
    return frozenset(ends)


def instruction_at(code: CodeType, offset: int) -> int:
    """Return the offset of the instruction that an ``f_lasti`` belongs to; 3.11 may point into its inline cache."""
    offsets = [instruction.offset for instruction in dis.get_instructions(code)]
    return offsets[max(0, bisect_right(offsets, offset) - 1)]


class Flow:
    """The instructions of a code object, what follows each, and how deep the stack is before each."""

    def __init__(self, code: CodeType) -> None:
        """Walk through the code; for generators of 3.10, too."""
        instructions = list(dis.get_instructions(code))
        self.at = {instruction.offset: instruction for instruction in instructions}
        self.depths: dict[int, int] = {}
        self._next = {one.offset: other.offset for one, other in pairwise(instructions)}
        # Before 3.11, handlers are set up by jumps.
        parse = getattr(dis, "_parse_exception_table", None)
        self._table = parse(code) if parse is not None else []
        # 3.10: what is sent to a generator at its start is on its stack already.
        todo = [(0, int(bool(instructions) and instructions[0].opname == "GEN_START"))]
        while todo:
            at, depth = todo.pop()
            if at in self.at and at not in self.depths:
                self.depths[at] = depth
                todo.extend(self.edges(at))
                todo.extend((target, kept + pushed) for target, kept, pushed in self.handlers(at))

    def effect(self, at: int, jump: bool = False) -> int:
        """Return by how much the stack grows."""
        one = self.at[at]
        if one.opname == "RETURN_GENERATOR":
            return 1  # 3.11 says 0 and drops one behind it
        return dis.stack_effect(one.opcode, one.arg, jump=jump)

    def edges(self, at: int) -> Iterator[tuple[int, int]]:
        """Yield where the program can go on after an instruction, with the depth of the stack there."""
        one, depth = self.at[at], self.depths[at]
        if one.opname not in _NEVER_FALL_THROUGH and at in self._next:
            yield self._next[at], depth + self.effect(at)
        if one.opcode in dis.hasjrel or one.opcode in dis.hasjabs:
            yield one.argval, depth + self.effect(at, jump=True)

    def handlers(self, at: int) -> Iterator[tuple[int, int, int]]:
        """Yield the handlers of an exception here: where, how much of the stack is kept, how much is put on it."""
        for one in self._table:
            if one.start <= at < one.end:
                yield one.target, one.depth, one.lasti + 1
