"""Judges the waits that no walk can decide: who is left when everybody who can go on has gone on?

The picture is *reduced* (see ``graph``): three questions, from the surest to the least sure.

residue    Is anybody left who could end these waits?  If nobody is alive, nobody can, and it is proven, once two looks a moment
           apart agree: a thread that is just being started, or a finalizer about to run, shows in no single picture.
stranded   Does anything alive still refer to what would have to be signalled?  See that module.
suspects   Could those go on of whom we know that they end such waits?  If the waits have lasted for ``stall_after`` seconds
           and close a cycle with a lock or permit in it, it is suspected.

What a signal handler may do to the main thread, it may do at any moment; so while the program has handlers of its own,
a main thread that waits counts as alive.  Native threads that Python does not know may call in and signal anything; so
while there are some, a residue is suspected, and only after ``stall_after`` seconds.  The threads of a deadlock that was
reported count as alive, too, when the rest is judged: whoever waits for what they would have done is a consequence, and no
second defect.

Invariants J1 all fields are written by the monitor's thread.
           J2 a wait is told once, and once more when it is proven: ``told_waits``, shared with the judge, says what has been.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from concagent import _real, calls, core, graph, idle, snapshots
from concagent.detectors import residue as detector
from concagent.model import serial_of
from concagent.stranded import Stranded

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from concagent.config import Config
    from concagent.model import CallSite, Finding, Resource, Snapshot
    from concagent.told import Told

CONFIRM_NS: Final = 50_000_000  # between two looks that must agree that nobody else is left
RING_NS: Final = 2_000_000_000  # for a ring to be judged by who closed it, also on a busy machine
_WALKED: Final = frozenset({"lock", "rlock", "thread", "file-lock"})
_FOREIGN_DOUBT: Final = (
    "threads that Python does not know of run in this process, and one of them could still end this wait"
)

Key = tuple[int, int]  # actor's serial and the epoch of its wait


class ResidueLook(NamedTuple):
    """The residue of these waits is to be looked at once more."""

    keys: frozenset[Key]


class Stalls:
    """The judgement of one process's waits for signals, permits, parties and futures."""

    def __init__(
        self,
        config: Config,
        publish: Callable[[Finding], None],
        look_later: Callable[[int, Any], None],
        told_waits: Told,
        told_rings: set[Key],
    ) -> None:
        """Share with the judge what has been told; see there for the rest."""
        self.config = config
        self._publish = publish
        self._look_later = look_later
        self._told_waits = told_waits
        self._told_rings = told_rings
        self._asked: frozenset[Key] = frozenset()
        self._last_suspects: frozenset[Key] = frozenset()
        self._stranded = Stranded(config.stall_after, self._tell, told_waits)

    def look(self, picture: Snapshot, now_ns: int) -> None:
        """Look at a picture (`with_handlers`) in which somebody waits; once a second."""
        residue = graph.reduce(self._but_for_others(picture))
        keys = picture.waits_of(residue)
        if keys and keys != self._asked:
            self._asked = keys
            self._look_later(now_ns + CONFIRM_NS, ResidueLook(keys))
        elif picture.foreign_threads and self._is_news(keys) and self.are_old(picture, residue):
            self._tell(residue, doubt=_FOREIGN_DOUBT)
        self._look_at_suspects(picture)
        self._stranded.look(self._but_for_others(picture), now_ns)

    def check(self) -> None:
        """Ask every question now, the reachability question with more time; suspicions are told, too."""
        picture = with_handlers(snapshots.take())
        keys = picture.waits_of(graph.reduce(self._but_for_others(picture)))
        if keys:
            _real.sleep(CONFIRM_NS / 1e9)
            self.look_again(ResidueLook(keys))
        self._stranded.check(self._but_for_others(with_handlers(snapshots.take())))
        self._tell_consequences()

    def _tell_consequences(self) -> None:
        """Name who is stuck for good because of what was reported; by itself that would be a second report of one defect."""
        picture = with_handlers(snapshots.take())
        residue = graph.reduce(picture)
        if not picture.foreign_threads and self._is_news(picture.waits_of(residue)):
            self._tell(residue)

    def look_again(self, asked: ResidueLook) -> None:
        """Report what was left over a moment ago and still is."""
        picture = with_handlers(snapshots.take())
        residue = graph.reduce(self._but_for_others(picture))
        if picture.foreign_threads or not picture.waits_of(residue) <= asked.keys:
            self._asked = frozenset()  # ask again at the next tick
        elif residue:
            self._tell(residue)

    def _look_at_suspects(self, picture: Snapshot) -> None:
        """Report cycles through those who hold, or have signalled before, after ``stall_after`` seconds."""
        residue = graph.reduce(picture, signals=False)
        keys = picture.waits_of(residue)
        stable = residue and keys <= self._last_suspects
        self._last_suspects = keys
        if stable and self.are_old(picture, residue):
            self._tell(residue, suspected=True)

    def _is_news(self, keys: Collection[Key]) -> bool:
        """Return whether nothing has been told of one of these waits."""
        return not self._told_waits.covers(keys, proven=False)

    def are_old(self, picture: Snapshot, residue: Collection[int]) -> bool:
        """Return whether all their waits have lasted for ``stall_after`` seconds."""
        limit_ns = picture.monotonic_ns - self.config.stall_after * 1e9
        return all(edge.since_ns <= limit_ns for edge in picture.requests if edge.actor in residue)

    def _but_for_others(self, picture: Snapshot) -> Snapshot:
        """Let those count as alive who have findings of their own: the question is who is stuck but for them.

        They are the threads of proven deadlocks, and those that wait for an orphan.  So are those of a ring that has just
        closed: who closed it has it judged, and may be about to raise as its victim.
        """
        ended = {actor.serial for actor in picture.actors if actor.state == "ended"}
        single = {resource.serial for resource in picture.resources if resource.has_one_holder}
        orphans = {edge.resource for edge in picture.assignments if edge.holder in ended and edge.resource in single}
        told = {
            edge.actor
            for edge in picture.requests
            if edge.resource in orphans or (edge.actor, edge.epoch) in self._told_rings
        } | _young_rings(picture)
        return picture.with_alive(told)

    def _tell(
        self,
        residue: frozenset[int],
        *,
        suspected: bool = False,
        doubt: str | None = None,
        evidence: str | None = None,
    ) -> None:
        picture = snapshots.take(stacks=residue, stack_limit=self.config.stack_depth)
        epochs = epochs_of(picture)
        if not residue <= epochs.keys():
            return
        if not (suspected or evidence) and _is_idle(picture, residue):
            return
        proven = not (suspected or doubt)
        keys = {serial: (serial, epochs[serial]) for serial in residue}
        said = self._told_waits.of(proven=proven)
        known = frozenset(serial for serial in residue if keys[serial] in said)
        own = {} if suspected else _own_ends(picture, residue)
        for finding in detector.residue_findings(
            picture, residue, known, suspected=suspected, doubt=doubt, evidence=evidence, own=own
        ):
            self._publish(finding)
            named = {serial_of(actor.id) for actor in finding.actors}
            self._told_waits.add((keys[serial] for serial in named if serial in keys), proven=proven)
        if proven:  # nothing more can be said, of those behind whom a finding has no room for, either
            self._told_waits.add(keys.values(), proven=True)


def _own_ends(picture: Snapshot, residue: frozenset[int]) -> dict[int, CallSite]:
    """Return thread -> where it would go on to set the event or complete the future that it waits for itself."""
    resources = {resource.serial: resource for resource in picture.resources}
    waiters = Counter(edge.resource for edge in picture.requests)
    asked = {
        edge.actor: resources[edge.resource]
        for edge in picture.requests
        if edge.actor in residue and waiters[edge.resource] == 1 and _is_an_end(resources[edge.resource])
    }
    found: dict[int, CallSite] = {}
    frames = _real.current_frames() if asked else {}
    try:
        for record in core.records() if asked else ():
            resource, wait = asked.get(record.serial), record.waiting()
            reference = getattr(wait.resource, "reference", None) if wait is not None else None
            target = reference() if reference is not None and resource is not None else None
            if resource is not None and target is not None and wait.resource.serial == resource.serial:
                place = calls.later_call(frames.get(record.ident), target, detector.verbs(resource))
                site = snapshots.call_site(*place) if place is not None else None
                if site is not None:
                    found[record.serial] = site
    finally:
        frames.clear()
    return found


def _is_an_end(resource: Resource) -> bool:
    """Return whether what is waited for happens once, and by somebody's hand: a condition and a queue come again."""
    return resource.kind in {"event", "future"} and resource.ends == "signal"


def _young_rings(picture: Snapshot) -> set[int]:
    """Return the members of rings that the walk has found a moment ago: of locks and joins, with a young wait in them."""
    kinds = {resource.serial: resource.kind for resource in picture.resources}
    requests = {edge.actor: edge for edge in picture.requests}
    young: set[int] = set()
    for ring in graph.find_rings(picture):
        waits = [requests[serial] for serial in ring]
        walked = all(kinds[edge.resource] in _WALKED for edge in waits)
        if walked and picture.monotonic_ns - max(edge.since_ns for edge in waits) < RING_NS:
            young.update(ring)
    return young


def epochs_of(picture: Snapshot) -> dict[int, int]:
    """Return actor -> the epoch of its wait."""
    return {edge.actor: edge.epoch for edge in picture.requests}


def _is_idle(picture: Snapshot, residue: frozenset[int]) -> bool:
    ident = threading.main_thread().ident
    main = core.record_of_ident(ident)
    if main is None or ident is None:
        return False
    expects = idle.expects_interrupt(_real.current_frames().get(ident), calls.is_library)
    return idle.is_idle(picture, residue, main.serial, interruptible=expects)


def with_handlers(picture: Snapshot) -> Snapshot:
    """Let a main thread that waits count as alive while the program has signal handlers: they run in the midst of it."""
    main = core.record_of_ident(threading.main_thread().ident)
    if main is None or not has_signal_handlers():
        return picture
    return picture.with_alive({main.serial})


def has_signal_handlers() -> bool:
    """Return whether the program has Python signal handlers of its own (Ctrl-C's default one does not count)."""
    for number in signal.valid_signals():
        handler = _real.get_signal(number)
        if callable(handler) and handler is not signal.default_int_handler and not _is_asyncios(handler):
            return True
    return False


def _is_asyncios(handler: Any) -> bool:
    """Return whether this is the handler by which ``asyncio.run`` turns Ctrl-C into the end of its task."""
    runner = getattr(getattr(sys.modules.get("asyncio.runners"), "Runner", None), "_on_sigint", None)
    return runner is not None and getattr(getattr(handler, "func", None), "__func__", None) is runner
