"""The agent's own thread: it turns what hooks and core saw into findings, and delivers them.

Everything that takes time or may fail happens here and not on a program's thread: reading stacks, judging, writing
files.  A ring is judged the moment it closes, because its last member wakes us; waits that no walk can decide
(semaphores, conditions, joins of threads that wait for such) are looked at once a second, and a residue counts only when the same
actors were in the same waits (epochs) one tick earlier.

What a signal handler may do to the main thread, it may do at any moment; so while the program has handlers of its own,
a main thread in a wait that a handler could end counts as alive.  Native threads that Python does not know may call in
and signal anything; so while there are some, nobody is taken to be the last one.

Invariants N1 the ledger and all fields below are written by the monitor's thread only.
           N2 no lock is held while a sink runs; what may block (callbacks, logging, HTTP) is another thread's work.
           N3 a failure in one step is counted and told once; the next step and the next tick go on.
Cost       asleep in ``poll``; one look a second, O(threads) if nobody waits or holds for long.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from concagent import _real, core, graph, recovery, snapshots, state, suppressions
from concagent.detectors import deadlock, misuse, orphan, slow
from concagent.errors import DeadlockError
from concagent.ledger import Ledger
from concagent.lockorder import LockOrderGraph
from concagent.model import Report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import date

    from concagent.config import Config
    from concagent.model import Finding, Snapshot

TICK_NS: Final = 1_000_000_000
START_SECONDS: Final = 1.0  # how long install waits for the thread on a machine that is very busy
CONFIRM_NS: Final = 50_000_000  # between two looks that must agree that nobody else is left
GRACE_NS: Final = 400_000_000  # for a hand-over of a bare lock after its thread has ended
_STEP_ERRORS: Final = "monitor"


class _SecondLook(NamedTuple):
    """A ring through this actor's wait is to be judged again."""

    serial: int
    epoch: int


class Service(Protocol):
    """Something with a file descriptor that the monitor's poll serves."""

    def fileno(self) -> int:
        """Return the descriptor to poll for input."""

    def handle(self) -> None:
        """Serve what is ready; must not block."""


class Monitor(core.Listener):
    """Hears of rings, orphans and misuse, looks once a second, and keeps the ledger."""

    def __init__(
        self,
        config: Config,
        rules: Sequence[suppressions.Suppression],
        today: Callable[[], date],
    ) -> None:
        """Take the configuration; nothing runs before ``start``."""
        self.config = config
        self.rules = rules
        self.today = today
        self.ledger = Ledger()
        self.sinks: list[tuple[str, Callable[[Finding], None]]] = []
        self.services: list[Service] = []
        self.tick_hooks: list[Callable[[int], None]] = []
        self.idents: set[int] = set()
        self.order = LockOrderGraph()  # written by the monitor's thread only
        self._told_sinks: set[str] = set()
        self._reset()

    def _reset(self) -> None:
        self._wake_read, self._wake_write = os.pipe()
        for end in (self._wake_read, self._wake_write):
            os.set_blocking(end, False)
        self._running = False
        self._stopping = False
        self._done = _real.allocate_lock()
        self.native_id = 0
        self._barriers: deque[Any] = deque()
        self._due: list[tuple[int, Any]] = []
        self._next_tick = _real.monotonic_ns() + TICK_NS
        self._pending: set[tuple[int, int]] = set()
        self._last_residue: frozenset[tuple[int, int]] = frozenset()
        self._last_suspects: frozenset[tuple[int, int]] = frozenset()
        self._told_waits: set[tuple[int, int]] = set()
        self._told_long: set[tuple[int, int]] = set()
        self._told_holds: set[tuple[int, int]] = set()
        self._told_orphans: set[tuple[int, int]] = set()

    # ------------------------------------------------------------ told by the core, on the program's threads

    def ring(self, path: Sequence[tuple[Any, int, Any, Any]]) -> BaseException | None:
        """Hand a ring to the monitor's thread; under ``recover="raise"`` return the error for its last member."""
        try:
            if self.config.recover != "off":
                ring = tuple(step[0].serial for step in path)
                victim = recovery.choose_victim(self.config.recover, ring, proven=self._is_closed(path))
                if victim is not None:
                    return self._victim_error(ring, victim)
            records = tuple(step[0] for step in path)
            epochs = tuple(step[1] for step in path)
            state.post(state.RingEvent(records, epochs, _real.monotonic_ns()))
            self.wake()
        except Exception as error:  # noqa: BLE001 - border: the program's acquire must go on with plain semantics
            state.count_error("core", error)
        return None

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
        idents = {record.ident for record in core.records() if record.serial in serials} | self.idents
        return set(_real.current_frames()) <= idents and not has_signal_handlers()

    def _victim_error(self, ring: tuple[int, ...], victim: int) -> BaseException:
        picture = snapshots.take(only=frozenset(ring), stacks=True, stack_limit=self.config.stack_depth)
        finding = self._finish(deadlock.ring_finding(picture, ring, victim=victim))
        state.post(finding)
        self.wake()
        return DeadlockError(f"{finding.title} (finding {finding.id})", finding)

    def orphan(self, record: Any, wait: Any, hold: Any) -> BaseException | None:
        """Note that somebody waits for a lock of a thread that has ended."""
        state.post(state.OrphanEvent(record, record.epoch, _real.monotonic_ns()))
        self.wake()
        return None

    def misuse(self, detail: str, cell: Any, hold: Any, frame: Any) -> None:
        """Note a misuse with the stack of the moment."""
        blamed = hold[0] if detail in {"exit-held", "destroy-held"} and hold is not None else core.current_record()
        if not blamed.agent:
            state.post(state.MisuseEvent(detail, cell, blamed, hold, state.raw_stack(frame), _real.monotonic_ns()))
            self.wake()

    # ------------------------------------------------------------ the thread

    def start(self) -> None:
        """Start the thread and wait until it runs; at once a no-op if it runs.

        A process's signal may land in a thread that is just being born, and the interpreter does not know that one yet: the
        report signal would be lost.
        """
        if self._running:
            return
        self._running, self._stopping = True, False
        self._done.acquire()
        begun = _real.allocate_lock()
        begun.acquire()
        self.idents.add(_real.start_new_thread(self._main, (begun,)))  # it is ours before it has begun
        begun.acquire(True, START_SECONDS)

    def wake(self) -> None:
        """Make the thread look now."""
        try:
            os.write(self._wake_write, b"w")
        except OSError:  # the pipe is full: it is awake anyway; or closed: it is gone
            pass

    def stop(self, timeout_seconds: float = 2.0) -> bool:
        """End the thread and wait for it; False if it did not end in time.  Descriptors stay open for a restart."""
        if not self._running or _real.get_ident() in self.idents:
            return True
        self._stopping = True
        self.wake()
        ended = self._done.acquire(True, timeout_seconds)
        if ended:
            self._done.release()
            self._running = False
        return ended

    def is_running(self) -> bool:
        """Return whether the thread runs."""
        return self._running

    def wait_until_gone(self) -> None:
        """Wait until the operating system has let go of the ended thread, at most a moment: it counts threads at a fork."""
        path = f"/proc/self/task/{self.native_id}"
        deadline = _real.monotonic_ns() + 500_000_000
        while os.path.exists(path) and _real.monotonic_ns() < deadline:
            _real.sleep(0.0002)

    def close(self) -> None:
        """Close the wake-up pipe, after ``stop``."""
        for end in (self._wake_read, self._wake_write):
            try:
                os.close(end)
            except OSError:
                pass

    def after_fork_in_child(self) -> None:
        """Start over in a fork's child: no findings, no thread, a pipe of its own."""
        self.close()
        self.idents.clear()
        self.ledger.clear()
        self._reset()

    def _main(self, begun: Any) -> None:
        ident = _real.get_ident()
        self.native_id = _real.get_native_id()
        try:
            core.mark_agent_thread()
            self.idents.add(ident)
            begun.release()
            while not self._stopping:
                ready = self._sleep()
                self._step(self._serve, ready)
                here = len(self._barriers)  # before the work: what was reported before they came is in the queue now
                self._step(self._work, None)
                for _ in range(here):
                    self._barriers.popleft().release()
        finally:
            self.idents.discard(ident)
            self._done.release()

    def _step(self, step: Callable[[Any], None], argument: Any) -> None:
        try:
            step(argument)
        except Exception as error:  # noqa: BLE001 - border: the monitor's tick
            if not sys.is_finalizing():
                state.count_error(_STEP_ERRORS, error)

    def _sleep(self) -> list[int]:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        for service in self.services:
            if service.fileno() >= 0:  # -1: closed, as a listener is in a fork's child
                poll.register(service.fileno(), select.POLLIN)
        until = min([self._next_tick, *(due for due, _ in self._due)])
        left_ms = max(0, (until - _real.monotonic_ns()) // 1_000_000 + 1)
        return [fd for fd, _ in poll.poll(left_ms)]

    def _serve(self, ready: list[int]) -> None:
        if self._wake_read in ready:
            try:
                while os.read(self._wake_read, 4096):
                    pass
            except BlockingIOError:
                pass
        for service in list(self.services):
            if service.fileno() >= 0 and service.fileno() in ready:
                self._step(_handle, service)

    def _work(self, _argument: None) -> None:
        now_ns = _real.monotonic_ns()
        for event in state.take_events():
            self._step(self._judge, event)
        due, self._due = self._due, []
        for at, event in due:
            if at <= now_ns:
                self._step(self._judge_late, event)
            else:
                self._due.append((at, event))
        if now_ns >= self._next_tick:
            self._next_tick = now_ns + TICK_NS
            self._step(self._tick, now_ns)
            for hook in self.tick_hooks:
                self._step(hook, now_ns)

    def flush(self, timeout_seconds: float = 1.0) -> None:
        """Wait until everything that was reported before this call has been judged; returns at once on agent threads."""
        if not self._running or _real.get_ident() in self.idents:
            return
        barrier = _real.allocate_lock()
        barrier.acquire()
        self._barriers.append(barrier)
        self.wake()
        barrier.acquire(True, timeout_seconds)

    # ------------------------------------------------------------ judging

    def _judge(self, event: Any) -> None:
        if isinstance(event, state.RingEvent):
            self._judge_ring(event.records[0].serial, event.epochs[0])
        elif isinstance(event, state.OrphanEvent):
            self._due.append((event.time_ns + GRACE_NS, event))
        elif isinstance(event, state.MisuseEvent):
            if event.detail == "exit-held":
                self._due.append((event.time_ns + (GRACE_NS if event.cell.kind == "lock" else 0), event))
            else:
                self._publish_misuse(event)
        else:
            self.publish(event)  # a finding that somebody else has made

    def _judge_late(self, event: Any) -> None:
        if isinstance(event, state.MisuseEvent):
            if event.cell.hold is not event.hold or event.cell.cls.signal:
                return  # handed over after all
            self._publish_misuse(event)
        elif isinstance(event, _SecondLook):
            self._judge_ring(event.serial, event.epoch, again=True)
            return
        self._look_for_orphans()

    def _publish_misuse(self, event: state.MisuseEvent) -> None:
        picture = snapshots.of_event(event)
        self.publish(misuse.misuse_finding(picture, event.detail, event.cell.serial, event.record.serial))

    def _judge_ring(self, serial: int, epoch: int, *, again: bool = False) -> None:
        """Report the ring through an actor, if it still is in the same wait and the ring is proven; else look again.

        A ring that is proven only because nobody else is alive must be so twice: a thread that is just being started
        or a finalizer that is about to run shows in no single picture.
        """
        picture = snapshots.take(named=False)
        if _epochs(picture).get(serial) != epoch:
            self._pending.discard((serial, epoch))
            return
        ring = next((ring for ring in graph.find_rings(picture) if serial in ring), None)
        if ring is None:
            self._pending.discard((serial, epoch))
        elif deadlock.ring_is_closed(picture, ring):
            self._pending.discard((serial, epoch))
            self._publish_ring(ring, picture)
        elif deadlock.nobody_is_left(self._with_handlers(picture), ring):
            self._pending.discard((serial, epoch))
            if again:
                self._publish_ring(ring, picture)
            else:
                self._due.append((picture.monotonic_ns + CONFIRM_NS, _SecondLook(serial, epoch)))
        else:
            self._pending.add((serial, epoch))
            self._suspect_ring(picture, ring)

    def _suspect_ring(self, picture: Snapshot, ring: tuple[int, ...]) -> None:
        """Report a ring of locks that somebody outside might break but for a long time has not."""
        requests = [edge for edge in picture.requests if edge.actor in ring]
        kinds = {resource.serial: resource.kind for resource in picture.resources}
        young = picture.monotonic_ns - max(edge.since_ns for edge in requests) < self.config.stall_after * 1e9
        if len(ring) > 1 and not young and all(kinds[edge.resource] in {"lock", "rlock"} for edge in requests):
            self._publish_ring(
                ring, picture, doubt="one of these locks may be a signal that a thread outside of the ring gives"
            )

    def _publish_ring(self, ring: tuple[int, ...], judged: Snapshot, *, doubt: str | None = None) -> None:
        wanted = frozenset(ring) | frozenset(graph.behind(judged, ring)[:50])
        picture = snapshots.take(stacks=wanted, stack_limit=self.config.stack_depth)
        if any(serial not in {edge.actor for edge in picture.requests} for serial in ring):
            return  # somebody was freed in between
        epochs = _epochs(picture)
        keys = {(serial, epochs[serial]) for serial in ring}
        if keys <= self._told_waits:
            return
        self._told_waits |= keys
        self._told_waits |= {(serial, epochs[serial]) for serial in graph.behind(picture, ring)}
        self.publish(deadlock.ring_finding(picture, ring, doubt=doubt))

    def _tick(self, now_ns: int) -> None:
        self._drain_order()
        records = core.records()
        if not any(record.waits and not record.agent for record in records):
            self._forget_told(frozenset())
            return
        picture = self._with_handlers(snapshots.take())
        self._forget_told(frozenset((edge.actor, edge.epoch) for edge in picture.requests))
        for serial, epoch in list(self._pending):
            self._judge_ring(serial, epoch)
        self._look_at_residue(picture)
        self._look_at_suspects(picture, now_ns)
        self._look_for_slow(picture)
        if any(actor.state == "ended" for actor in picture.actors):
            self._look_for_orphans()

    def _with_handlers(self, picture: Snapshot) -> Snapshot:
        """Let a main thread that waits count as alive while the program has signal handlers: they run in the midst of it."""
        main = core.record_of_ident(threading.main_thread().ident)
        if main is None or not has_signal_handlers():
            return picture
        actors = tuple(
            replace(actor, state="live") if actor.serial == main.serial else actor for actor in picture.actors
        )
        return replace(picture, actors=actors)

    def _look_at_residue(self, picture: Snapshot) -> None:
        residue = graph.reduce(picture)
        epochs = _epochs(picture)
        keys = frozenset((serial, epochs[serial]) for serial in residue)
        stable = residue and keys <= self._last_residue and not picture.foreign_threads
        self._last_residue = keys
        if stable:
            self._publish_residue(residue, suspected=False)

    def _look_at_suspects(self, picture: Snapshot, now_ns: int) -> None:
        """Report cycles through semaphores whose permits are all with stuck threads, after ``stall_after`` seconds."""
        residue = graph.reduce(picture, signals=False)
        epochs = _epochs(picture)
        keys = frozenset((serial, epochs[serial]) for serial in residue)
        young = any(now_ns - e.since_ns < self.config.stall_after * 1e9 for e in picture.requests if e.actor in residue)
        stable = residue and keys <= self._last_suspects
        self._last_suspects = keys
        if stable and not young:
            self._publish_residue(residue, suspected=True)

    def _publish_residue(self, residue: frozenset[int], *, suspected: bool) -> None:
        picture = snapshots.take(stacks=residue, stack_limit=self.config.stack_depth)
        epochs = _epochs(picture)
        if not residue <= epochs.keys():
            return
        keys = {serial: (serial, epochs[serial]) for serial in residue}
        known = frozenset(serial for serial in residue if keys[serial] in self._told_waits)
        rings = frozenset(serial for ring in graph.find_rings(picture) for serial in ring)
        for finding in deadlock.residue_findings(picture, residue, known, suspected=suspected):
            self.publish(finding)
        if not suspected or rings != residue:
            self._told_waits |= set(keys.values())

    def _look_for_slow(self, picture: Snapshot) -> None:
        config = self.config
        if config.long_wait:
            skip = self._told_long | self._told_waits
            found = slow.long_waits(picture, int(config.long_wait * 1e9), skip)
            self._publish_slow(found, self._told_long)
        if config.long_hold:
            found = slow.long_holds(picture, int(config.long_hold * 1e9), self._told_holds)
            self._publish_slow(found, self._told_holds)

    def _publish_slow(self, found: list[tuple[tuple[int, int], Finding]], told: set[tuple[int, int]]) -> None:
        if not found:
            return
        wanted = frozenset(int(a.id.rpartition("t")[2]) for _, finding in found for a in finding.actors)
        stacks = {a.id: a.stack for a in snapshots.take(stacks=wanted, stack_limit=self.config.stack_depth).actors}
        for key, finding in found:
            told.add(key)
            actors = tuple(_with_stack(actor, stacks.get(actor.id, ())) for actor in finding.actors)
            self.publish(finding.with_changes(actors=actors))

    def _look_for_orphans(self) -> None:
        picture = snapshots.take()
        waiting = {edge.actor: edge for edge in picture.requests}
        fresh = frozenset(s for s, e in waiting.items() if (s, e.epoch) not in self._told_orphans)
        young = [s for s in fresh if picture.monotonic_ns - waiting[s].since_ns < GRACE_NS // 2]
        findings = orphan.orphan_findings(picture, fresh - frozenset(young))
        if not findings:
            return
        picture = snapshots.take(stacks=fresh, stack_limit=self.config.stack_depth)
        for finding in orphan.orphan_findings(picture, fresh - frozenset(young)):
            members = {int(a.id.rpartition("t")[2]) for a in finding.actors if a.role == "member"}
            keys = {(s, waiting[s].epoch) for s in members}
            self._told_orphans |= keys
            self._told_waits |= keys
            self.publish(finding)

    def _forget_told(self, waiting: frozenset[tuple[int, int]]) -> None:
        """Drop what concerns waits that are over, so that these sets stay as small as the number of blocked threads."""
        for told in (self._told_waits, self._told_long, self._told_orphans, self._pending):
            if len(told) > 256:
                told &= waiting
        if len(self._told_holds) > 4096:
            self._told_holds.clear()

    def _drain_order(self) -> None:
        for held, inner, code, lasti, thread, blocking in core.drain_order():
            self.order.add(held, inner, snapshots.call_site(code, lasti), thread, blocking)

    # ------------------------------------------------------------ delivering

    def _finish(self, finding: Finding) -> Finding:
        return finding.with_changes(suppress=suppressions.line_for(finding)) if not finding.suppress else finding

    def publish(self, finding: Finding) -> None:
        """Dedupe, suppress, deliver; the monitor's thread only (others post the finding as an event)."""
        finding = self._finish(finding)
        verdict = suppressions.judge(self.rules, finding, self.today())
        finding = verdict.apply(finding)
        if finding.suppressed:
            self.ledger.suppress(finding)
            return
        if not self.ledger.record(finding):
            return
        for _, sink in list(self.sinks):
            try:
                sink(finding)
            except Exception as error:  # noqa: BLE001 - border: a sink; the others must still be told
                state.count_error("sink", error)

    # ------------------------------------------------------------ for readers

    def report(self, trigger: str) -> tuple[Snapshot, tuple[tuple[int, ...], ...]]:
        """Return the full picture with every stack, and the rings that are deadlocks right now; any thread may ask."""
        picture = snapshots.take(stacks=True, stack_limit=self.config.stack_depth)
        judged = self._with_handlers(picture)
        rings = tuple(ring for ring in graph.find_rings(picture) if deadlock.is_proven(judged, ring))
        return picture, rings

    def deadlocked(self) -> tuple[int, int]:
        """Return (threads in deadlocks, deadlocks) as of now: proven rings, and reported waits that still last."""
        picture = snapshots.take(named=False)
        judged = self._with_handlers(picture)
        rings = [ring for ring in graph.find_rings(picture) if deadlock.is_proven(judged, ring)]
        in_rings = {serial for ring in rings for serial in ring}
        return len(in_rings), len(rings)


def _handle(service: Service) -> None:
    service.handle()


def _epochs(picture: Snapshot) -> dict[int, int]:
    return {edge.actor: edge.epoch for edge in picture.requests}


def _with_stack(actor: Any, stack: Any) -> Any:
    return replace(actor, stack=stack) if stack else actor


def has_signal_handlers() -> bool:
    """Return whether the program has Python signal handlers of its own (Ctrl-C's default one does not count)."""
    for number in signal.valid_signals():
        handler = _real.get_signal(number)
        if callable(handler) and handler is not signal.default_int_handler:
            return True
    return False


__all__ = ["Monitor", "Report", "Service", "has_signal_handlers"]
