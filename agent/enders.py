"""One picture of the threads of all processes that are asleep, and who could end each one's wait.

It is made from what the processes say (``asleep``), the board, which knows who holds a shared lock, and whoever tells who
has the ends of pipes and semaphores.  Somebody who is awake is one actor, 0, whoever it is: he can end what his process can.

Never      too small a residue: what is not known can be ended by somebody who is awake.
Cost       linear in waits and their ends, but for an end that many share: as many edges as they have threads.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from concagent import _real, graph, shared
from concagent.asleep import read
from concagent.board import is_alive
from concagent.model import Actor, AssignmentEdge, CallSite, RequestEdge, Resource, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from concagent.asleep import Asleep
    from concagent.board import Board

_POOL: Final = os.path.join("multiprocessing", "pool.py")
_FIRM_KINDS: Final = frozenset({"mp-rlock"})

Process = tuple[int, int]  # pid and start time


class Picture(NamedTuple):
    """All processes that have spoken: their threads as actors, and what can end each one's wait."""

    actors: dict[int, Actor]
    requests: dict[int, RequestEdge]
    resources: dict[int, Resource]
    how: dict[int, tuple[Process, str, Any]]
    process_of: dict[int, Process]
    told: dict[Process, Asleep]


def picture_keys(picture: Picture, actors: Iterable[int]) -> frozenset[tuple[int, int]]:
    """Return (actor, epoch) of these actors' waits."""
    return frozenset((one, picture.requests[one].epoch) for one in actors)


def join(
    said: Mapping[Process, tuple[int, Any]], number: Callable[[Process, int], int], actors: Mapping[int, Actor]
) -> Picture:
    """Return one picture of what the processes say.

    Args:
        said: Process -> when it spoke (ns), and what it said, as of `asleep.say`.
        number: Makes the serial of an actor in the picture of all of them.
        actors: Serial -> actor of that picture, with the stacks; who is not there is left out.
    """
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


class Waits:
    """Who could end each wait of a picture."""

    def __init__(
        self, board: Board, picture: Picture, alive: frozenset[int], number: Callable[[Process, int], int]
    ) -> None:
        """Look up who holds the shared locks; who is in ``alive`` counts as awake."""
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
