"""Judges what was seen: turns events and pictures into findings, on the monitor's thread.

A ring is judged the moment it closes, because its last member wakes the monitor; waits that no walk can decide (semaphores,
conditions, joins of threads that wait for such) are looked at once a second, and a residue counts only when the same
actors were in the same waits (epochs) one tick earlier.

What a signal handler may do to the main thread, it may do at any moment; so while the program has handlers of its own,
a main thread that waits counts as alive.  Native threads that Python does not know may call in and signal anything; so
while there are some, nobody is taken to be the last one.  The threads of a deadlock that was reported count as alive, too,
when the rest is judged: whoever waits for what they would have done is a consequence, and no second defect.

This module and what it imports are loaded by the monitor's thread when there is first something to judge: a program that
ends within a second, and has no deadlock, does not pay for them.

Invariants J1 all fields are written by the monitor's thread; `report`, `deadlocked` and `victim_error` only read.
           J2 a wait is told once, and once more when what was suspected is proven; see ``told``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from concagent import _real, contexts, core, forks, graph, orphans, recovery, snapshots, state, suppressions
from concagent.detectors import context, deadlock, forked, misuse, slow
from concagent.errors import DeadlockError
from concagent.lockorder import LockOrderGraph
from concagent.model import serial_of
from concagent.orphans import Orphans, habit_of
from concagent.stalls import CONFIRM_NS, ResidueLook, Stalls, epochs_of, has_signal_handlers, with_handlers
from concagent.told import Told

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from concagent.config import Config
    from concagent.model import Finding, Snapshot

QUIET_NS: Final = 5_000_000_000  # between two looks at a program in which nothing changes
_CANCEL_DOUBT: Final = "one of these tasks may be cancelled by somebody who knows it, though nobody has so far"

_FILE_DOUBT: Final = "a live thread could still unlock or close the locked file, though none has"


class _SecondLook(NamedTuple):
    """A ring through this actor's wait is to be judged again."""

    serial: int
    epoch: int


class Judge:
    """The judgements of one process."""

    def __init__(
        self,
        config: Config,
        publish: Callable[[Finding], None],
        look_later: Callable[[int, Any], None],
        agent_idents: set[int],
    ) -> None:
        """Keep what is needed to speak and to come back.

        Args:
            config: The options in force.
            publish: Takes each finding.
            look_later: Takes (monotonic ns, event); the event comes back to `judge_late` then.
            agent_idents: OS thread ids of the agent's own threads; the monitor keeps it up to date.
        """
        self.config = config
        self.order = LockOrderGraph()
        self._contexts = contexts.Contexts()
        self._publish = publish
        self._look_later = look_later
        self._agent_idents = agent_idents
        self._pending: set[tuple[int, int]] = set()
        self._told_rings: set[tuple[int, int]] = set()  # proven ones
        self._told_waits = Told()
        self._told_long: set[tuple[int, int]] = set()
        self._told_holds: set[tuple[int, int]] = set()
        self._seen: Any = None
        self._look_ns = 0
        self._stalls = Stalls(config, publish, look_later, self._told_waits, self._told_rings)
        self._orphans = Orphans(config, publish, self._told_waits, agent_idents)

    # ------------------------------------------------------------ on a victim's thread

    def victim_error(self, path: Sequence[tuple[Any, int, Any, Any]]) -> DeadlockError | None:
        """Return the error for the last member of a ring, None if the ring is not proven at this moment.

        The finding is posted, so that the monitor's thread delivers it.
        """
        ring = tuple(step[0].serial for step in path)
        victim = recovery.choose_victim(self.config.recover, ring, proven=self._is_closed(path))
        if victim is None:
            return None
        picture = snapshots.take(only=frozenset(ring), stacks=True, stack_limit=self.config.stack_depth)
        finding = _finished(deadlock.ring_finding(picture, ring, victim=victim))
        state.post(finding)
        return _error_of(finding)

    def _is_closed(self, path: Sequence[tuple[Any, int, Any, Any]]) -> bool:
        serials = frozenset(step[0].serial for step in path)
        picture = snapshots.take(only=serials, named=False)
        ring = tuple(step[0].serial for step in path)
        if len({edge.actor for edge in picture.requests}) < len(ring):
            return False
        if deadlock.ring_is_closed(picture, ring):
            return True
        return self._nobody_else(serials) and deadlock.nobody_is_left(picture, ring)

    def _nobody_else(self, serials: frozenset[int]) -> bool:
        """Return whether all threads of the process are in the ring or ours, so that the small picture is the whole one."""
        idents = {record.ident for record in core.records() if record.serial in serials} | self._agent_idents
        return set(_real.current_frames()) <= idents and not has_signal_handlers()

    # ------------------------------------------------------------ on the monitor's thread

    def judge(self, event: Any) -> None:
        """Judge an event that was posted."""
        if isinstance(event, state.RingEvent):
            self._judge_ring(event.records[0].serial, event.epochs[0])
        elif isinstance(event, state.LastLook):
            self._foretell(last=True)
        elif isinstance(event, state.OrphanEvent):
            for patience_ns in (orphans.GRACE_NS, orphans.HAND_OVER_NS):
                self._look_later(event.time_ns + patience_ns, event)
        elif isinstance(event, state.MisuseEvent):
            if event.detail == "exit-held":
                habit = habit_of(event.cell, event.hold)
                grace_ns = orphans.GRACE_NS if habit in {"finally", "later"} else orphans.HAND_OVER_NS
                patience_ns = 0 if habit == "owned" else grace_ns
                if habit != "try":  # a flag that was raised stays up
                    self._look_later(event.time_ns + patience_ns, event)
            elif event.detail == "destroy-held" and habit_of(event.cell, event.hold) == "try":
                return  # ``if not self._closed.acquire(False): return``
            else:
                self._publish_misuse(event)
        elif isinstance(event, state.CheckEvent):
            self._stalls.check()
        elif isinstance(event, state.CallEvent):
            event.function()
        else:
            self._publish(event)  # a finding that somebody else has made

    def judge_late(self, event: Any) -> None:
        """Judge an event whose time has come."""
        if isinstance(event, state.MisuseEvent):
            if event.cell.hold is not event.hold or event.cell.cls.signal:
                return  # handed over after all
            habit = habit_of(event.cell, event.hold)
            if habit == "lent" or (habit == "bare" and self._orphans.may_somebody_release(())):
                return  # whoever waits for it will be told of
            self._publish_misuse(event)
        elif isinstance(event, state.ForkEvent):
            self._judge_fork(event.fork)
            return
        elif isinstance(event, state.CallEvent):
            event.function()
            return
        elif isinstance(event, _SecondLook):
            self._judge_ring(event.serial, event.epoch, again=True)
            return
        elif isinstance(event, ResidueLook):
            self._stalls.look_again(event)
            return
        self._orphans.look()

    def _publish_misuse(self, event: state.MisuseEvent) -> None:
        picture = snapshots.of_event(event)
        self._publish(misuse.misuse_finding(picture, event.detail, event.cell.serial, event.record.serial))

    def _judge_fork(self, fork: forks.Fork) -> None:
        """Report, in the child, what threads of the parent hold still and nobody waits for yet: who waits gets a deadlock."""
        waited_for = {edge.resource for edge in snapshots.take(named=False).requests}
        lasting = [each for each in fork.holds if each.lasts() and each.is_mutex()]
        lasting = [each for each in lasting if each.cell.serial not in waited_for]
        if lasting:
            finding = forked.hazard_finding(snapshots.of_fork(fork, lasting), fork.record.serial)
            if forks.is_first(finding.fingerprint):
                self._publish(finding)

    def _judge_ring(self, serial: int, epoch: int, *, again: bool = False) -> None:
        """Report the ring through an actor, if it still is in the same wait and the ring is proven; else look again.

        A ring that is proven only because nobody else is alive must be so twice: a thread that is just being started
        or a finalizer that is about to run shows in no single picture.
        """
        picture = snapshots.take(named=False)
        if epochs_of(picture).get(serial) != epoch:
            self._pending.discard((serial, epoch))
            return
        ring = next((ring for ring in graph.find_rings(picture) if serial in ring), None)
        if ring is None:
            self._pending.discard((serial, epoch))
        elif deadlock.ring_is_closed(picture, ring):
            self._pending.discard((serial, epoch))
            self._publish_ring(ring, picture)
        elif deadlock.nobody_is_left(with_handlers(picture), ring):
            self._pending.discard((serial, epoch))
            if again:
                self._publish_ring(ring, picture)
            else:
                self._look_later(picture.monotonic_ns + CONFIRM_NS, _SecondLook(serial, epoch))
        else:
            self._pending.add((serial, epoch))
            self._suspect_ring(picture, ring)

    def _suspect_ring(self, picture: Snapshot, ring: tuple[int, ...]) -> None:
        """Report a ring of locks that somebody outside might break but for a long time has not."""
        requests = [edge for edge in picture.requests if edge.actor in ring]
        kinds = {resource.serial: resource.kind for resource in picture.resources}
        young = not self._stalls.are_old(picture, ring)
        if any(kinds[edge.resource] == "file-lock" for edge in requests):
            if not young:
                self._publish_ring(ring, picture, doubt=_FILE_DOUBT)
        elif len(ring) > 1 and not young and all(kinds[edge.resource] in {"lock", "rlock"} for edge in requests):
            self._publish_ring(
                ring, picture, doubt="one of these locks may be a signal that a thread outside of the ring gives"
            )

    def _publish_ring(self, ring: tuple[int, ...], judged: Snapshot, *, doubt: str | None = None) -> None:
        wanted = frozenset(ring) | frozenset(graph.behind(judged, ring)[:50])
        picture = snapshots.take(stacks=wanted, stack_limit=self.config.stack_depth)
        if any(serial not in {edge.actor for edge in picture.requests} for serial in ring):
            return  # somebody was freed in between
        epochs = epochs_of(picture)
        keys = {(serial, epochs[serial]) for serial in ring}
        if self._told_waits.covers(keys, proven=doubt is None):
            return
        keys |= {(serial, epochs[serial]) for serial in graph.behind(picture, ring)}
        self._told_waits.add(keys, proven=doubt is None)
        if doubt is None:
            self._told_rings |= keys
        wait = self._late_victim(ring, epochs) if doubt is None else None
        victim = wait[0] if wait is not None else None
        finding = _finished(deadlock.ring_finding(picture, ring, doubt=doubt, victim=victim))
        self._publish(finding)
        if wait is not None:
            core.wake_victim(wait[1], _error_of(finding))

    def _late_victim(self, ring: tuple[int, ...], epochs: dict[int, int]) -> tuple[int, Any] | None:
        """Return (serial, wait) of the last one to wait among those that can be woken; None without a policy.

        A ring comes here if it was not yet proven when it closed; its members are all asleep by now.
        """
        if recovery.choose_victim(self.config.recover, ring, proven=True) is None:
            return None
        waits = [
            (record.serial, record.waiting())
            for record in core.records()
            if record.serial in ring and record.epoch == epochs[record.serial]
        ]
        asleep = [(serial, wait) for serial, wait in waits if wait is not None and wait.can_be_woken]
        return max(asleep, key=lambda pair: pair[1].since_ns, default=None)

    def tick(self, now_ns: int) -> None:
        """Look at everybody who waits; called once a second."""
        core.tick()
        self._foretell()
        records = core.records()
        at_work = state.sources_have_work()
        if not at_work and not any(record.waits and not record.agent for record in records):
            self._forget_told(frozenset())
            return
        state_of_things = _state_of_things(records)
        if state_of_things == self._seen and now_ns < self._look_ns and not at_work and not self._pending:
            return
        self._seen = state_of_things
        picture = with_handlers(snapshots.take())
        self._look_ns = self._next_threshold(picture, now_ns)
        self._forget_told(frozenset((edge.actor, edge.epoch) for edge in picture.requests))
        for serial, epoch in list(self._pending):
            self._judge_ring(serial, epoch)
        self._look_at_task_rings(picture)
        self._stalls.look(picture, now_ns)
        self._look_for_slow(picture)
        if any(actor.state == "ended" for actor in picture.actors):
            self._orphans.look()

    def _look_at_task_rings(self, picture: Snapshot) -> None:
        """Report rings with tasks: no walk finds them, since a task that begins to wait does not tell us."""
        futures = {resource.serial for resource in picture.resources if resource.kind == "future"}
        for ring in graph.find_rings(picture):
            with_tasks = max(ring) > state.ACTOR_SERIALS or any(
                edge.resource in futures for edge in picture.requests if edge.actor in ring
            )
            if with_tasks and deadlock.ring_is_closed(picture, ring):
                self._publish_ring(ring, picture)
            elif with_tasks and self._stalls.are_old(picture, ring):
                self._publish_ring(ring, picture, doubt=_CANCEL_DOUBT)

    def _next_threshold(self, picture: Snapshot, now_ns: int) -> int:
        """Return when a picture in which nothing changes would be judged differently, `QUIET_NS` from now at the latest."""
        config = self.config
        waits = [
            edge.since_ns + int(limit * 1e9)
            for edge in picture.requests
            for limit in (config.long_wait, config.stall_after)
        ]
        holds = [edge.since_ns + int(config.long_hold * 1e9) for edge in picture.assignments if edge.since_ns]
        return min([now_ns + QUIET_NS, *(due for due in (*waits, *holds) if due > now_ns)])

    def _look_for_slow(self, picture: Snapshot) -> None:
        config = self.config
        if config.long_wait:
            skip = self._told_long.union(self._told_waits.of(proven=False))
            found = slow.long_waits(picture, int(config.long_wait * 1e9), skip)
            self._publish_slow(found, self._told_long)
        if config.long_hold:
            found = slow.long_holds(picture, int(config.long_hold * 1e9), self._told_holds)
            self._publish_slow(found, self._told_holds)

    def _publish_slow(self, found: list[tuple[tuple[int, int], Finding]], told: set[tuple[int, int]]) -> None:
        if not found:
            return
        wanted = frozenset(serial_of(a.id) for _, finding in found for a in finding.actors)
        stacks = {a.id: a.stack for a in snapshots.take(stacks=wanted, stack_limit=self.config.stack_depth).actors}
        for key, finding in found:
            told.add(key)
            actors = tuple(_with_stack(actor, stacks.get(actor.id, ())) for actor in finding.actors)
            self._publish(finding.with_changes(actors=actors))

    def _forget_told(self, waiting: frozenset[tuple[int, int]]) -> None:
        """Drop what concerns waits that are over, so that these sets stay as small as the number of blocked threads."""
        self._told_waits.forget(waiting)
        self._orphans.forget(waiting)
        for told in (self._told_rings, self._told_long, self._pending):
            if len(told) > 256:
                told &= waiting
        if len(self._told_holds) > 4096:
            self._told_holds.clear()

    def _drain_order(self) -> None:
        for held, inner, code, lasti, thread, blocking in core.drain_order():
            self.order.add(held, inner, snapshots.call_site(code, lasti), thread, blocking)

    def is_told(self, serial: int, epoch: int) -> bool:
        """Return whether a finding speaks of this wait already; the monitor's thread only."""
        return (serial, epoch) in self._told_waits

    def _foretell(self, *, last: bool = False) -> None:
        """Report what has not happened in this run, and can."""
        self._drain_order()
        self._contexts.add(core.drain_uses())
        for hazard in self._contexts.hazards(self.order, last=last):
            self._publish(_context_finding(hazard, self.config.stack_depth))

    # ------------------------------------------------------------ for readers, on any thread

    def report(self) -> tuple[Snapshot, tuple[tuple[int, ...], ...]]:
        """Return the full picture with every stack, and the rings that are deadlocks right now; any thread may ask."""
        picture = snapshots.take(stacks=True, stack_limit=self.config.stack_depth)
        judged = with_handlers(picture)
        rings = tuple(ring for ring in graph.find_rings(picture) if deadlock.is_proven(judged, ring))
        return picture, rings

    def deadlocked(self) -> tuple[int, int]:
        """Return (threads in deadlocks, deadlocks) as of now: proven rings, and reported waits that still last."""
        picture = snapshots.take(named=False)
        judged = with_handlers(picture)
        rings = [ring for ring in graph.find_rings(picture) if deadlock.is_proven(judged, ring)]
        in_rings = {serial for ring in rings for serial in ring}
        return len(in_rings), len(rings)


def _state_of_things(records: Sequence[Any]) -> tuple[tuple[Any, ...], int]:
    """Return what is equal at two moments only if nobody has begun or ended a wait, or lived or died, between them."""
    waits = tuple((record.serial, record.epoch, record.ended) for record in records)
    return waits, len(_real.current_frames())


def _context_finding(hazard: contexts.Hazard, limit: int) -> Finding:
    names = {cls.serial: cls.name or str(snapshots.call_site(cls.code, cls.lasti)) for cls in core.classes()}
    path = tuple(context.Step(names[edge.outer], names[edge.inner], edge.site) for edge in hazard.path)
    interruption, ordinary = (_side(use, limit) for use in (hazard.interruption, hazard.ordinary))
    return context.context_finding(
        interruption, contexts.WORDS[hazard.interruption.kind], ordinary, path, state.pid, _real.wall_seconds()
    )


def _side(use: contexts.Use, limit: int) -> context.Side:
    return context.Side(
        snapshots.describe_resource(use.cell),
        snapshots.call_site(*use.site),
        snapshots.resolve_stack(use.stack[:limit]),
    )


def _finished(finding: Finding) -> Finding:
    return finding.with_changes(suppress=suppressions.line_for(finding)) if not finding.suppress else finding


def _error_of(finding: Finding) -> DeadlockError:
    return DeadlockError(f"{finding.title} (finding {finding.id})", finding)


def _with_stack(actor: Any, stack: Any) -> Any:
    return replace(actor, stack=stack) if stack else actor
