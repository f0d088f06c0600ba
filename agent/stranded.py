"""Judges waits that nobody alive can end, because nothing alive refers to what would have to be signalled.

A condition, event, queue or future that only its waiters still refer to will never be notified, set or filled: that is a
proof, though other threads live and work (see ``reach``).  Where something does refer to it, nothing is said by itself: a
pool's idle workers look just so.  Only who asks (SIGUSR1, ``concagent.check()``) is told what is suspected, with the words
of who refers to it.

The question costs a walk over the program's objects, so it is asked rarely: of waits that have lasted for ``stall_after``
seconds, with pauses that double while no new wait comes up, never more than a thousandth of the time, and not at all
in a program of so many objects that one look would be felt; who asks gets more.

Invariants S1 a proof names only actors that were in the same waits (epochs) before and after the last walk.
           S2 the main thread is never stranded where it may just wait for the end: Ctrl-C is a signal, too; see ``idle``.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from concagent import core, graph, idle, snapshots, state

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from concagent.model import RequestEdge, Snapshot
    from concagent.told import Told

_OBJECTS: Final = 400_000  # a look at more than so many would keep the program for more than some 20 ms
_SECONDS: Final = 1.0  # for all looks of one question, between which the program runs
_SECONDS_ON_DEMAND: Final = 2.0
_SHARE: Final = 1000  # of the time may not be spent with asking
_LONGEST_PAUSE_NS: Final = 600_000_000_000
_EVIDENCE: Final = "nothing alive refers any more to what would have to be signalled, only those who wait for it"


class Stranded:
    """The reachability question of one process; all on the monitor's thread."""

    def __init__(self, stall_after_seconds: float, tell: Callable[..., None], told: Told) -> None:
        """Ask of waits that last longer; ``tell(actors, evidence=, doubt=)`` reports, ``told`` says what has been."""
        self._stall_after_ns = int(stall_after_seconds * 1e9)
        self._tell = tell
        self._told = told
        self._asked: frozenset[tuple[int, int]] = frozenset()
        self._next_ns = 0
        self._pause_ns = self._stall_after_ns

    def look(self, picture: Snapshot, now_ns: int) -> None:
        """Ask by itself, if it is time."""
        old = self._old_waits(picture, self._stall_after_ns)
        keys = frozenset((edge.actor, edge.epoch) for edge in old)
        if not keys or (keys <= self._asked and now_ns < self._next_ns):
            return
        self._pause_ns = self._stall_after_ns if not keys <= self._asked else min(2 * self._pause_ns, _LONGEST_PAUSE_NS)
        self._asked |= keys
        self._asked &= frozenset((edge.actor, edge.epoch) for edge in picture.requests)
        stuck, _, spent_ns = self._prove(picture, seconds=_SECONDS, node_limit=_OBJECTS)
        self._next_ns = now_ns + max(self._pause_ns, _SHARE * spent_ns)
        found = stuck & {edge.actor for edge in old}
        if found:
            self._tell(stuck, evidence=_EVIDENCE)

    def check(self, picture: Snapshot) -> None:
        """Ask now, because somebody wants to know; suspicions are told, too."""
        stuck, paths, _ = self._prove(picture, seconds=_SECONDS_ON_DEMAND)
        if stuck:
            self._tell(stuck, evidence=_EVIDENCE)
        for edge in self._old_waits(picture, self._stall_after_ns):
            if edge.actor not in stuck and (edge.actor, edge.epoch) not in self._told and self._is_odd(picture, edge):
                words = paths.get(edge.resource) or "something that could not be named"
                self._tell(
                    frozenset({edge.actor}),
                    doubt=f"nobody who is alive is known to end such waits, but it is still referred to by {words}",
                )

    def _prove(self, picture: Snapshot, **limits: Any) -> tuple[frozenset[int], Mapping[int, str], int]:
        """Return (stuck actors, resource -> who refers to it, ns spent)."""
        from concagent import _real, reach

        begun_ns = _real.monotonic_ns()
        judged = _with_main_alive(picture)
        waits = _Waits(judged)
        stuck, answer = reach.close(judged, waits.targets_of, waits.stuck_of, **limits)
        if stuck and not picture.waits_of(stuck) <= snapshots.take(named=False).waits_of(stuck):
            stuck = frozenset()  # somebody went on meanwhile
        return stuck, answer.paths, _real.monotonic_ns() - begun_ns

    def _old_waits(self, picture: Snapshot, age_ns: int) -> list[RequestEdge]:
        """Return the untimed waits for a signal that have lasted for so long, but an idle main thread's and the proven ones."""
        judged = _with_main_alive(picture)
        residue = graph.reduce(judged, reached=())
        resources = {resource.serial: resource for resource in picture.resources}
        return [
            edge
            for edge in picture.requests
            if edge.actor in residue
            and picture.monotonic_ns - edge.since_ns >= age_ns
            and not self._told.covers([(edge.actor, edge.epoch)], proven=True)
            and resources[edge.resource].kind not in {"thread", "task", "process"}
        ]

    def _is_odd(self, picture: Snapshot, edge: RequestEdge) -> bool:
        """Return whether a wait that somebody could end looks as if nobody would: no worker that is idle looks like this.

        A daemon, one of several that wait for the same thing, or a thread without a frame of the program's own waits for work.
        Somebody alive who has ended such waits before will do it again.
        """
        actor = picture.actor(edge.actor)
        alive = {one.serial for one in picture.actors if one.state in {"live", "timed"}}
        waiters = [other for other in picture.requests if other.resource == edge.resource]
        known = {signal.actor for signal in picture.signals if signal.resource == edge.resource}
        ends = picture.resource(edge.resource).ends
        return (
            ends != "holder" and not actor.daemon and len(waiters) == 1 and edge.site is not None and not known & alive
        )


def _with_main_alive(picture: Snapshot) -> Snapshot:
    main = core.record_of_ident(threading.main_thread().ident)
    request = next((edge for edge in picture.requests if main is not None and edge.actor == main.serial), None)
    if request is None or not idle.waits_to_be_ended(picture.resource(request.resource)):
        return picture
    others = tuple(edge for edge in picture.requests if edge is not request)
    return replace(picture.with_alive({request.actor}), requests=others)


class _Waits:
    """What the actors of a picture wait for, as live objects."""

    def __init__(self, picture: Snapshot) -> None:
        """Look the waits up; one that is over by now has no target, and so counts as reached."""
        records = {record.serial: record for record in core.records()}
        self._records = records
        self._waits = {}
        for edge in picture.requests:
            wait = records[edge.actor].waiting() if edge.actor in records else None
            if wait is not None and wait.resource.serial == edge.resource:
                self._waits[edge.resource] = wait

    def targets_of(self, serial: int) -> tuple[object, ...]:
        """Return the objects by which the resource can be signalled; () if they are not known."""
        from concagent import reach

        wait = self._waits.get(serial)
        if wait is not None:
            reference = getattr(wait.resource, "reference", None)
            target = wait.user if reference is None else reference()
        else:
            target = _asked_of_sources("target_of", serial)
        return () if target is None else reach.signal_objects(target)

    def stuck_of(self, serial: int) -> object | None:
        """Return the ident of an actor's thread, or the actor itself where it is a task; None if it is neither."""
        record = self._records.get(serial)
        if record is not None:
            ident: int = record.ident
            return ident
        return _asked_of_sources("actor_of", serial)


def _asked_of_sources(method: str, serial: int) -> object | None:
    """Return what the first source that knows a serial says of it; None if none does."""
    for source in state.sources():
        find = getattr(source, method, None)
        found: object | None = find(serial) if find is not None else None
        if found is not None:
            return found
    return None
