"""Rings through threads that poll for a lock on a file.

No walk finds them: who polls publishes no wait.  Where the function that polls says that it never gives up, a ring is handed
to the judge, who weighs it as any other.  Of other code nobody knows whether it will give up.  If it has tried for
``stall_after`` seconds, was found asleep between its attempts at each of several looks, and what it tries to get is held by
itself or by those who wait for it, it is suspected.

Cost       nothing while nobody's attempt has failed; else one look a second, and a picture where this process is in the way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from concagent import filewaits, graph, snapshots, state
from concagent.detectors import deadlock

if TYPE_CHECKING:
    from collections.abc import Callable

    from concagent.model import Finding, Snapshot

_TOLD_LIMIT: Final = 1024
_DOUBT: Final = "{} tries again and again, and could give up at any time, though it has not so far"


class PollWatch:
    """Has rings through attempts judged, and tells those of which no more is known; the monitor's thread only."""

    def __init__(
        self, source: filewaits.PollSource, stall_after: float, stack_limit: int, publish: Callable[[Finding], None]
    ) -> None:
        """Remember nothing yet; ``stall_after`` in seconds, ``publish`` is the monitor's."""
        self._source = source
        self._stall_ns = int(stall_after * 1e9)
        self._stack_limit = stack_limit
        self._publish = publish
        self._told: set[int] = set()
        self._asleep: dict[int, int] = {}  # serial of attempts -> looks in a row that found them going on

    def look(self, now_ns: int) -> None:
        """Look at who polls, once a tick."""
        if not self._source.is_asked():
            return
        asleep = {}
        for tried in filewaits.going_on(now_ns):
            if tried.serial in self._told or tried.endless is False or tried.wait.blocker() is None:
                continue
            if tried.endless:
                self._ask(tried, now_ns)
                continue
            asleep[tried.serial] = self._asleep.get(tried.serial, 0) + 1
            if (
                tried.may_be_endless(now_ns)
                and asleep[tried.serial] >= filewaits.ATTEMPTS
                and now_ns - tried.since_ns >= self._stall_ns
            ):
                self._suspect(tried)
        self._asleep = asleep
        if len(self._told) > _TOLD_LIMIT:
            self._told &= {tried.serial for tried in filewaits.attempts()}

    def _ask(self, tried: filewaits.Attempts, now_ns: int) -> None:
        """Let the judge look at the ring through these attempts, if there is one: no walk has found it."""
        if _ring_through(snapshots.take(named=False), tried):
            self._told.add(tried.serial)
            state.post(state.RingEvent((tried.record,), (tried.epoch,), now_ns))

    def _suspect(self, tried: filewaits.Attempts) -> None:
        with filewaits.all_shown():
            picture = snapshots.take(stacks=True, stack_limit=self._stack_limit)
        ring = _ring_through(picture, tried)
        if ring is not None:
            self._told |= {one.serial for one in filewaits.attempts() if one.record.serial in ring}
            doubt = _DOUBT.format(picture.actor(tried.record.serial).name)
            self._publish(deadlock.ring_finding(picture, ring, doubt=doubt))


def _ring_through(picture: Snapshot, tried: filewaits.Attempts) -> tuple[int, ...] | None:
    """Return the ring in which these attempts are a wait, None if there is none."""
    if not any(edge.epoch == tried.epoch for edge in picture.requests):
        return None
    return next((ring for ring in graph.find_rings(picture) if tried.record.serial in ring), None)
