"""Notices event loops that do not turn: a callback that computes, sleeps or waits keeps everything else on its loop waiting.

Once a tick we look, on our own thread, at where each loop's thread is: asleep in its selector, or in which callback of which
turn (``loops``).  The same callback in looks further apart than the threshold is told once, with its stack.  The loop does
nothing for it, unlike under asyncio's debug mode, which times every callback and tells only after it has come back.

A loop of uvloop does not show which turn it is in, so when we find it in a callback it is asked to run one of ours: that it has
not is what tells that it has not turned.

Limits     what blocks for less than the threshold and a tick may be missed; a loop of another make is not seen.
Cost       O(threads' frames) a tick, in programs that have loaded asyncio.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from concagent import _real, awaits, core, loops, snapshots, uvloops
from concagent.detectors import loop as detector
from concagent.model import Actor, CallSite

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from concagent.model import Finding


class _Step(NamedTuple):
    loop: Any  # weak
    turn: tuple[float, int]
    since_ns: int


class LoopWatch:
    """Turns looks at loops into findings; the monitor's thread only."""

    def __init__(
        self,
        threshold_seconds: float,
        stack_limit: int,
        publish: Callable[[Finding], None],
        is_told: Callable[[int, int], bool],
    ) -> None:
        """Remember nothing yet.

        Args:
            threshold_seconds: How long a callback may last.
            stack_limit: Innermost frames kept of a stack.
            publish: The monitor's.
            is_told: Takes a thread's serial and the epoch of its wait; whether a finding speaks of that wait already.
        """
        self._threshold_ns = int(threshold_seconds * 1e9)
        self._stack_limit = stack_limit
        self._publish = publish
        self._is_told = is_told
        self._steps: dict[int, _Step] = {}
        self._pings: dict[int, uvloops.Ping] = {}
        self._told: set[tuple[int, tuple[float, int]]] = set()

    def look(self, now_ns: int) -> None:
        """Look at every loop, once a tick."""
        frames = _real.current_frames()
        try:
            self._look(frames, now_ns)
        finally:
            frames.clear()

    def _look(self, frames: dict[int, FrameType], now_ns: int) -> None:
        steps: dict[int, _Step] = {}
        for seen in loops.running_loops(frames):
            view = self._with_turn(seen)
            if view.turn is None:
                continue
            before = self._steps.get(view.ident)
            if before is None or before.turn != view.turn or before.loop() is not view.loop:
                before = _Step(_real.weak_reference(view.loop), view.turn, now_ns)
            steps[view.ident] = before
            key = (view.ident, view.turn)
            if now_ns - before.since_ns >= self._threshold_ns and key not in self._told and not self._waits_in(view):
                self._told.add(key)
                self._publish(self._finding(view, frames[view.ident], now_ns - before.since_ns))
        self._told &= {(ident, step.turn) for ident, step in steps.items()}
        self._steps = steps

    def _with_turn(self, view: loops.LoopView) -> loops.LoopView:
        """Return a view whose turn is another one whenever the loop has gone on: of uvloop's we have to ask the loop."""
        if view.turn is None or not uvloops.is_one(view.loop):
            return view
        ping = self._pings.get(view.ident)
        if ping is None or ping.is_answered or ping.loop() is not view.loop:
            number = ping.number + 1 if ping is not None else 1
            ping = self._pings[view.ident] = uvloops.Ping(view.loop, _real.weak_reference(view.loop), number)
        return view._replace(turn=(float(ping.number), view.turn[1]))

    def _waits_in(self, view: loops.LoopView) -> bool:
        record = core.record_of_ident(view.ident)
        return record is not None and self._is_told(record.serial, record.epoch)

    def _finding(self, view: loops.LoopView, frame: FrameType, lasted_ns: int) -> Finding:
        record = core.record_of_ident(view.ident)
        thread = _real.find_thread(view.ident)
        native = getattr(thread, "native_id", None)
        name = thread.name if thread is not None else f"thread-{native or view.ident}"
        stack = snapshots.stack_frames(frame, self._stack_limit)
        daemon = thread.daemon if thread is not None else True
        serial = record.serial if record is not None else view.ident
        actor = Actor(serial, "thread", os.getpid(), native, name, daemon, "live", stack)
        return detector.blocked_loop(
            actor, _task_name(view.loop), _site(frame), lasted_ns, _real.monotonic_ns(), _real.wall_seconds()
        )


def _task_name(loop: Any) -> str | None:
    """Return the name of the task whose step is running, None for a plain callback."""
    task = sys.modules["asyncio.tasks"].current_task(loop)
    return str(awaits.task_class(task).get_name(task)) if awaits.is_task(task) else None


def _site(innermost: FrameType) -> CallSite | None:
    """Return the innermost place in the program's own code: neither the standard library's nor an installed package's."""
    library = os.path.dirname(os.__file__) + os.sep
    frame: FrameType | None = innermost
    while frame is not None and frame.f_code.co_filename.startswith((library, "<frozen")):
        frame = frame.f_back
    found = frame or innermost
    return snapshots.call_site(found.f_code, found.f_lasti)
