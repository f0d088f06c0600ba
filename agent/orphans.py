"""Who waits for a lock whose holder has ended, and was anybody else meant to release it?

A thread that ends with a lock in its hands has mostly forgotten it, but a plain Lock may have been taken to be given back by
another.  What the code shows of its holder's habit decides: see `habit_of`, and `Orphans.look` for what each is worth.

Invariants O1 all fields are written by the monitor's thread.
           O2 a wait is told once, and once more when what was suspected is proven.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from concagent import _real, calls, core, forks, graph, snapshots, state
from concagent.detectors import orphan
from concagent.model import serial_of
from concagent.stalls import epochs_of, with_handlers
from concagent.told import Told

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from concagent.config import Config
    from concagent.model import Finding, Snapshot

GRACE_NS: Final = 400_000_000  # for a release that comes just after the thread's end
HAND_OVER_NS: Final = 900_000_000  # the same for a lock that may have been meant for another thread to release
_DOUBT: Final = "a thread that is still alive could release this lock, though none has so far"


class Orphans:
    """Looks for locks of threads that have ended; the monitor's thread only."""

    def __init__(
        self, config: Config, publish: Callable[[Finding], None], told_waits: Told, agent_idents: set[int]
    ) -> None:
        """Keep what is needed to speak.

        Args:
            config: The options in force.
            publish: Takes each finding.
            told_waits: What findings of other kinds speak of, too; waits of orphans are added.
            agent_idents: OS thread ids of the agent's own threads.
        """
        self._config = config
        self._publish = publish
        self._told_waits = told_waits
        self._agent_idents = agent_idents
        self._told = Told()

    def look(self) -> None:
        """Report who waits for a lock whose holder has ended.

        A plain Lock that was taken to be given back by another thread looks like an orphan, too.  So unless the code shows
        that its holder meant to release it, or nobody is left who could, it is given the time of a hand-over.  Where a live
        thread may well release it, it is a suspicion until nobody is left: a flag, taken without waiting; a block that was
        entered and not left, by a generator or an exit stack that anybody may close; and a lock while a running
        function, or one that it leads to, has a ``release`` without an ``acquire``.
        """
        picture = snapshots.take()
        waiting = {edge.actor: edge for edge in picture.requests}
        judged = with_handlers(picture)
        stuck = frozenset[int]() if judged.foreign_threads else graph.reduce(judged)
        habits = self._habits_of_the_ended()
        proven, suspected = set(), set()
        may_release: bool | None = None
        for serial, edge in waiting.items():
            waited_ns = picture.monotonic_ns - edge.since_ns
            wait, habit = (serial, edge.epoch), habits.get(edge.resource)
            if habit is None or waited_ns < GRACE_NS // 2 or self._told.covers([wait], proven=True):
                continue
            if habit in {"owned", "finally", "later"} or serial in stuck:
                proven.add(serial)
                continue
            if habit == "bare" and waited_ns >= HAND_OVER_NS:
                if may_release is None:
                    may_release = self.may_somebody_release({w for w, e in waiting.items() if e.resource in habits})
                if not may_release:
                    proven.add(serial)
                    continue
            if wait not in self._told and waited_ns >= self._config.stall_after * 1e9:
                suspected.add(serial)
        self._publish_found(picture, frozenset(proven), None)
        self._publish_found(picture, frozenset(suspected), _DOUBT)

    def may_somebody_release(self, waiting: Collection[int]) -> bool:
        """Return whether a thread but these runs a function that looks as if it releases what others have taken."""
        not_asked = {record.ident for record in core.records() if record.serial in waiting} | self._agent_idents
        frames = [frame for ident, frame in _real.current_frames().items() if ident not in not_asked]
        return any(calls.may_hand_over(frame) for frame in frames)

    def _habits_of_the_ended(self) -> dict[int, str]:
        """Return lock -> what is known of who was to release it, for the locks of threads that have ended."""
        return {
            cell.serial: habit_of(cell, cell.hold)
            for record in core.records()
            if record.ended
            for cell in record.held
            if cell.hold is not None
        }

    def _publish_found(self, judged: Snapshot, serials: frozenset[int], doubt: str | None) -> None:
        if not serials or not orphan.orphan_findings(judged, serials):
            return
        ended = {actor.serial for actor in judged.actors if actor.state == "ended"}
        picture = snapshots.take(stacks=serials | ended, stack_limit=self._config.stack_depth)
        epochs = epochs_of(judged)
        for finding in orphan.orphan_findings(picture, serials):
            members = {serial_of(a.id) for a in finding.actors if a.role == "member"}
            keys = {(s, epochs[s]) for s in members if s in epochs}
            self._told.add(keys, proven=doubt is None)
            self._told_waits.add(keys, proven=doubt is None)
            told = finding.with_changes(confidence="suspected", reason=doubt) if doubt else finding
            self._publish(told)

    def forget(self, waiting: frozenset[tuple[int, int]]) -> None:
        """Drop what concerns waits that are over."""
        self._told.forget(waiting)


def habit_of(cell: Any, hold: Any) -> str:
    """Return what is known of who was to release a hold whose thread has ended, or nothing is running of."""
    if hold is None:
        return "bare"
    inherited = forks.inherited(cell, hold)
    if inherited is not None:
        return inherited.discipline() if inherited.is_mutex() else "try"
    return "lent" if cell.kind == "lock" and hold[3] else state.hold_discipline(cell, hold)
