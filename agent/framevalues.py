"""Reads variables of a running function without leaving a trace in it.

Before 3.13 a frame's ``f_locals`` is a copy that stays with the frame and keeps what was in it alive until the function
returns, so it is emptied afterwards; unless the program has it, too: ``locals()`` is that same dictionary.  What is no function
(a module, a class body, ``exec`` with a mapping of the program's) is not looked into: the names there may be anybody's code.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

_FUNCTION: Final = 0x1  # CO_OPTIMIZED
_COPIES: Final = sys.version_info < (3, 13)  # of locals; later the mapping is the frame's own
_OUR_REFERENCES: Final = 3  # to a copy that nobody else has: the frame's, the variable's, the argument's


def values_of(frame: FrameType, names: Iterable[str]) -> dict[str, Any]:
    """Return the values of those of these variables that a running function has."""
    if not frame.f_code.co_flags & _FUNCTION:
        return {}
    found = frame.f_locals
    try:
        return {name: found[name] for name in names if name in found}
    finally:
        if _COPIES and sys.getrefcount(found) <= _OUR_REFERENCES:
            found.clear()
