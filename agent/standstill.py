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

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from concagent import _real, graph, idle, shared, whohas
from concagent.asleep import Asleep, read, words_of_the_dead
from concagent.board import is_alive
from concagent.detectors import residue as detector
from concagent.model import Actor, AssignmentEdge, CallSite, RequestEdge, Resource, Snapshot

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
_POOL: Final = os.path.join("multiprocessing", "pool.py")
_FIRM_KINDS: Final = frozenset({"mp-rlock"})
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

Process = tuple[int, int]  # pid and start time


class Picture(NamedTuple):
    """All processes that have spoken: their threads as actors, and what can end each one's wait."""

    actors: dict[int, Actor]
    requests: dict[int, RequestEdge]
    resources: dict[int, Resource]
    how: dict[int, tuple[Process, str, Any]]
    process_of: dict[int, Process]
    told: dict[Process, Asleep]


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
        picture = _join(said, number, {actor.serial: actor for actor in actors})
        waits = _Waits(board, picture, frozenset(alive), number)
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

    def _tell(self, waits: _Waits, stuck: frozenset[int], owners: Mapping[str, set[Process]]) -> None:
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


def picture_keys(picture: Picture, actors: Iterable[int]) -> frozenset[tuple[int, int]]:
    """Return (actor, epoch) of these actors' waits."""
    return frozenset((one, picture.requests[one].epoch) for one in actors)


def _old(picture: Picture, stuck: frozenset[int], now_ns: int) -> frozenset[int]:
    """Return those who have waited long enough."""
    hows = {picture.how[picture.requests[one].resource][1] for one in stuck}
    full = any(picture.resources[picture.requests[one].resource].detail == "full" for one in stuck)
    has_pool = any(picture.told[picture.process_of[one]].has_pool for one in stuck)
    patience_ns = DRAIN_NS if has_pool or (full and "child" in hows) else PATIENCE_NS
    return frozenset(one for one in stuck if now_ns - picture.requests[one].since_ns >= patience_ns)


# ---------------------------------------------------------------- one picture of all


def _join(
    said: Mapping[Process, tuple[int, Any]], number: Callable[[Process, int], int], actors: Mapping[int, Actor]
) -> Picture:
    picture = Picture({}, {}, {}, {}, {}, {})
    numbers: dict[Any, int] = {}
    for process, (_, values) in sorted(said.items()):
        told = read(values)
        if told is None:
            continue
        picture.told[process] = told
        here = {}
        for serial, kind, name, made, detail, how, what in told.resources:
            shared_by_all = how in {"ends", "lock"}
            key = (how, kind, str(what)) if shared_by_all else (process, serial)
            at = here[serial] = numbers.setdefault(key, len(numbers) + 1)
            created = CallSite(*made) if made else None
            known = picture.resources.get(at)
            picture.resources[at] = Resource(
                at,
                kind,
                name or (known.name if known is not None else None),
                created or (known.created if known is not None else None),
                ended_by="any-holder",
                detail=detail,
            )
            picture.how[at] = process, how, what
        for actor, resource, since_ns, epoch, site in told.requests:
            one = number(process, actor)
            if one not in actors:
                continue
            picture.actors[one] = replace(actors[one], state="blocked")
            picture.process_of[one] = process
            where = CallSite(*site) if site else None
            picture.requests[one] = RequestEdge(one, here[resource], since_ns, epoch, False, where)
    return picture


class _Waits:
    """Who could end each wait of a picture."""

    def __init__(
        self, board: Board, picture: Picture, alive: frozenset[int], number: Callable[[Process, int], int]
    ) -> None:
        self.board = board
        self.picture = picture
        self.alive = alive
        self.number = number
        self.asleep: dict[Process, list[int]] = {}
        for one in sorted(picture.requests):
            if one not in alive:
                self.asleep.setdefault(picture.process_of[one], []).append(one)
        self.locks = {at: self._holder(at) for at, (_, how, _) in picture.how.items() if how == "lock"}

    def _holder(self, at: int) -> tuple[int, bool] | None:
        """Return (the thread that holds a shared lock, whether it is he who gives it back); None if nobody is known to."""
        cell = self.board.find_lock(int(self.picture.how[at][2][0], 16))
        holder = self.board.holder(cell) if cell and not self.board.is_signal(cell) else None
        if holder is None or not is_alive(holder.pid, holder.start):
            return None
        firm = self.picture.resources[at].kind in _FIRM_KINDS or shared.is_firm(shared.site_of(holder.site)[0])
        return self.number((holder.pid, holder.start), holder.serial), firm

    def keys_of(self, actors: Iterable[int]) -> set[str]:
        """Return the ends that these actors wait for; none if they wait for locks only, which is a matter of rings."""
        found: set[str] = set()
        signals = False
        for one in actors:
            _, how, what = self.picture.how[self.picture.requests[one].resource]
            if how == "ends":
                found.update(what)
                signals = True
            elif how == "lock":
                found.add(what[1])
        return found if signals else set()

    def enders(self, at: int, owners: Callable[[str], Iterable[Process]]) -> set[int]:
        """Return the actors any of which can end waits for a resource; an actor that does not wait is awake."""
        process, how, what = self.picture.how[at]
        if how == "own":
            return self._of(process)
        if how == "hold":
            return {self.number(process, what)}
        if how == "child":
            child = next((one for one in self.picture.told if one[0] == what), None)
            return {self.number(child, self.picture.told[child].main)} if child is not None else {0}
        keys, found = what, set[int]()
        if how == "lock":
            holder = self.locks[at]
            if holder is None:
                return {0}
            found.add(holder[0])
            keys = [] if holder[1] else [what[1]]
        for key in keys:
            for one in owners(key):
                found |= self._of(one)
        return found or {0}

    def _of(self, process: Process) -> set[int]:
        """Return the actors that can do what a process can."""
        told = self.picture.told.get(process)
        asleep = set(self.asleep.get(process, ()))
        awake = told is None or told.awake or len(asleep) < len(told.requests)
        return asleep | {0} if awake else asleep

    def stuck(self, owners: Callable[[str], Iterable[Process]]) -> frozenset[int]:
        """Return who can be freed by nobody; actor 0 is whoever is awake."""
        waiting = {one: edge for one, edge in self.picture.requests.items() if one not in self.alive}
        blocked = {one: self.picture.actors[one] for one in waiting}
        awake = Actor(0, "process", 0, None, "whoever is awake", False, "live")
        holds = {}
        for at in {edge.resource for edge in waiting.values()}:
            for one in self.enders(at, owners):
                holder = one if one in blocked else 0
                holds[at, holder] = AssignmentEdge(at, holder, None, 1, None)
        return graph.reduce(
            self._snapshot({0: awake, **blocked}, waiting.values(), holds.values(), self.picture.resources)
        )

    def shown(self, stuck: frozenset[int], owners: Mapping[str, set[Process]]) -> Snapshot:
        """Return the picture of those who are stuck, with the edges that a person would draw.

        A signal leads to nobody in particular.  A pipe leads to the threads of the other processes that have its other end, first
        of all to those that wait for something that is held; a lock to its holder; a child to its main thread.
        """
        resources, holds = {}, {}
        busy = {one for one in stuck if self.picture.how[self.picture.requests[one].resource][1] in {"lock", "hold"}}
        for at in sorted({self.picture.requests[one].resource for one in stuck}):
            process, how, _ = self.picture.how[at]
            resource = resources[at] = self.picture.resources[at]
            waiters = {one for one in stuck if self.picture.requests[one].resource == at}
            found = self.enders(at, lambda key: owners.get(key, ())) & stuck - waiters
            if how == "own" and (resource.kind == "future" or self._is_of_pool(waiters)):
                resource = resources[at] = replace(resource, kind="future")
                found = {one for one in found if self._kind_of(one) == "pipe"}
            elif how == "own" or (how == "ends" and resource.kind != "pipe"):
                found = set()
            elif how == "ends":
                others = {one for one in found if self.picture.process_of[one] != process}
                found = others & busy or {one for one in others if self._kind_of(one) != "mp-queue"} or others
            if found and not (how == "ends" and resource.kind == "pipe"):
                one_holder = how in {"lock", "hold", "child"}
                resources[at] = replace(resource, ended_by=None if one_holder else "any-holder")
            elif not found:
                resources[at] = replace(resource, ended_by="signal")
            for one in found:
                holds[at, one] = self._hold(at, one)
        actors = {one: self.picture.actors[one] for one in stuck}
        requests = [self.picture.requests[one] for one in stuck]
        return self._snapshot(actors, requests, holds.values(), resources)

    def _is_of_pool(self, waiters: Iterable[int]) -> bool:
        """Return whether these wait for a result of a pool of multiprocessing."""
        sites = [self.picture.requests[one].site for one in waiters]
        return any(s is not None and s.file.endswith(_POOL) and "_handle" not in s.function for s in sites)

    def _kind_of(self, actor: int) -> str:
        return self.picture.resources[self.picture.requests[actor].resource].kind

    def _hold(self, at: int, one: int) -> AssignmentEdge:
        if self.picture.how[at][1] == "lock":
            cell = self.board.find_lock(int(self.picture.how[at][2][0], 16))
            holder = self.board.holder(cell) if cell else None
            if holder is not None:
                return AssignmentEdge(at, one, holder.since_ns, 1, shared.site_of(holder.site)[1])
        return AssignmentEdge(at, one, None, 1, None)

    def _snapshot(
        self,
        actors: Mapping[int, Actor],
        requests: Iterable[RequestEdge],
        holds: Iterable[AssignmentEdge],
        resources: Mapping[int, Resource],
    ) -> Snapshot:
        return Snapshot(
            pid=shared.me()[0],
            monotonic_ns=_real.monotonic_ns(),
            wall_seconds=_real.wall_seconds(),
            actors=tuple(actors[one] for one in sorted(actors)),
            resources=tuple(resources[at] for at in sorted(resources)),
            requests=tuple(sorted(requests, key=lambda edge: edge.actor)),
            assignments=tuple(sorted(holds, key=lambda edge: (edge.resource, edge.holder))),
        )


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
