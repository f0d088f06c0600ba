"""Says which slots of a suspended frame's evaluation stack hold a reference for certain, where the frame does not say.

While a Python function is inside a call of a C function, CPython (before 3.14) does not store how deep its evaluation stack
is.  The compiler knows, so it can be derived: follow the control flow from the start and add up what each instruction puts
on the stack and takes off.  That is the depth *before* the instruction; what the instruction has done to its own operands
when it calls out is another question, answered here instruction by instruction: a call leaves callable and arguments in
their places until it returns; most others pop first, so their operands do not count.  The argument tuple of ``f(*args)`` may
have been exchanged for another inside of the instruction, which leaves a stale pointer: its slot is told apart.

A slot that is not counted makes an object look as if somebody unknown referred to it: that is the safe side.  So whatever
is in doubt counts as nothing: an instruction not listed, a function whose paths disagree about the depth.

Assumes    ``dis.stack_effect`` is what the compiler works with; the tests hold the result against the depth that frames
           store while they have called a Python function.
Cost       one walk through the function's instructions for each code object; cached.
Sources    CPython Python/ceval.c, Python/bytecodes.c, 3.10 to 3.13.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Final

from concagent.temporaries import Flow

if TYPE_CHECKING:
    from types import CodeType

# All operands stay on the stack, owned, until the C function has returned.
_KEEP_ALL: Final = frozenset(
    {"CALL", "CALL_KW", "PRECALL", "CALL_FUNCTION", "CALL_METHOD", "CALL_FUNCTION_KW", "CALL_FUNCTION_EX", "FOR_ITER"}
) | (frozenset({"SETUP_WITH", "BEFORE_WITH"}) if sys.version_info < (3, 12) else frozenset())
# Operands that may be gone already, counted from the top.
_OPERANDS: Final = {
    "BEFORE_WITH": 1,
    "BEFORE_ASYNC_WITH": 1,
    "BINARY_OP": 2,
    "BINARY_SUBSCR": 2,
    "COMPARE_OP": 2,
    "CONTAINS_OP": 2,
    "GET_ITER": 1,
    "LOAD_ATTR": 1,
    "LOAD_METHOD": 1,
    "SEND": 1,
    "STORE_ATTR": 2,
    "STORE_SUBSCR": 3,
    "YIELD_FROM": 1,
}


class _Depths(Flow):
    """A flow whose depths are those *during* an instruction, and that knows whether all paths agree."""

    def __init__(self, code: CodeType) -> None:
        super().__init__(code)
        self.agree = all(
            self.depths.get(target, depth) == depth for at in self.depths for target, depth in self.edges(at)
        ) and all(
            self.depths.get(target, kept + pushed) == kept + pushed
            for at in self.depths
            for target, kept, pushed in self.handlers(at)
        )

    def effect(self, at: int, jump: bool = False) -> int:
        """Return by how much the stack grows: on 3.11 a call is two instructions, and the second one pops."""
        one = self.at[at]
        if one.opname == "PRECALL":
            return 0
        if one.opname == "CALL" and sys.version_info < (3, 12):
            return -(int(one.arg or 0) + 1)
        return super().effect(at, jump)


@functools.lru_cache(maxsize=256)
def _depths(code: CodeType) -> _Depths | None:
    depths = _Depths(code)
    return depths if depths.agree else None


def owned_slots(code: CodeType | None, lasti: int) -> tuple[int, int]:
    """Return (bits of the slots that are owned while this instruction calls out, the slot of ``*args`` among them or -1)."""
    flow = _depths(code) if code is not None else None
    if flow is None or lasti not in flow.depths:
        return 0, -1
    one, depth = flow.at[lasti], flow.depths[lasti]
    if one.opname in _KEEP_ALL:
        star = depth - 1 - (int(one.arg or 0) & 1) if one.opname == "CALL_FUNCTION_EX" else -1
        return (1 << max(0, depth)) - 1, star
    if one.opname in _OPERANDS:
        return (1 << max(0, depth - _OPERANDS[one.opname])) - 1, -1
    return 0, -1
