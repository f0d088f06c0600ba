"""Reads uvloop's event loops, which keep in C what asyncio's keep in Python.

Three things are asked.  *Who runs the loop?*  Between the function that calls ``run_until_complete`` or ``run_forever`` and what
the loop calls there is no frame; but that function's code says on which object it calls, and the object says whether it runs.
*Which timers are there, and what is about to run?*  The collector's view of a loop shows its set of timers and its queue, and
that of a handle shows its callback and arguments.  *Is it still in the same step?*  Nothing in sight tells one step from the
next, so who wants to know asks the loop itself: see `Ping`.

Nothing of uvloop is replaced, and loops that ran before us are seen, too.

Not seen   a loop that is run through anything but a dotted name (``get_event_loop().run_forever()``); what may wake a loop that
           is asleep: it counts as going to wake by itself, so tasks that nobody is left to wake are no finding.
Sources    uvloop/loop.pyx, cbhandles.pyx (0.17-0.23): ``_timers``, ``_ready``, ``run_until_complete`` calls ``run_forever``.
"""

from __future__ import annotations

import gc
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from concagent import discipline
from concagent.framevalues import value_of

if TYPE_CHECKING:
    from types import FrameType

_RUN: Final = frozenset({"run_until_complete", "run_forever"})
_TIMER: Final = "TimerHandle"
_HANDLE: Final = "Handle"
_NOT_OF_CALLBACK: Final = frozenset({"Context", "UVTimer"})  # what a handle refers to beside its callback and arguments


def is_one(loop: Any) -> bool:
    """Return whether this is a loop of uvloop."""
    base = getattr(sys.modules.get("uvloop"), "Loop", None)
    return isinstance(base, type) and issubclass(type(loop), base)


def run_by(frame: FrameType) -> Any:
    """Return the loop of uvloop that a function on a thread's stack runs at its present instruction, None if it runs none."""
    if "uvloop" not in sys.modules or _RUN.isdisjoint(frame.f_code.co_names):
        return None
    expression = discipline.called_on(frame.f_code, frame.f_lasti, _RUN)
    loop = value_of(frame, expression) if expression is not None else None
    return loop if is_one(loop) and sys.modules["uvloop"].Loop.is_running(loop) else None


def timers(loop: Any) -> list[list[Any]]:
    """Return for each timer what it refers to: callback and arguments."""
    return [_called_by(handle, loop) for handle in _members(loop, set, _TIMER)]


def ready(loop: Any) -> list[Any]:
    """Return the callbacks that a loop is to run next, and their arguments."""
    return [one for handle in _members(loop, deque, _HANDLE) for one in _called_by(handle, loop)]


def _members(loop: Any, container: Any, kind: str) -> list[Any]:
    found = []
    for one in gc.get_referents(loop):
        if type(one) is container:
            found += [member for member in one.copy() if type(member).__name__ == kind]
    return found


def _called_by(handle: Any, loop: Any) -> list[Any]:
    return [one for one in gc.get_referents(handle) if one is not loop and type(one).__name__ not in _NOT_OF_CALLBACK]


class Ping:
    """A callback that a loop was asked to run: as long as it has not, the loop is in the step in which it was asked."""

    def __init__(self, loop: Any, reference: Any, number: int) -> None:
        """Ask; a loop that is closed meanwhile does not answer."""
        self.loop = reference
        self.number = number
        self.is_answered = False
        try:
            sys.modules["uvloop"].Loop.call_soon_threadsafe(loop, self.answer)
        except RuntimeError:
            self.is_answered = True

    def answer(self) -> None:
        """Note that the loop has come round; runs on its thread."""
        self.is_answered = True
