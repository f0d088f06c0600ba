"""Reads asyncio's event loops: which thread runs which, what it is doing, and what may yet wake it.

A loop's thread is in ``run_forever``; whether it is asleep in its selector or inside a callback is read from the frames.  A loop
asleep that has no timer, nothing ready, no descriptor but its own pipe and no signal handler wakes up only if another
thread calls it.  Loops of uvloop keep all this in C; what can be read of them is in ``uvloops``.  Others that are not made of
asyncio's own base class are not seen to run, and their tasks count as able to go on.

Assumes    copies of lists and deques are atomic under the GIL; where one changes meanwhile, the answer is "alive".
Sources    CPython Lib/asyncio/base_events.py, selector_events.py, unix_events.py, 3.10-3.15.
"""

from __future__ import annotations

import functools
import gc
import sys
from types import BuiltinMethodType, CellType, CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from concagent import awaits, uvloops

if TYPE_CHECKING:
    from collections.abc import Collection

_DEPTH: Final = 300
_HOPS: Final = 6
_NODES: Final = 400
_PLAIN: Final = (str, bytes, int, float, bool, type(None), type, ModuleType, CodeType, FrameType)


class LoopView(NamedTuple):
    """A loop that a thread is running.

    ``turn`` is None while the loop is asleep in its selector, else the identity of the step that it is in: one value as long
    as it has not come back from one callback.  Of a loop of uvloop it says only that it is in some step (see `uvloops.Ping`).
    """

    loop: Any
    ident: int
    turn: tuple[float, int] | None


def running_loops(frames: dict[int, FrameType]) -> list[LoopView]:
    """Return the loops that run, one a thread, the innermost where one runs inside another."""
    base: Any = getattr(sys.modules.get("asyncio.base_events"), "BaseEventLoop", None)
    if base is None:
        return []
    forever, once = base.run_forever.__code__, base._run_once.__code__  # noqa: SLF001 - only the frames tell
    found = []
    for ident, innermost in list(frames.items()):
        frame: FrameType | None = innermost
        turning: FrameType | None = None
        called: FrameType | None = None
        below: FrameType | None = None
        for _ in range(_DEPTH):
            if frame is None:
                break
            if frame.f_code is once and turning is None:
                turning, called = frame, below
            elif frame.f_code is forever:
                found.append(LoopView(frame.f_locals["self"], ident, _turn(turning, called)))
                break
            else:
                loop = uvloops.run_by(frame)
                if loop is not None:
                    found.append(LoopView(loop, ident, None if below is None else (0.0, id(below))))
                    break
            below, frame = frame, frame.f_back
    return found


def _turn(turning: FrameType | None, called: FrameType | None) -> tuple[float, int] | None:
    """Return what tells one step of a loop from all others: when its turn began, and which callback of the turn it is."""
    if turning is None or called is None or called.f_code.co_filename.endswith("selectors.py"):
        return None
    found = turning.f_locals
    began, number = found.get("end_time"), found.get("i")
    return (began, number) if isinstance(began, float) and isinstance(number, int) else None


def is_readable(loop: Any) -> bool:
    """Return whether this is a loop whose timers and descriptors can be read."""
    return uvloops.is_one(loop) or (isinstance(getattr(loop, "_scheduled", None), list) and hasattr(loop, "_ready"))


def may_wake_by_itself(loop: Any) -> bool:
    """Return whether something that the loop knows of may wake it: a timer, a descriptor, a signal, work that is ready."""
    if uvloops.is_one(loop) or not is_readable(loop):
        return True
    if loop._ready or loop._stopping or getattr(loop, "_signal_handlers", None):  # noqa: SLF001
        return True
    if any(not timer._cancelled for timer in list(loop._scheduled)):  # noqa: SLF001
        return True
    registered = getattr(getattr(loop, "_selector", None), "_fd_to_key", None)
    return registered is None or len(registered) > getattr(loop, "_internal_fds", 0)


def with_timers(loop: Any, wanted: Collection[int]) -> set[int]:
    """Return those of ``wanted`` (ids of tasks) that a timer of the loop refers to: it may end or cancel their waits.

    Timeouts of asyncio and of everybody else are timers that know their task, more or less directly.  One that knows too
    many things to look through counts as knowing all.
    """
    found: set[int] = set()
    for called in _timers(loop):
        reached = _reachable(called, wanted)
        if reached is None:
            return set(wanted)
        found |= reached
    return found


def _timers(loop: Any) -> list[list[Any]]:
    """Return callback and arguments of each timer."""
    if uvloops.is_one(loop):
        return uvloops.timers(loop)
    return [[timer._callback, timer._args] for timer in list(loop._scheduled) if not timer._cancelled]  # noqa: SLF001


def _reachable(roots: list[Any], wanted: Collection[int]) -> set[int] | None:
    """Return the ids of ``wanted`` within a few hops, None if there is more than can be looked through."""
    found: set[int] = set()
    seen: set[int] = set()
    edge = roots
    for _ in range(_HOPS):
        following: list[Any] = []
        for one in edge:
            if id(one) in seen or isinstance(one, _PLAIN) or is_loop(one):
                continue
            seen.add(id(one))
            if len(seen) > _NODES:
                return None
            if id(one) in wanted:
                found.add(id(one))
            elif not awaits.is_task(
                one
            ):  # a task that is woken by a timer is not cancelled by it, nor are those it knows
                following += _known_by(one)
        edge = following
    return found


def _known_by(one: Any) -> list[Any]:
    kind = type(one)
    if kind is MethodType:
        return [one.__self__, *(one.__func__.__closure__ or () if type(one.__func__) is FunctionType else ())]
    if kind is BuiltinMethodType:
        return [one.__self__]
    if kind is FunctionType:
        return [*(one.__closure__ or ()), *(one.__defaults__ or ())]
    if kind is CellType:
        return gc.get_referents(one)
    if kind is functools.partial:
        return [one.func, one.args, one.keywords]
    return gc.get_referents(one)


def is_loop(one: Any) -> bool:
    """Return whether this is an event loop."""
    events = sys.modules.get("asyncio.events")
    return events is not None and isinstance(one, events.AbstractEventLoop)


def ready(loop: Any) -> list[Any]:
    """Return the callbacks that a loop is to run next, () if they change too quickly to be copied."""
    for _ in range(3):
        try:
            return uvloops.ready(loop) if uvloops.is_one(loop) else [handle._callback for handle in list(loop._ready)]  # noqa: SLF001
        except RuntimeError:  # changed while it was copied
            continue
    return []
