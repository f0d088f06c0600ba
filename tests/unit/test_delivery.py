"""Delivery: nobody waits for a target, no target waits for another, and what goes wrong is counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator

import pytest

from concagent import _real
from concagent.delivery import Delivery
from concagent.model import Finding

SOON = 10.0


def finding(number: int) -> Finding:
    return Finding("deadlock", "lock", "proven", f"f{number}", f"p{number}", 1.0, 1, "a ring")


def wait_until(condition: Callable[[], object]) -> None:
    """Return once the condition holds; fail after a generous while."""
    deadline_ns = _real.monotonic_ns() + int(SOON * 1e9)
    while not condition():
        assert _real.monotonic_ns() < deadline_ns, "waited in vain"
        _real.sleep(0.001)


class Gate:
    """A target that hangs until it is opened."""

    def __init__(self) -> None:
        self.lock = _real.allocate_lock()
        self.lock.acquire()
        self.entered: list[Finding] = []
        self.left: list[Finding] = []

    def __call__(self, told: Finding) -> None:
        self.entered.append(told)
        with self.lock:
            self.left.append(told)

    def open(self) -> None:
        if self.lock.locked():
            self.lock.release()


class Counts:
    def __init__(self) -> None:
        self.threads: list[int] = []
        self.drops: list[str] = []
        self.errors: list[tuple[str, BaseException]] = []

    def on_thread(self) -> None:
        self.threads.append(_real.get_ident())

    def on_error(self, name: str, error: BaseException) -> None:
        self.errors.append((name, error))

    def delivery(self, capacity: int = 256) -> Delivery:
        return Delivery(self.on_thread, self.drops.append, self.on_error, capacity)


@pytest.fixture
def counts() -> Counts:
    return Counts()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


def test_each_target_gets_each_finding_in_order_on_a_thread_of_the_agent(counts: Counts) -> None:
    delivery = counts.delivery()
    told: dict[str, list[Finding]] = {"callback": [], "log": []}
    idents: set[int] = set()

    def callback(what: Finding) -> None:
        told["callback"].append(what)
        idents.add(_real.get_ident())

    delivery.add_callback(callback)
    delivery.add_sink("log", told["log"].append)

    for number in range(100):
        delivery.put(finding(number))

    assert delivery.drain(SOON)
    assert told["callback"] == told["log"] == [finding(number) for number in range(100)]
    assert idents <= set(counts.threads)
    assert _real.get_ident() not in idents


def test_without_targets_there_is_no_thread(counts: Counts) -> None:
    delivery = counts.delivery()

    delivery.put(finding(1))

    assert delivery.drain(0)
    assert counts.threads == []


def test_the_thread_ends_when_everything_is_delivered_and_another_one_follows(counts: Counts) -> None:
    known_threads = threading.enumerate()
    told: list[Finding] = []
    delivery = counts.delivery()

    def callback(what: Finding) -> None:
        threading.current_thread()  # registers a dummy for a thread that threading does not know, as logging does
        told.append(what)

    delivery.add_callback(callback)
    known = sys.modules["_thread"]._count()

    for number in range(3):
        delivery.put(finding(number))
        assert delivery.drain(SOON)

        wait_until(lambda: sys.modules["_thread"]._count() == known)
        assert threading.enumerate() == known_threads

    assert len(told) == 3


def test_findings_put_by_many_threads_are_all_delivered(counts: Counts) -> None:
    delivery = counts.delivery(capacity=10_000)
    told: list[str] = []
    delivery.add_callback(lambda what: told.append(what.id))
    start = threading.Barrier(8)

    def put_many(first: int) -> None:
        start.wait()
        for number in range(first, first + 200):
            delivery.put(finding(number))

    threads = [threading.Thread(target=put_many, args=(1000 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert delivery.drain(SOON)
    assert sorted(told) == sorted(f"f{1000 * n + number}" for n in range(8) for number in range(200))


def test_I19_a_hanging_callback_delays_nobody_but_itself(counts: Counts, gate: Gate) -> None:  # noqa: N802
    delivery = counts.delivery()
    told: dict[str, list[Finding]] = {"callback": [], "log": []}
    delivery.add_callback(gate)
    delivery.add_callback(told["callback"].append)
    delivery.add_sink("log", told["log"].append)

    for number in range(3):
        delivery.put(finding(number))

    wait_until(lambda: gate.entered and len(told["callback"]) == len(told["log"]) == 3)
    assert gate.entered == [finding(0)]
    assert not delivery.drain(0.01)
    gate.open()
    assert delivery.drain(SOON)
    assert gate.left == [finding(number) for number in range(3)]


def test_a_full_queue_drops_the_newest_and_counts(counts: Counts, gate: Gate) -> None:
    delivery = counts.delivery(capacity=2)
    delivery.add_sink("webhook", gate)
    delivery.put(finding(0))
    wait_until(lambda: gate.entered)

    for number in range(1, 6):
        delivery.put(finding(number))

    assert counts.drops == ["webhook"] * 3
    gate.open()
    assert delivery.drain(SOON)
    assert gate.left == [finding(0), finding(1), finding(2)]


@pytest.mark.parametrize("error", [ValueError("bad"), SystemExit(3), KeyboardInterrupt()])
def test_I20_a_raising_callback_is_removed_and_counted_and_the_others_go_on(  # noqa: N802
    counts: Counts, error: BaseException
) -> None:
    delivery = counts.delivery()
    calls: list[str] = []
    told: list[Finding] = []

    def raising(what: Finding) -> None:
        calls.append(what.id)
        raise error

    delivery.add_callback(raising)
    delivery.add_callback(told.append)

    for number in range(3):
        delivery.put(finding(number))

    assert delivery.drain(SOON)
    assert calls == ["f0"]
    assert told == [finding(0), finding(1), finding(2)]
    assert counts.errors == [("callback", error)]
    assert not delivery.remove_callback(raising)


def test_a_raising_sink_is_counted_and_stays(counts: Counts) -> None:
    delivery = counts.delivery()
    calls: list[Finding] = []

    def raising(what: Finding) -> None:
        calls.append(what)
        raise OSError("down")

    delivery.add_sink("webhook", raising)
    for number in range(2):
        delivery.put(finding(number))

    assert delivery.drain(SOON)
    assert len(calls) == 2
    assert [name for name, _ in counts.errors] == ["webhook", "webhook"]


def test_counters_that_fail_hurt_nobody(gate: Gate) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("counter")

    delivery = Delivery(fail, fail, fail, capacity=1)
    told: list[Finding] = []
    delivery.add_callback(told.append)
    delivery.add_callback(fail)
    delivery.add_sink("log", gate)

    delivery.put(finding(0))
    wait_until(lambda: gate.entered)
    delivery.put(finding(1))
    delivery.put(finding(2))

    gate.open()
    assert delivery.drain(SOON)
    assert told[0] == finding(0)


def test_a_removed_callback_is_not_called_any_more(counts: Counts) -> None:
    class Listener:
        def __init__(self) -> None:
            self.told: list[Finding] = []

        def hear(self, what: Finding) -> None:
            self.told.append(what)

    delivery = counts.delivery()
    listener, other = Listener(), Listener()
    delivery.add_callback(listener.hear)
    delivery.add_callback(other.hear)
    delivery.add_sink("log", listener.hear)

    assert delivery.remove_callback(listener.hear)
    assert not delivery.remove_callback(listener.hear)
    delivery.put(finding(1))

    assert delivery.drain(SOON)
    assert len(other.told) == len(listener.told) == 1  # the sink is no callback and stays


def test_what_waits_for_a_removed_callback_is_not_delivered(counts: Counts, gate: Gate) -> None:
    delivery = counts.delivery()
    delivery.add_callback(gate)
    for number in range(3):
        delivery.put(finding(number))
    wait_until(lambda: gate.entered)
    subscriber = delivery._subscribers[0]

    assert delivery.remove_callback(gate)
    gate.open()

    wait_until(lambda: not subscriber.lane.queue and not subscriber.lane.token.locked())
    assert gate.left == [finding(0)]


def test_of_two_who_remove_one_callback_one_is_told_so(counts: Counts) -> None:
    delivery = counts.delivery()
    delivery.add_callback(print)
    subscriber = delivery._subscribers[0]

    assert delivery._remove(subscriber)
    assert not delivery._remove(subscriber)


def test_a_callback_may_add_and_remove_put_and_drain(counts: Counts) -> None:
    delivery = counts.delivery()
    told: list[Finding] = []
    drained: list[bool] = []

    def busy(what: Finding) -> None:
        if what == finding(0):
            delivery.add_callback(told.append)
            delivery.put(finding(1))
            drained.append(delivery.drain(0))
        else:
            delivery.remove_callback(busy)

    delivery.add_callback(busy)
    delivery.put(finding(0))

    wait_until(lambda: drained and delivery.drain(SOON))
    assert drained == [False]
    assert told == [finding(1)]


def test_a_signal_handler_may_put_while_it_interrupts_a_put(counts: Counts) -> None:
    delivery = counts.delivery(capacity=10_000)
    told: list[str] = []
    delivery.add_callback(lambda what: told.append(what.id))
    handled: list[int] = []

    def handler(*_: object) -> None:
        handled.append(1)
        delivery.put(finding(1_000_000 + len(handled)))

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        puts = 0
        deadline_ns = _real.monotonic_ns() + int(SOON * 1e9)
        while len(handled) < 20 and _real.monotonic_ns() < deadline_ns and puts < 5000:
            delivery.put(finding(puts))
            puts += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert delivery.drain(SOON)
    assert len(told) == puts + len(handled)


def test_where_no_thread_can_be_started_drain_delivers_itself(counts: Counts, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = RuntimeError("can't start new thread")

    def refuse(*_: object) -> None:
        raise refusal

    monkeypatch.setattr(_real, "start_new_thread", refuse)
    delivery = counts.delivery()
    told: list[tuple[Finding, int, bool]] = []
    delivery.add_callback(lambda what: told.append((what, _real.get_ident(), delivery.drain(SOON))))

    delivery.put(finding(1))

    assert counts.errors == [("callback", refusal)]
    assert told == []
    assert not delivery.drain(0)
    assert delivery.drain(SOON)
    assert told == [(finding(1), _real.get_ident(), False)]
    assert threading.current_thread() is threading.main_thread()


def test_drain_starts_the_thread_that_an_earlier_put_could_not(counts: Counts, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    delivery = counts.delivery()
    told: list[Finding] = []
    delivery.add_callback(told.append)
    with monkeypatch.context() as context:
        context.setattr(_real, "start_new_thread", refuse)
        delivery.put(finding(1))

    assert delivery.drain(SOON)
    assert told == [finding(1)]
    assert len(counts.threads) == 1


def in_child(script: str) -> subprocess.CompletedProcess[str]:
    prelude = """
        import os
        from concagent import _real
        from concagent.delivery import Delivery
        from concagent.model import Finding
        def finding(number):
            return Finding("deadlock", "lock", "proven", f"f{number}", f"p{number}", 1.0, 1, "a ring")
        delivery = Delivery(lambda: None, print, lambda name, error: print("error", name, error))
    """
    source = textwrap.dedent(prelude) + textwrap.dedent(script)
    # From 3.12 on, a fork beside our thread is a warning; the fork in the middle of a delivery is what we are after.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", source]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_delivers_anew_and_only_its_own() -> None:
    result = in_child("""
        gate = _real.allocate_lock()
        gate.acquire()
        entered = _real.allocate_lock()
        entered.acquire()
        def hang(what):
            if what.id == "f0":
                entered.release()
                with gate:
                    pass
            print(os.getpid() == parent, what.id, flush=True)
        parent = os.getpid()
        delivery.add_callback(hang)
        delivery.put(finding(0))
        delivery.put(finding(1))
        entered.acquire()
        pid = os.fork()
        if not pid:
            delivery.after_fork_in_child()
            delivery.put(finding(2))
            os._exit(0 if delivery.drain(10) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        gate.release()
        assert delivery.drain(10)
    """)

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == ["False f2", "True f0", "True f1"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_callback_that_forks_does_not_deliver_the_rest_twice() -> None:
    result = in_child("""
        told = []
        def forking(what):
            told.append(what.id)
            if what.id == "f0":
                go.acquire()
                pid = os.fork()
                if pid:
                    os.waitpid(pid, 0)
                else:
                    delivery.after_fork_in_child()
            else:
                os.write(1, f"{os.getpid() == parent} {what.id}\\n".encode())
        parent = os.getpid()
        go = _real.allocate_lock()
        go.acquire()
        delivery.add_callback(forking)
        delivery.put(finding(0))
        delivery.put(finding(1))
        go.release()
        assert delivery.drain(10)
    """)

    assert result.stdout.splitlines() == ["True f1"], result.stderr
