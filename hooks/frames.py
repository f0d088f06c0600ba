"""Leaves the agent's threads out where Python tells a program what threads it has.

A program that looks at ``sys._current_frames()`` samples, prints or counts its threads, and the agent's are none of them: a
profiler would charge it with our time, and a fork's child that CPython promises to have one thread would have two.  In the C
core the child's agent is no thread of Python's before it has something to do (`_core_latethread.c`); in the Python twin it
is one at once, and what the program sees must be the same.

The entry of the calling thread is the frame that calls, as with the original, and not ours.  A callback of the program's that
runs on a thread of ours sees the thread that it runs on.

Limits     ``faulthandler``'s tracebacks and what the operating system counts have our threads in them.
"""

from __future__ import annotations

import _thread
import functools
import sys
from typing import TYPE_CHECKING, Any, Final

from concagent import _real
from concagent.hooks.patching import Patch, PatchSet

if TYPE_CHECKING:
    from types import FrameType

_exceptions: Final[Any] = sys._current_exceptions


@functools.wraps(_real.current_frames)
def current_frames() -> dict[int, FrameType]:
    """Return the innermost frame of each thread of the program, by thread id."""
    frames = _real.current_frames()
    _leave_out(frames)
    frames[_real.get_ident()] = _real.getframe(1)
    return frames


@functools.wraps(_exceptions)
def current_exceptions() -> dict[int, Any]:
    """Return what each thread of the program is handling, by thread id."""
    exceptions: dict[int, Any] = _exceptions()
    _leave_out(exceptions)
    return exceptions


@functools.wraps(_real.thread_count)
def thread_count() -> int:
    """Return the number of threads of the program that it has started and that run."""
    return _real.count_program_threads()


def _leave_out(by_ident: dict[int, Any]) -> None:
    for ident in _real.agent_idents - {_real.get_ident()}:
        by_ident.pop(ident, None)


def add_patches(patches: PatchSet) -> None:
    """Append the patches of this family."""
    patches.add(
        Patch(sys, "_current_frames", current_frames, "sys._current_frames"),
        Patch(sys, "_current_exceptions", current_exceptions, "sys._current_exceptions"),
        Patch(_thread, "_count", thread_count, "_thread._count"),
    )
