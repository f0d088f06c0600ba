"""Tells a program that has nothing to do from one that is stuck: in both everybody is asleep, and nobody is left to wake them.

``Event().wait()`` in the main thread is how a program waits for Ctrl-C while others do its work: daemon threads and those of
a pool that wait for jobs, child processes, tasks that serve.  When none of these is there, nobody is left who could set the
event, and that is what we say.  A wait for room in a queue, for a permit, for the others of a barrier, or for what has been
in a queue before (`TAKEN`) is for something that was to come.

Where the function that waits handles ``KeyboardInterrupt`` itself, it may be alone, and its workers need not be daemons.

Limits     a crowd of idle workers hides that the one is dead who should have woken the main thread; who asks is shown its wait.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from concagent.words import NO_WORK, TAKEN

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

    from concagent.model import Resource, Snapshot


def waits_to_be_ended(asked: Resource) -> bool:
    """Return whether a main thread may wait for this just to be there."""
    kind, detail = asked.kind.removeprefix("asyncio-"), asked.detail or ""
    return kind in {"event", "condition", "event-loop"} or (detail.startswith("empty") and not detail.endswith(TAKEN))


def waits_for_work(asked: Resource) -> bool:
    """Return whether this is what a worker waits for between two jobs."""
    return asked.kind.removeprefix("asyncio-") == "condition" or (asked.detail or "").startswith("empty")


def expects_interrupt(frame: FrameType | None, is_library: Callable[[CodeType], bool]) -> bool:
    """Return whether the function that waits handles Ctrl-C itself: then that is what may end its wait.

    Args:
        frame: The main thread's innermost frame.
        is_library: Tells ours and those of the library that waits are made of.
    """
    while frame is not None and is_library(frame.f_code):
        frame = frame.f_back
    return frame is not None and "KeyboardInterrupt" in frame.f_code.co_names


def is_idle(picture: Snapshot, residue: frozenset[int], main: int, *, interruptible: bool = False) -> bool:
    """Return whether the main thread, an actor of the residue, seems to wait for the end of the program.

    Args:
        picture: The picture that was reduced.
        residue: Those who are asleep for good.
        main: Serial of the main thread.
        interruptible: Whether the main thread's function `expects_interrupt`.
    """
    if main not in residue:
        return False
    resources = {resource.serial: resource for resource in picture.resources}
    actors = {actor.serial: actor for actor in picture.actors}
    awaited = {edge.actor: resources[edge.resource] for edge in picture.requests if edge.actor in residue}
    others = [serial for serial in residue if serial != main]
    if interruptible and (waits_to_be_ended(awaited[main]) or awaited[main].kind == "thread"):
        return has_children() or all(waits_for_work(awaited[serial]) for serial in others)
    if not all(actors[serial].daemon or awaited[serial].detail == NO_WORK for serial in others):
        return False
    if awaited[main].kind == "event-loop":  # then it is its tasks that wait to be ended
        tasks = [awaited[serial] for serial in others if actors[serial].type == "task"]
        asked = [one for one in tasks if one.kind != "future"]  # ``await asyncio.Future()`` is how a main task waits
        return all(waits_to_be_ended(one) for one in asked) and all(one.ends == "signal" for one in awaited.values())
    if not waits_to_be_ended(awaited[main]):
        return False
    return has_children() or (bool(others) and all(waits_for_work(awaited[serial]) for serial in others))


def has_children() -> bool:
    """Return whether this process has child processes, also dead ones; True where that cannot be asked without waiting."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    except (AttributeError, OSError):
        pass
    return True
