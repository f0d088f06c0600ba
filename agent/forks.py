"""What other threads held when the process forked, remembered for the child.

A fork's child is a copy of the whole memory with one thread.  A lock that another thread held is held in the child, too, by a
thread that does not exist there, so nobody ever releases it.  The child cannot see what that thread was doing, so the parent
looks just before it forks: the hold, whether the function that took it was running, and the stack.

Whether it is a hazard only the child can tell: callbacks of ``os.register_at_fork`` may make the lock anew, and a child that
calls ``exec`` has no locks at all.  So it is the child who reports, a moment later, what is still held then.  A program with
many workers would say it many times, so what has been told is marked in a page that all of them share.

Invariants K1 `before` changes nothing that anybody reads in the parent; `in_child` adds to what the child knows, once a fork.
Cost       nothing is held by others, as nearly always: a look at the records.  Else the stacks of those who hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from concagent import _real, core, state
from concagent.tuples import NamedTuple

if TYPE_CHECKING:
    from types import FrameType

_PAGE: Final = 4096
_MARK: Final = 8  # bytes of a fingerprint
_RELEASED_BY_HOLDER: Final = frozenset({"owned", "finally", "later"})


class InheritedHold(NamedTuple):
    """A lock that a thread of the parent held at the fork; ``running``: and the function that took it had not returned."""

    cell: Any
    hold: Any
    running: bool
    stack: state.RawStack

    def lasts(self) -> bool:
        """Return whether it is held still: nobody has made the lock anew, or released it in the name of the other."""
        return self.cell.hold is self.hold and not self.cell.cls.signal

    def discipline(self) -> str:
        """Return what is known of who was to release it, as of `model.AssignmentEdge`."""
        habit = state.hold_discipline(self.cell, self.hold)
        return state.unless_running(habit, self.cell, self.hold, running=self.running)

    def is_mutex(self) -> bool:
        """Return whether the thread that is gone, and nobody else, was to release it."""
        return self.discipline() in _RELEASED_BY_HOLDER


class Fork(NamedTuple):
    """A fork of a process with such locks, as its child knows it: who called, with what stack, and the locks."""

    record: Any
    stack: state.RawStack
    holds: tuple[InheritedHold, ...]


_coming: Fork | None = None
_inherited: dict[int, InheritedHold] = {}  # by the serial of the lock; in a child
_told: Any = None  # the shared page


def before(caller: FrameType | None) -> None:
    """Look at what others hold; the thread that is about to fork calls this."""
    global _coming, _told
    me = core.current_record()
    others = [record for record in core.records() if record is not me and not record.agent and not record.ended]
    holds = [(record, cell, cell.hold) for record in others for cell in list(record.held)]
    holds = [(record, cell, hold) for record, cell, hold in holds if hold is not None and hold[0] is record]
    _coming = None
    if not holds:
        return
    frames = _real.current_frames()
    try:
        found = tuple(
            InheritedHold(cell, hold, state.is_running(frames.get(record.ident), hold), _stack(frames, record))
            for record, cell, hold in holds
        )
    finally:
        frames.clear()  # our own frame is among them: a cycle
    if _told is None:
        import mmap

        _told = mmap.mmap(-1, _PAGE)
    _coming = Fork(me, state.raw_stack(caller), found)


def _stack(frames: dict[int, FrameType], record: Any) -> state.RawStack:
    return state.raw_stack(frames.get(record.ident))


def in_parent() -> None:
    """Forget what concerned the child."""
    global _coming
    _coming = None


def in_child() -> Fork | None:
    """Keep what was seen before the fork, and return it; None if nothing was held."""
    global _coming
    fork, _coming = _coming, None
    if fork is not None:
        _inherited.update((each.cell.serial, each) for each in fork.holds)
    return fork


def inherited(cell: Any, hold: Any) -> InheritedHold | None:
    """Return what is known of a hold that comes from the parent, None for any other."""
    found = _inherited.get(cell.serial)
    return found if found is not None and found.hold is hold else None


def stack_of(record: Any) -> state.RawStack:
    """Return the stack, at the fork, of a thread of the parent that held something; () for any other."""
    return next((each.stack for each in list(_inherited.values()) if each.hold[0] is record), ())


def is_first(fingerprint: str) -> bool:
    """Return whether no process of this family has told this yet, and mark it as told.

    Two children that ask in the same instant may both be the first; a full page tells everything.
    """
    if _told is None:
        return True
    mark = bytes.fromhex(fingerprint)[:_MARK]
    for at in range(0, _PAGE, _MARK):
        found = _told[at : at + _MARK]
        if found == mark:
            return False
        if not any(found):
            _told[at : at + _MARK] = mark
            return True
    return True
