"""The walk along holders: who waits for whom, until somebody does not, or until it is me again.

Both twins of the core call `walk` from a wait that was just published, and only where the holder waits too, is the caller
himself, or has ended; an ordinary contended acquire never comes here.  A record here is anything with ``epoch``,
``ended`` and ``waiting()``; a wait has ``timed`` and ``resource``; a resource answers ``hold_seen_by(wait)`` with a hold,
whose first item is the holder's record, or with None where no single holder could end the wait.

A ring is read twice.  Equal epochs, waits and holds in both readings mean that each member was inside this very wait all
the time between the readings; a blocked thread neither acquires nor releases, so the ring was real at a moment between.
A ring that does not contain the caller was found by the last of its own members.

Invariants W1 the listener is told once per walk, with nothing held and the wait still published.
Cost       O(length of the chain), whatever the number of locks and threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

_RING_LIMIT: Final = 10_000  # hops; a guard against a loop that is a bug of ours

# record, its epoch, its wait, the hold that it waits for
Step = tuple[Any, int, Any, Any]


class Listener:
    """What the core tells the rest; the default hears nothing.  Every method must be quick and must not raise."""

    def ring(self, path: Sequence[Step]) -> BaseException | None:
        """A confirmed ring of untimed waits, closed by the first entry's thread; what is returned is raised there."""

    def orphan(self, record: Any, wait: Any, hold: Any) -> BaseException | None:
        """``record`` is about to wait for a lock whose holder has ended."""

    def misuse(self, detail: str, cell: Any, hold: Any, frame: FrameType | None) -> None:
        """A wrong use: a detail of the kind ``misuse``."""


_listener: Listener = Listener()


def listen(listener: Listener | None) -> None:
    """Tell ``listener`` of rings and orphans from now on; None for nobody."""
    global _listener
    _listener = listener if listener is not None else Listener()


def tell_misuse(detail: str, cell: Any, frame: FrameType | None) -> None:
    """Tell the listener of a wrong use that a hook has seen, by the thread that calls, in this frame."""
    _listener.misuse(detail, cell, None, frame)


def _next_step(record: Any) -> Step | None:
    epoch = record.epoch
    wait = record.waiting()
    if wait is None or wait.timed:
        return None
    hold = wait.resource.hold_seen_by(wait)
    return None if hold is None else (record, epoch, wait, hold)


def _follow(start: Any) -> list[Step]:
    """Return the steps from ``start`` until somebody does not wait, has ended, or comes a second time."""
    path: list[Step] = []
    seen = set()
    record = start
    while len(path) < _RING_LIMIT and record not in seen and not record.ended:
        step = _next_step(record)
        if step is None:
            break
        seen.add(record)
        path.append(step)
        record = step[3][0]
    return path


def find_ring(start: Any) -> list[Step] | None:
    """Return the ring through ``start`` that two readings agree on, None if there is none; changes nothing."""
    path = _follow(start)
    if not path or path[-1][3][0] is not start:
        return None
    for step in path:
        again = _next_step(step[0])
        if again is None or again[1] != step[1] or again[2] is not step[2] or again[3] is not step[3]:
            return None
    return path


def walk(me: Any) -> BaseException | None:
    """Tell the listener of a ring through the calling thread's wait, or of a holder that has ended; return his answer."""
    first = _next_step(me)
    if first is None:
        return None
    if first[3][0].ended:
        return _listener.orphan(me, first[2], first[3])
    path = find_ring(me)
    return _listener.ring(path) if path is not None else None
