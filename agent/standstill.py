"""Waits that nobody of any process can end: everybody who could is asleep, too, in all processes.

The ring of locks has one holder a lock, and is found by following (``union``).  An event may be set by whoever has it, a pipe is
filled by whoever has its other end; so here the picture of all processes is *reduced*, as that of one process is (``graph``):
who can go on frees whoever he could wake, until nothing changes.  What can end a wait, its process says itself (``asleep``).
A process that says nothing is awake; so what is left is a proof, however many there are without an agent.

Who has the ends is asked of the kernel, which takes some 10 ms, so it is asked last, by the one process that would tell, and
whoever was found awake with an end is believed to be so until he dies or says otherwise.

As in ``union``, the same has to be found twice, and every process of it has to have spoken again in between.  At the moment of
the first look they were all asleep; who has an end then got it from one of them before.

Silent     a program that waits for its own end: see ``_is_idle``.
Cost       nothing beyond ``union``'s but for the census, with pauses that double.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from concagent import _real, idle, shared, whohas
from concagent.asleep import words_of_the_dead
from concagent.board import is_alive
from concagent.detectors import residue as detector
from concagent.enders import Picture, Process, Waits, join, picture_keys
from concagent.model import Actor, Resource

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from concagent.board import Board
    from concagent.model import Finding

PATIENCE_NS: Final = 500_000_000
DRAIN_NS: Final = (
    3_500_000_000  # where others may tell it first: a child that is joined and writes to a full pipe, a pool
)
_SHARE: Final = 200  # of the time, that is what may be spent with asking the kernel
_LONGEST_PAUSE_NS: Final = 60_000_000_000
_REMEMBERED: Final = 256  # ends of which it is known who is awake; beyond, they are asked for once more
_ADVICE: Final = (
    "Every process that could end these waits waits itself, or has ended. Send what is expected before waiting for the "
    "answer, tell consumers with a last item or by closing the pipe's other end in every process that does not write that "
    "no more will come, and give a wait for another process a time-out. Do not kill() a process that others wait for."
)
_SHARED_LOCKS: Final = frozenset({"mp-lock", "mp-rlock"})
_LOCK_ADVICE: Final = (
    "Do not wait for another process's message, item or result while holding a lock that it needs first: release the lock, or "
    "let the other one do without it. To break it at run time give the wait a time-out."
)


class Standstill:
    """What one process finds out of what all have said; all on the monitor's thread."""

    def __init__(self, publish: Callable[[Finding], None]) -> None:
        """Keep where findings go."""
        self._publish = publish
        self._told: set[tuple[int, int]] = set()  # (actor, epoch)
        self._awake: dict[str, Process] = {}  # an end -> who has it and was awake
        self._passed_on: frozenset[tuple[int, int]] = frozenset()  # waits that another process was asked to judge
        self._put_off_for: frozenset[tuple[int, int]] = frozenset()  # waits that somebody could end
        self._next_ns = self._pause_ns = 0
        self._census_ns = 0  # before that no census, but to confirm what was found

    def look(
        self,
        board: Board,
        said: Mapping[Process, tuple[int, Any]],
        number: Callable[[Process, int], int],
        actors: Iterable[Actor],
        alive: Collection[int],
        known: Mapping[Any, int],
        now_ns: int,
        speaks_for: Callable[[Iterable[Process]], bool],
    ) -> dict[Any, int]:
        """Look whether there are waits that nobody can end; return what is to be looked at again, and since when.

        Args:
            board: Where shared locks have their holders.
            said: Process -> when it spoke (ns), and what it said, as of `asleep.say`.
            number: Makes the serial of an actor in the picture of all of them.
            actors: Those of that picture, with their stacks.
            alive: Serials of those who have findings of their own.
            known: What the last look returned.
            now_ns: The moment of this look.
            speaks_for: Tells whether it is this process that tells of these.
        """
        picture = join(said, number, {actor.serial: actor for actor in actors})
        waits = Waits(board, picture, frozenset(alive), number)
        stuck = waits.stuck(lambda key: self._believed(key, picture))
        stuck &= _old(picture, stuck, now_ns)
        wanted = waits.keys_of(stuck)
        processes = {picture.process_of[one] for one in stuck}
        if not wanted or shared.me() not in processes:
            return {}
        waiting = picture_keys(picture, stuck)
        if not speaks_for(processes):
            if waiting != self._passed_on:  # who is to tell does not know yet
                self._passed_on = waiting
                board.ask()
            return {}
        if self._told >= waiting:
            return {}
        next_ns = self._next_ns if waiting == self._put_off_for else self._census_ns
        if now_ns < next_ns and self._key(picture, stuck) not in known:
            return {}
        began_ns = _real.thread_time_ns()
        owners = whohas.census(wanted, board.root())
        self._census_ns = now_ns + _SHARE * (_real.thread_time_ns() - began_ns)
        if owners is None:
            self._put_off(now_ns, waiting)
            return {}
        stuck = waits.stuck(lambda key: owners.get(key, {(0, 0)}))
        if len(self._awake) > _REMEMBERED:
            self._awake.clear()
        for key in wanted:
            awake = [one for one in owners[key] if one not in picture.told or picture.told[one].awake]
            if awake:
                self._awake[key] = min(awake)
        old = _old(picture, stuck, now_ns)
        if not waits.keys_of(stuck) or old != stuck:
            if not waits.keys_of(stuck):
                self._put_off(now_ns, waiting)
            return {}
        if _is_idle(picture, stuck) or self._told >= picture_keys(picture, stuck):
            self._put_off(now_ns, waiting)
            return {}
        key = self._key(picture, stuck)
        first_ns = known.get(key, now_ns)
        processes = {picture.process_of[one] for one in stuck}
        if any(said[process][0] <= first_ns for process in processes):
            return {key: first_ns}
        if shared.me() in processes and speaks_for(processes):
            self._tell(waits, stuck, owners)
        return {}

    def _key(self, picture: Picture, stuck: frozenset[int]) -> Any:
        return "standstill", picture_keys(picture, stuck)

    def _put_off(self, now_ns: int, waiting: frozenset[tuple[int, int]]) -> None:
        """Ask later about these waits, and later still if nothing comes of it then."""
        before_ns = self._pause_ns if waiting == self._put_off_for else 0
        self._put_off_for = waiting
        self._pause_ns = min(_LONGEST_PAUSE_NS, max(1_000_000_000, 2 * before_ns))
        self._next_ns = now_ns + self._pause_ns

    def _believed(self, key: str, picture: Picture) -> set[Process]:
        """Return who has an end, as far as it is known without asking: all that are asleep, and who was found awake."""
        found = set(picture.told)
        awake = self._awake.get(key)
        if awake is not None:
            told = picture.told.get(awake)
            if is_alive(*awake) and (told is None or told.awake):
                return found | {awake}
            del self._awake[key]
        return {process for process in found if not picture.told[process].awake}

    def _tell(self, waits: Waits, stuck: frozenset[int], owners: Mapping[str, set[Process]]) -> None:
        picture = waits.picture
        known = frozenset(one for one in stuck if (one, picture.requests[one].epoch) in self._told)
        served = frozenset(one for one in stuck if not _is_feeder(picture, one)) or stuck
        shown = waits.shown(served, owners)
        findings = detector.residue_findings(shown, served, known, evidence=words_of_the_dead())
        is_cycle = any(finding.kind == "deadlock" for finding in findings)
        for finding in findings:
            members = {one.id for one in finding.actors if one.role == "member"}
            idlers = {picture.actors[one].id for one in served if idle.waits_for_work(_plain(picture, one))}
            if not (is_cycle and finding.kind == "stall" and members <= idlers):  # they wait for those of the cycle
                is_under_lock = any(one.kind in _SHARED_LOCKS for one in finding.resources)
                self._publish(finding.with_changes(advice=_LOCK_ADVICE if is_under_lock else _ADVICE))
        self._told |= picture_keys(picture, stuck)


def _old(picture: Picture, stuck: frozenset[int], now_ns: int) -> frozenset[int]:
    """Return those who have waited long enough."""
    hows = {picture.how[picture.requests[one].resource][1] for one in stuck}
    full = any(picture.resources[picture.requests[one].resource].detail == "full" for one in stuck)
    has_pool = any(picture.told[picture.process_of[one]].has_pool for one in stuck)
    patience_ns = DRAIN_NS if has_pool or (full and "child" in hows) else PATIENCE_NS
    return frozenset(one for one in stuck if now_ns - picture.requests[one].since_ns >= patience_ns)


# ---------------------------------------------------------------- nothing to do, or stuck?


def _is_idle(picture: Picture, stuck: frozenset[int]) -> bool:
    """Return whether a program seems to wait for its own end, by Ctrl-C or a signal, while nothing is to be done.

    As with threads (``idle``): the main thread of the first process waits for an event, and all others for work; or for something
    else that may just mean the end, and all others are daemons that wait for work.  Where its function handles Ctrl-C it may
    wait for its children, too.
    """
    pids = {picture.process_of[one][0] for one in stuck}
    tops = [
        process for process in {picture.process_of[one] for one in stuck} if picture.told[process].parent not in pids
    ]
    for top in tops:
        told = picture.told[top]
        mains = [one for one in stuck if picture.process_of[one] == top and one % Actor.SPACE == told.main]
        if not mains:
            continue
        others = stuck - set(mains)
        asked = _plain(picture, mains[0])
        if not all(idle.waits_for_work(_plain(picture, one)) or _is_feeder(picture, one) for one in others):
            continue
        if asked.kind == "event" and others:
            return True
        if told.interruptible and (idle.waits_to_be_ended(asked) or asked.kind in {"process", "thread"}):
            return True
        daemons = all(picture.actors[one].daemon or picture.told[picture.process_of[one]].daemon for one in others)
        if idle.waits_to_be_ended(asked) and daemons and any(picture.process_of[one] != top for one in others):
            return True
    return False


def _plain(picture: Picture, actor: int) -> Resource:
    """Return what an actor waits for, called as it is among threads."""
    resource = picture.resources[picture.requests[actor].resource]
    return replace(resource, kind=resource.kind.removeprefix("mp-"))


def _is_feeder(picture: Picture, actor: int) -> bool:
    """Return whether this is a thread of a queue that writes what was put into it, and has nothing to write."""
    site = picture.requests[actor].site
    is_feeding = site is not None and site.function.endswith("_feed") and "multiprocessing" in site.file
    return is_feeding and picture.how[picture.requests[actor].resource][1] == "own"
