"""From the monitor to whoever wants to know, without waiting for them.

A finding is told while the program is in trouble, to code that is part of the program: a callback may take a lock of
the very deadlock it is told about, a logging handler may be held by one of the blocked threads, an alert server may
hang.  Each of them is entitled to hang for ever, and none may take the monitor or another target with it.  So each
target has a lane of its own: a bounded queue, and a thread that exists only while something is in it.

A lane's thread is not known to ``threading``, and it ends when its queue is empty.  An idle agent therefore has no
thread here at all: nothing to stop before a fork, nothing that is seen at exit.  Whether a lane has a thread is one
bit, the ``token``, an original lock that ``put`` only ever *tries*: whoever gets it starts the thread, which gives it
back at its end.

    put:     append; token free?  take it, start the thread
    thread:  deliver until empty; release the token; not empty again and token free?  take it, go on

An item that is appended while the token is taken is seen by the thread, which looks again after giving the token
back; so none is left lying.  No other lock exists here, hence ``put`` may be called from anywhere: by two threads at
once, in a finalizer, in a signal handler that interrupts another ``put``.

When a queue is full the *newest* finding is dropped and counted.  What came first is nearest to the cause; what comes
after 256 others that nobody has read is most likely their consequence, and it is in the findings file all the same.

Assumes    list.append, deque.append and deque.popleft are atomic (GIL, or per-object locks without it).
Invariants D1 a lane has at most one thread, and exactly one while its token is taken by it.
           D2 each target sees findings one at a time, in the order of ``put``.
           D3 only who has the token takes from the queue.
           D4 a callback that raised is not called again; a sink is, since a server that is down will be up again.
Limits     a target that hangs keeps its thread, and its queue fills up and drops.  Where no thread can be started, only
           ``drain`` delivers, in the caller's thread, and cannot interrupt a target at the deadline.
Cost       put: O(targets); starting a thread if the lane is idle, about 50 microseconds.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Final

from concagent import _real

if TYPE_CHECKING:
    from collections.abc import Callable

    from concagent.model import Finding

    Target = Callable[[Finding], object]


CAPACITY: Final = 256
CALLBACK: Final = "callback"


class _Lane:
    """What a target has waiting, and whether a thread is at it."""

    __slots__ = ("queue", "token", "worker")

    def __init__(self) -> None:
        self.queue: deque[Finding] = deque()
        self.token = _real.allocate_lock()
        self.worker: int | None = None


class _Subscriber:
    """A target with its lane; compared by identity, never by what the user's callable thinks is equal."""

    __slots__ = ("active", "call", "lane", "lasting", "name")

    def __init__(self, name: str, call: Target, *, lasting: bool) -> None:
        self.name = name
        self.call = call
        self.lasting = lasting
        self.active = True
        self.lane = _Lane()


class Delivery:
    """Hands findings to targets that may block, raise or hang.  All methods are thread-safe; only ``drain`` waits."""

    def __init__(
        self,
        on_thread: Callable[[], None],
        count_drop: Callable[[str], None],
        count_error: Callable[[str, BaseException], None],
        capacity: int = CAPACITY,
    ) -> None:
        """Start nothing yet.

        Args:
            on_thread: Called first in each thread that is started here, to mark it as the agent's own.
            count_drop: Called with the target's name for each finding that found the queue full.
            count_error: Called with the target's name and the exception for each delivery that failed.
            capacity: How many findings may wait for one target.
        """
        self._on_thread = on_thread
        self._count_drop = count_drop
        self._count_error = count_error
        self._capacity = capacity
        self._subscribers: list[_Subscriber] = []

    def add_callback(self, callback: Target) -> None:
        """Call the user's function with each finding from now on, until it raises or is removed.

        Its name in counters is ``callback``: the names are labels of a metric, and come from a closed set.
        """
        self._subscribers.append(_Subscriber(CALLBACK, callback, lasting=False))

    def remove_callback(self, callback: Target) -> bool:
        """Forget a callback, the one added first if it was added twice; return whether there was one.

        A call that is under way is not interrupted; findings that wait for it are not delivered any more.
        """
        for subscriber in tuple(self._subscribers):
            # Equal, not identical: ``self.method`` is a new object each time it is looked up.
            if not subscriber.lasting and subscriber.call == callback and self._remove(subscriber):
                return True
        return False

    def add_sink(self, name: str, sink: Target) -> None:
        """Call one of our exporters with each finding from now on; failures are counted, and it stays.

        Args:
            name: Its name in counters, such as ``log`` or ``webhook``.
            sink: May block and raise.
        """
        self._subscribers.append(_Subscriber(name, sink, lasting=True))

    def put(self, finding: Finding) -> None:
        """Queue the finding for every target and return at once; where a queue is full, drop it and count."""
        for subscriber in tuple(self._subscribers):
            lane = subscriber.lane
            if len(lane.queue) >= self._capacity:
                self._tell_drop(subscriber.name)
            else:
                lane.queue.append(finding)
                self._start_if_idle(subscriber, lane)

    def drain(self, timeout_seconds: float) -> bool:
        """Wait until everything is delivered, at most so long; return whether it is.

        Called by a target itself, it does not wait for that target, which would be for ever.  Where no thread can be
        started any more (some Pythons start none at exit), the caller's thread delivers.
        """
        deadline_ns = _real.monotonic_ns() + int(max(0.0, timeout_seconds) * 1e9)
        done = True
        for subscriber in tuple(self._subscribers):
            # The deadline is common: once it is over, the lanes behind a stuck one are only asked, not waited for.
            done = self._wait_until_idle(subscriber, deadline_ns) and done
        return done

    def after_fork_in_child(self) -> None:
        """Begin anew in a forked child: targets stay; what was queued is the parent's to deliver; threads are gone."""
        for subscriber in tuple(self._subscribers):
            subscriber.lane = _Lane()

    def _start_if_idle(self, subscriber: _Subscriber, lane: _Lane) -> None:
        """Give the lane a thread if it has none."""
        if lane.token.acquire(False):
            error = self._start_thread(subscriber, lane)
            if error is not None:
                # The finding stays: the next put tries again, and drain does without a thread.
                lane.token.release()
                self._tell_error(subscriber.name, error)

    def _start_thread(self, subscriber: _Subscriber, lane: _Lane) -> RuntimeError | None:
        """Start the thread that takes over the token, which the caller has; return why it cannot be started."""
        try:
            _real.start_agent_thread(self._work, (subscriber, lane))
        except RuntimeError as error:  # no more threads, or the interpreter is shutting down
            return error
        return None

    def _work(self, subscriber: _Subscriber, lane: _Lane) -> None:
        """Deliver until the lane is empty: the life of a lane's thread."""
        try:
            self._on_thread()
        except Exception as error:  # noqa: BLE001 - border: an unmarked thread still delivers
            self._tell_error(subscriber.name, error)
        while True:
            lane.worker = _real.get_ident()
            while lane.queue:
                self._deliver(subscriber, lane, lane.queue.popleft())
            _forget_dummy_thread()
            lane.worker = None
            lane.token.release()
            if not lane.queue or not lane.token.acquire(False):
                return

    def _deliver(self, subscriber: _Subscriber, lane: _Lane, finding: Finding) -> None:
        """Call the target once; none of our locks is waited for meanwhile by anybody but ``drain``."""
        # After a fork inside the target, we are in the child with the parent's lane: not ours to deliver.
        if not subscriber.active or subscriber.lane is not lane:
            return
        try:
            subscriber.call(finding)
        except BaseException as error:  # noqa: BLE001 - border: a sys.exit() in a callback must not end the lane
            if not subscriber.lasting:
                subscriber.active = False
            self._tell_error(subscriber.name, error)  # before it is removed, so that the program's end waits for that
            if not subscriber.lasting:
                self._remove(subscriber)

    def _remove(self, subscriber: _Subscriber) -> bool:
        """Take a subscriber out; return False if somebody else was faster."""
        subscriber.active = False
        try:
            self._subscribers.remove(subscriber)
        except ValueError:
            return False
        return True

    def _wait_until_idle(self, subscriber: _Subscriber, deadline_ns: int) -> bool:
        """Wait until the lane has neither findings nor a thread; return False at the deadline."""
        lane = subscriber.lane
        if lane.worker == _real.get_ident():
            return False
        while True:
            left_seconds = max(0, deadline_ns - _real.monotonic_ns()) / 1e9
            if not lane.token.acquire(True, min(left_seconds, _real.TIMEOUT_MAX)):
                return False
            if not lane.queue:
                lane.token.release()
                return True
            # A start failed earlier, or a put came while we had the token.
            if self._start_thread(subscriber, lane) is not None:
                # CPython 3.12.1 starts no thread in atexit.  What is found at exit is told by whoever drains.
                lane.worker = _real.get_ident()
                while lane.queue and _real.monotonic_ns() < deadline_ns:
                    self._deliver(subscriber, lane, lane.queue.popleft())
                done = not lane.queue
                lane.worker = None
                lane.token.release()
                return done

    def _tell_drop(self, name: str) -> None:
        """Count a dropped finding; a counter that fails must not take the monitor with it."""
        try:
            self._count_drop(name)
        except Exception as error:  # noqa: BLE001 - border: put never raises
            self._tell_error(name, error)

    def _tell_error(self, name: str, error: BaseException) -> None:
        """Count an error; if even that fails there is nobody left to tell."""
        try:
            self._count_error(name, error)
        except Exception:  # noqa: BLE001 - border: the last one
            pass


def _forget_dummy_thread() -> None:
    """Take this thread out of ``threading.enumerate()``.

    Whoever asks for ``threading.current_thread()``, as each log record does, leaves a dummy there for a thread that
    ``threading`` did not start; before Python 3.13 it stays when the thread has ended, and the program would see it.
    """
    threading._active.pop(_real.get_ident(), None)  # type: ignore[attr-defined]  # noqa: SLF001 - no public way
