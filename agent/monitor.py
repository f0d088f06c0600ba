"""The agent's own thread: it asks the judge what hooks and core saw, and delivers what he finds.

Everything that takes time or may fail happens here and not on a program's thread: reading stacks, judging, writing
files.  The last member of a ring wakes us; everything else is looked at once a second.

Invariants N1 the ledger and all fields below are written by the monitor's thread only.
           N2 no lock is held while a sink runs; what may block (callbacks, logging, HTTP) is another thread's work.
           N3 a failure in one step is counted and told once; the next step and the next tick go on.
Cost       asleep in ``poll``; one look a second, O(threads) if nobody waits or holds for long.
"""

from __future__ import annotations

import _imp
import errno
import os
import select
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

from concagent import _real, core, state
from concagent.descriptors import LOST, SETTLE_NS, Pipe
from concagent.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import date

    from concagent.config import Config
    from concagent.judge import Judge
    from concagent.model import Finding, Snapshot
    from concagent.suppressions import Suppression

TICK_NS: Final = 1_000_000_000
FIRST_TICK_NS: Final = 250_000_000  # loads the judge: not before a short program has ended, long before most deadlocks
SHORTEST_TICK_NS: Final = 50_000_000
START_SECONDS: Final = 1.0  # how long install waits for the thread on a machine that is very busy
IMPORT_LOCK_SECONDS: Final = 0.02  # how long a fork by the holder of the import lock waits for the thread
_STEP_ERRORS: Final = "monitor"
_VALUES: Final = "concagent.model"  # the module of what findings consist of


class Service(Protocol):
    """Something with a file descriptor that the monitor's poll serves."""

    def fileno(self) -> int:
        """Return the descriptor to poll for input, -1 if there is none: closed, or taken away by the program."""

    def handle(self) -> None:
        """Serve what is ready; must not block."""


class Monitor(core.Listener):
    """Hears of rings, orphans and misuse, looks once a second, and keeps the ledger."""

    def __init__(
        self,
        config: Config,
        rules: Sequence[Suppression],
        today: Callable[[], date] | None = None,
        *,
        late: bool = False,
    ) -> None:
        """Take the configuration; nothing runs before ``start``.

        Args:
            config: The options in force.
            rules: The suppressions.
            today: Tells whether a suppression has expired; None for the system's date.
            late: Have no descriptors before the thread begins.
        """
        self.config = config
        self.rules = rules
        self.today = today
        self._tick_ns = _tick_ns(config)
        self.ledger = Ledger()
        self.sinks: list[tuple[str, Callable[[Finding], None]]] = []
        self.services: list[Service] = []
        self.tick_hooks: list[Callable[[int], None]] = []
        self.idents: set[int] = set()
        self.at_begin: list[Callable[[], None]] = []  # called once, when the pipe is opened late
        self._reset(late=late)

    def _reset(self, *, late: bool = False) -> None:
        self._late = late
        self._pipe = Pipe(opened=not late)
        self._lost_ns = 0  # since when the pipe is not ours any more
        self._running = False
        self._stopping = False
        self._pausing = False
        self._done = _real.allocate_lock()
        self._busy = _real.allocate_lock()
        self._held_still = False
        self.native_id = 0
        self._barriers: deque[Any] = deque()
        self._due: list[tuple[int, Any]] = []
        self._next_tick = _real.monotonic_ns() + FIRST_TICK_NS
        self._judge: Judge | None = None

    # ------------------------------------------------------------ told by the core, on the program's threads

    def ring(self, path: Sequence[tuple[Any, int, Any, Any]]) -> BaseException | None:
        """Hand a ring to the monitor's thread; under ``recover="raise"`` return the error for its last member."""
        try:
            if self.config.recover != "off":
                error = self.judge().victim_error(path)
                if error is not None:
                    self.wake()
                    return error
            records = tuple(step[0] for step in path)
            epochs = tuple(step[1] for step in path)
            state.post(state.RingEvent(records, epochs, _real.monotonic_ns()))
            self.wake()
        except Exception as error:  # noqa: BLE001 - border: the program's acquire must go on with plain semantics
            state.count_error("core", error)  # raises what is the program's own
        return None

    def orphan(self, record: Any, wait: Any, hold: Any) -> BaseException | None:  # noqa: ARG002 - the listener's signature
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

        Where threads cannot block signals, one may land in a thread that is just being born, and the interpreter does not know
        that one yet: the report signal would be lost.
        """
        if self._running:
            return
        self._open()
        self._running, self._stopping = True, False
        self._done.acquire()
        begun = _real.allocate_lock()
        begun.acquire()
        self.idents.add(_real.start_agent_thread(self._main, (begun,)))  # it is ours before it has begun
        begun.acquire(True, START_SECONDS)

    def start_late(self) -> None:
        """Start the thread, but have it wait outside of Python until there is something to do: in a fork's child.

        A twin that has no such threads starts the usual one.
        """
        if self._running:
            return
        self._begin_all()
        self._running, self._stopping = True, False
        self._done.acquire()
        until, numbers = self._to_wait_for()
        if not core.start_thread_late(self._main, tuple(numbers), until - _real.monotonic_ns()):
            self._running = False
            self._done.release()
            self.start()

    def start_without_descriptors(self, delay_ns: int) -> None:
        """Start the thread, but have it wait outside of Python, without descriptors: in a child that was executed.

        Most of these end soon, and their first descriptors are counted by some.  A twin that cannot starts the usual thread.
        """
        self._running, self._stopping = True, False
        self._done.acquire()
        if not core.start_thread_late(self._main, (), delay_ns):
            self._running = False
            self._done.release()
            self.start()

    def _open(self) -> None:
        """Have the descriptors that were left for later."""
        if self._late:
            self._late = False
            try:
                self._pipe = Pipe()
            except OSError:  # no descriptor is left: `_keep_pipe` tries again
                self._lost_ns = _real.monotonic_ns()
        self._begin_all()

    def _begin_all(self) -> None:
        begin, self.at_begin = self.at_begin, []
        for function in begin:
            self._step(lambda _, function=function: function(), None)  # type: ignore[misc]

    def wake(self) -> None:
        """Make the thread look now."""
        if self._late:
            core.hurry_late_thread()
            return
        end = self._pipe.write
        if end.is_ours():  # else the thread looks again soon, see _keep_pipe
            try:
                os.write(end.number, b"w")
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

    def hold_still(self, timeout_seconds: float = 1.0) -> bool:
        """Keep the thread from its work until ``go_on``: before a fork.  Return whether it is kept, False without a thread.

        It loads modules when it first needs them.  A child made meanwhile would have a module that is half loaded, and locked
        by a thread that does not exist there: whoever imports it in the child, ours or the program, would wait for ever.
        """
        if self._running and _real.get_ident() not in self.idents:
            if not self._busy.acquire(False):
                # What we hold the thread may wait for: with the import lock held it cannot end an import.
                patience = IMPORT_LOCK_SECONDS if _holds_import_lock() else timeout_seconds
                self._held_still = self._busy.acquire(True, patience)
            else:
                self._held_still = True
        return self._held_still

    def pause(self, timeout_seconds: float = 2.0) -> bool:
        """End the thread, which holds still, and let it do nothing before; False if it has not ended yet.

        It ends in any case, for it needs nothing but its turn: ``pause`` again, then ``start``.
        """
        self._pausing = True
        self.go_on()
        if self.stop(timeout_seconds):
            self._pausing = False
            return True
        return False

    def go_on(self) -> None:
        """Let the thread work again."""
        if self._held_still:
            self._held_still = False
            self._busy.release()

    def close(self) -> None:
        """Close the wake-up pipe, after ``stop``."""
        self._pipe.close()

    def after_fork_in_child(self) -> None:
        """Start over in a fork's child: no findings, no thread, a pipe of its own."""
        self.close()
        self.idents.clear()
        self.ledger.clear()
        self._reset()

    def _main(self, begun: Any = None) -> None:
        ident = _real.get_ident()
        self.native_id = _real.get_native_id()
        try:
            core.mark_agent_thread()
            self.idents.add(ident)
            if begun is not None:
                begun.release()
            if self._late and not self._stopping:
                self._open()
                self.wake()  # whatever was told until now
            while not self._stopping:
                ready = self._sleep()
                with self._busy:
                    if self._pausing:
                        break
                    self._step(self._serve, ready)
                    # Counted before the work: what was reported before they came is in the queue now.
                    here = len(self._barriers)
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
        until, numbers = self._to_wait_for()
        for number in numbers:
            poll.register(number, select.POLLIN)
        left_ms = max(0, (until - _real.monotonic_ns()) // 1_000_000 + 1)
        return [fd for fd, _ in poll.poll(left_ms)]

    def _to_wait_for(self) -> tuple[int, list[int]]:
        """Return (when there will be something to do, the descriptors that may have something before)."""
        until = min([self._next_tick, *(due for due, _ in self._due)])
        numbers = [service.fileno() for service in self.services]
        if self._keep_pipe():
            numbers.append(self._pipe.read.number)
        else:
            until = min(until, _real.monotonic_ns() + SHORTEST_TICK_NS)  # nobody can wake us
        return until, [number for number in numbers if number >= 0]

    def _keep_pipe(self) -> bool:
        """Return whether the pipe is ours; one that the program closed is replaced, a moment later."""
        if self._lost_ns:
            if _real.monotonic_ns() - self._lost_ns < SETTLE_NS:
                return False
            try:
                self._pipe = Pipe()
            except OSError:  # no descriptor is left: once more later
                self._lost_ns = _real.monotonic_ns()
                return False
            self._lost_ns = 0
        elif not self._pipe.is_ours():
            self._lost_ns = _real.monotonic_ns()
            self._pipe.close()
            state.count_error(_STEP_ERRORS, OSError(errno.EBADF, LOST))
            return False
        return True

    def _serve(self, ready: list[int]) -> None:
        end = self._pipe.read
        if end.number in ready and end.is_ours():
            try:
                while os.read(end.number, 4096):
                    pass
            except BlockingIOError:
                pass
        for service in list(self.services):
            number = service.fileno()
            if number >= 0 and number in ready:
                self._step(_handle, service)

    def _work(self, _argument: None) -> None:
        now_ns = _real.monotonic_ns()
        for event in state.take_events():
            self._step(self.judge().judge, event)
        due, self._due = self._due, []
        for at, event in due:
            if at <= now_ns:
                self._step(self.judge().judge_late, event)
            else:
                self._due.append((at, event))
        if now_ns >= self._next_tick:
            self._next_tick = now_ns + self._tick_ns
            self._step(self.judge().tick, now_ns)
            for hook in self.tick_hooks:
                self._step(hook, now_ns)

    def judge(self) -> Judge:
        """Return the judge, loaded on first use; any thread may ask."""
        if self._judge is None:
            from concagent.judge import Judge

            self.tick_hooks.append(_know_modules)
            self._judge = Judge(self.config, self.publish, self.look_later, self.idents)
        return self._judge

    def judge_later(self, delay_ns: int, event: Any) -> None:
        """Have the judge look at an event after a while; only before the thread is started."""
        self._due.append((_real.monotonic_ns() + delay_ns, event))

    def look_later(self, due_ns: int, event: Any) -> None:
        """Have the judge see an event again at this time (monotonic ns); the monitor's thread only."""
        self._due.append((due_ns, event))

    def check(self, timeout_seconds: float = 10.0) -> None:
        """Look now for waits that nobody can end, and return when what is found has been published."""
        state.post(state.CheckEvent())
        self.flush(timeout_seconds)

    def tell_the_end(self) -> None:
        """Have the judge say now what he was to look at later."""
        if self._running and (self._judge is not None or core.was_interrupted()):
            self._due = [(0, event) for _, event in self._due]
            state.post(state.LastLook())
            self.flush()

    def flush(self, timeout_seconds: float = 1.0) -> None:
        """Wait until everything that was reported before this call has been judged; returns at once on agent threads."""
        if not self._running or _real.get_ident() in self.idents:
            return
        if self._late and not self._due and not state.has_events():
            return  # the thread has not begun, and need not: most children end before it does
        barrier = _real.allocate_lock()
        barrier.acquire()
        self._barriers.append(barrier)
        self.wake()
        barrier.acquire(True, timeout_seconds)

    # ------------------------------------------------------------ delivering

    def publish(self, finding: Finding) -> None:
        """Dedupe, suppress, deliver; the monitor's thread only (others post the finding as an event)."""
        from datetime import date

        from concagent import suppressions

        if not finding.suppress:
            finding = finding.with_changes(suppress=suppressions.line_for(finding))
        verdict = suppressions.judge(self.rules, finding, self.today() if self.today else date.today())
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
        hide(finding)

    # ------------------------------------------------------------ for readers

    def report(self) -> tuple[Snapshot, tuple[tuple[int, ...], ...]]:
        """Return the full picture with every stack, and the rings that are deadlocks right now; any thread may ask."""
        return self.judge().report()

    def deadlocked(self) -> tuple[int, int]:
        """Return (threads in deadlocks, deadlocks) as of now."""
        return self.judge().deadlocked()

    @property
    def order_edges(self) -> int:
        """Return the number of edges in the lock-order graph."""
        return self._judge.order.edge_count if self._judge is not None else 0


def wait_until_gone(native_id: int) -> None:
    """Wait until the operating system has let go of an ended thread, at most a moment: it counts threads at a fork.

    Args:
        native_id: The thread's; 0 for none.
    """
    deadline = _real.monotonic_ns() + 500_000_000
    while native_id and os.path.exists(f"/proc/self/task/{native_id}") and _real.monotonic_ns() < deadline:
        _real.sleep(0.0002)


def _holds_import_lock() -> bool:
    """Return whether the calling thread holds the interpreter's import lock.

    Only giving it back tells whose it is.  Who holds it once, and not nested, is without it for an instant.
    """
    if not _imp.lock_held():
        return False
    try:
        _imp.release_lock()
    except RuntimeError:
        return False
    _imp.acquire_lock()
    return True


def hide(value: Any) -> None:
    """Hide a finding, which stays, from the garbage collector: it is a value, in no cycle, of a hundred parts and more.

    With them the collector's next pass would be the longer, and that may come while the next finding is urgent.
    """
    if type(value) is tuple:
        parts = value
    elif type(value).__module__ == _VALUES:
        parts = tuple(getattr(value, name) for name in type(value).__slots__)
    else:
        return
    for part in parts:
        hide(part)
    core.untracked(value)


def _know_modules(_now_ns: int) -> None:
    from concagent import naming

    naming.know_modules()


def _handle(service: Service) -> None:
    service.handle()


def _tick_ns(config: Config) -> int:
    """Return the time between two looks: a second, less only where a threshold is less."""
    thresholds = [
        int(seconds * 1e9) for seconds in (config.long_wait, config.long_hold, config.loop_blocked) if seconds > 0
    ]
    return max(SHORTEST_TICK_NS, min([TICK_NS, *(threshold // 2 for threshold in thresholds if threshold < TICK_NS)]))


__all__ = ["Monitor", "Service", "wait_until_gone"]
