"""Pure functions of a snapshot: rings, reduction, and the two classic graphs.

A ring of resources with one holder each (locks, threads that are joined) is a deadlock by itself: every member waits for
exactly one other, so "who waits for whom" is a function, and its cycles are found by following it.  Where several could end
a wait (permits of a semaphore, whoever may notify or set), a ring proves nothing, and we *reduce* instead: take
everybody who can go on, let him release what he holds and signal whom he can, take everybody who can go on now, until
nothing changes.  Who is left can be freed by no order of releases.

Reduction assumes the best of the living: a live actor is supposed to release what it holds, and to signal any condition,
event, queue or semaphore.  So the residue is never too large, and "nobody left to signal" needs that nobody is alive at
all.  ``reached`` takes away what the living can do to objects that nothing refers to any more: still a proof.
``signals=False`` asks whether those who hold, or have signalled before, could end the waits; its answer is a suspicion.

Invariants R1 an actor in the residue waits untimed, and everybody who could end its wait is in the residue or has ended.
           R2 the residue of a larger set of live actors is a subset (monotone), so a missed edge loses, never invents.
Cost       linear in actors + edges.
Sources    Holt, Some Deadlock Properties of Computer Systems, ACM Comput. Surv. 4(3), 1972.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from concagent.errors import InvariantError
from concagent.model import AssignmentEdge, RequestEdge, Snapshot

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_WAITING = frozenset({"blocked", "agent"})  # states whose untimed request is a wait


def check_invariants(snapshot: Snapshot) -> None:
    """Check P1-P3 of ``model``.

    Raises:
        InvariantError: An edge names somebody unlisted, an actor waits twice, or a tuple is not sorted.
    """
    actors = [actor.serial for actor in snapshot.actors]
    resources = [resource.serial for resource in snapshot.resources]
    waiting = [edge.actor for edge in snapshot.requests]
    if actors != sorted(set(actors)) or resources != sorted(set(resources)):
        raise InvariantError("P3: actors or resources are not sorted by serial, or listed twice")
    if len(waiting) != len(set(waiting)):
        raise InvariantError("P2: an actor has two request edges")
    ends = {(edge.actor, edge.resource) for edge in snapshot.requests}
    ends |= {(edge.holder, edge.resource) for edge in snapshot.assignments}
    known_actors, known_resources = set(actors), set(resources)
    for actor, resource in ends:
        if actor not in known_actors or resource not in known_resources:
            raise InvariantError(f"P1: an edge names actor {actor} or resource {resource}, which is not listed")


def successors(snapshot: Snapshot) -> dict[int, int]:
    """Return waiter -> holder for every untimed wait for something that exactly one actor holds."""
    resources = {resource.serial: resource for resource in snapshot.resources}
    holders = _holders(snapshot)
    ended = {actor.serial for actor in snapshot.actors if actor.state == "ended"}
    result = {}
    for edge in snapshot.requests:
        held_by = holders.get(edge.resource, ())
        single = resources[edge.resource].has_one_holder
        if single and not edge.timed and len(held_by) == 1 and held_by[0].holder not in ended:
            result[edge.actor] = held_by[0].holder
    return result


def find_rings(snapshot: Snapshot) -> tuple[tuple[int, ...], ...]:
    """Return the cycles of waits, each as actor serials in waiting order from the smallest, sorted.

    Each actor waits for at most one other here, so cycles are disjoint and each actor is visited once.
    """
    following = successors(snapshot)
    seen: set[int] = set()
    rings = []
    for start in sorted(following):
        path: list[int] = []
        at = start
        while at in following and at not in seen:
            seen.add(at)
            path.append(at)
            at = following[at]
        if at in path:
            ring = path[path.index(at) :]
            first = ring.index(min(ring))
            rings.append(tuple(ring[first:] + ring[:first]))
    return tuple(sorted(rings))


def behind(snapshot: Snapshot, members: Iterable[int]) -> tuple[int, ...]:
    """Return the actors that wait, directly or through others, for somebody in ``members``, sorted, without them."""
    following = successors(snapshot)
    waiters: dict[int, list[int]] = defaultdict(list)
    for waiter, holder in following.items():
        waiters[holder].append(waiter)
    inside = set(members)
    found: set[int] = set()
    work = list(inside)
    while work:
        for waiter in waiters[work.pop()]:
            if waiter not in inside and waiter not in found:
                found.add(waiter)
                work.append(waiter)
    return tuple(sorted(found))


def reduce(snapshot: Snapshot, *, signals: bool = True, reached: Collection[int] | None = None) -> frozenset[int]:
    """Return the actors that no order of releases and signals can unblock.

    Args:
        snapshot: Need not be confirmed; then the answer is a suspicion.
        signals: True supposes that any live actor may signal anything and release any bare or signal-mode Lock.  False asks
            the sharper question, whether those could go on of whom we *know* that they end such waits: permits come back
            from their holders, signals from who has given them before.  Where nobody is known, anybody will do.
        reached: Serials of the resources that somebody alive, or a global, still refers to, as the reachability proof found
            them; to others no stranger can do anything.  None: not asked, all of them count as reached.

    Returns:
        Serials of the residue, empty in the good case.  Holds those stuck *behind* a ring too; see ``find_rings``.

    Raises:
        InvariantError: An edge names an unknown serial (P1).
    """
    try:
        return _Reduction(snapshot, signals, reached).run()
    except KeyError as error:
        raise InvariantError(f"P1: an edge names serial {error}, which is not listed") from error


def may_be_signal(request: RequestEdge, hold: AssignmentEdge) -> bool:
    """Return whether somebody else than the holder may be meant to release what is waited for.

    Who waits for what he holds himself, and releases both times, takes as often as he releases: one more release by
    another thread would be one too many.  In ``acquire(); start(thread); acquire(); release()`` it is just the one that
    lacks, and so it is if the last three stand in a ``try`` with the release in its ``finally``.  A function that was
    interrupted by the very code that waits is going to release, and cannot.
    """
    if request.actor == hold.holder:
        if request.interruption and hold.discipline in {"later", "finally"}:
            return False
        if hold.discipline == "later":
            return request.discipline == "bare"
        if hold.discipline == "finally":
            return request.discipline in {"bare", "later"} and _same_function(request, hold)
    return hold.discipline in {"bare", "lent", "try"}


def _same_function(request: RequestEdge, hold: AssignmentEdge) -> bool:
    there, here = request.site, hold.site
    return there is None or here is None or (there.file, there.function) == (here.file, here.function)


class _Reduction:
    """One run: a work list of actors that can go on.

    Who is not ``ended`` and has no untimed wait in the picture can go on, whatever his state says: a wait that the two
    readings did not agree on is no wait.  Our own threads release what a callback took, but they signal nobody.

    A wait is looked at again when something happens that may end it: one of its holders goes on (``left`` counts those
    that still must, where all of them must), a known signaller goes on, or the first actor at all does (``anybody``).
    """

    def __init__(self, snapshot: Snapshot, signals: bool, reached: Collection[int] | None) -> None:
        self.signals = signals
        self.reached = reached
        self.states = {actor.serial: actor.state for actor in snapshot.actors}
        self.resources = {resource.serial: resource for resource in snapshot.resources}
        self.holders = _holders(snapshot)
        self.held_by: dict[int, list[int]] = defaultdict(list)
        for holds in self.holders.values():
            for held in holds:
                self.held_by[held.holder].append(held.resource)
        self.left = {resource: len({held.holder for held in holds}) for resource, holds in self.holders.items()}
        self.signals_of: dict[int, list[int]] = defaultdict(list)
        self.known_signallers: dict[int, set[int]] = defaultdict(set)
        for signal in snapshot.signals:
            self.signals_of[signal.actor].append(signal.resource)
            self.known_signallers[signal.resource].add(signal.actor)
        self.blocked = {e.actor: e for e in snapshot.requests if not e.timed and self.states[e.actor] in _WAITING}
        self.waiters: dict[int, list[int]] = defaultdict(list)
        for request in self.blocked.values():
            self.waiters[request.resource].append(request.actor)
        self.work = [serial for serial, state in self.states.items() if state != "ended" and serial not in self.blocked]
        self.work += [edge.actor for edge in self.blocked.values() if self._ends_by_itself(edge)]
        self.freed: set[int] = set()
        self.anybody = False  # whether somebody who may signal has been freed

    def run(self) -> frozenset[int]:
        while self.work:
            actor = self.work.pop()
            if actor in self.freed:
                continue
            self.freed.add(actor)
            self.blocked.pop(actor, None)
            if not self.anybody and self.states[actor] != "agent":
                self.anybody = True
                self.work += [e.actor for e in self.blocked.values() if self._anybody_can_end(e)]
            for resource in set(self.held_by.pop(actor, ())):
                self.left[resource] -= 1
                if self.resources[resource].ends != "all-holders" or self.left[resource] == 0:
                    self.work += self.waiters.pop(resource, ())
            for resource in self.signals_of.pop(actor, ()):
                if self.resources[resource].ends != "holder" and (self.reached is None or resource in self.reached):
                    self.work += self.waiters.pop(resource, ())
        return frozenset(serial for serial in self.blocked if self.states[serial] == "blocked")

    def _ends_by_itself(self, edge: RequestEdge) -> bool:
        """A free unit, or a resource to be let go whose holder nobody knows: foreign code may hold and release it."""
        resource = self.resources[edge.resource]
        if resource.ends in {"holder", "all-holders"}:
            return edge.resource not in self.holders and not resource.signal_mode
        return bool(resource.ends == "any-holder" and resource.permits)

    def _anybody_can_end(self, edge: RequestEdge) -> bool:
        """Return whether it takes no more than one actor that goes on, whoever it is."""
        resource = self.resources[edge.resource]
        held_by = self.holders.get(edge.resource, ())
        within_reach = self.reached is None or edge.resource in self.reached
        if resource.ends in {"holder", "all-holders"}:
            bare = self.signals and any(may_be_signal(edge, hold) for hold in held_by)
            return within_reach and (resource.signal_mode or bare)
        if resource.ends == "any-holder" and held_by and (not self.signals or resource.ended_by):
            return within_reach and resource.signal_mode
        return within_reach and (self.signals or not self.known_signallers.get(edge.resource))


def _holders(snapshot: Snapshot) -> dict[int, list[AssignmentEdge]]:
    """Return resource -> its holders, of those that somebody waits for: most locks of a program are awaited by nobody."""
    awaited = {edge.resource for edge in snapshot.requests}
    holders: dict[int, list[AssignmentEdge]] = defaultdict(list)
    for edge in snapshot.assignments:
        if edge.resource in awaited:
            holders[edge.resource].append(edge)
    return holders


def resource_allocation_graph(snapshot: Snapshot) -> Any:
    """Return the RAG as ``networkx.DiGraph``: nodes are ids, with attribute ``node`` ``actor`` or ``resource``.

    Request edges run actor -> resource, assignment edges resource -> actor; ``edge`` says which, other attributes are the
    fields of the edge.
    """
    import networkx

    graph: Any = networkx.DiGraph()
    actors = {actor.serial: actor.id for actor in snapshot.actors}
    resources = {resource.serial: resource.id for resource in snapshot.resources}
    for actor in snapshot.actors:
        graph.add_node(actor.id, node="actor", name=actor.name, state=actor.state, type=actor.type)
    for resource in snapshot.resources:
        graph.add_node(resource.id, node="resource", name=resource.name, kind=resource.kind)
    for request in snapshot.requests:
        site = str(request.site) if request.site else None
        ends = actors[request.actor], resources[request.resource]
        graph.add_edge(*ends, edge="waits", timed=request.timed, since_ns=request.since_ns, site=site)
    for held in snapshot.assignments:
        site = str(held.site) if held.site else None
        graph.add_edge(resources[held.resource], actors[held.holder], edge="held-by", depth=held.depth, site=site)
    return graph


def wait_for_graph(snapshot: Snapshot) -> Any:
    """Return the WFG as ``networkx.DiGraph``: the RAG with resources contracted, actor -> actor, ``resource`` on the edge."""
    import networkx

    graph: Any = networkx.DiGraph()
    actors = {actor.serial: actor.id for actor in snapshot.actors}
    for actor in snapshot.actors:
        graph.add_node(actor.id, name=actor.name, state=actor.state, type=actor.type)
    holders = _holders(snapshot)
    for request in snapshot.requests:
        for held in holders.get(request.resource, ()):
            resource = f"r{request.resource}"
            graph.add_edge(actors[request.actor], actors[held.holder], resource=resource, timed=request.timed)
    return graph
