"""What is true of the C core only: sizes, exact chains, what it looks like from outside, and defects that it once had.

What both twins promise is in ``test_lock_contract.py``.  Run with ``CONCAGENT_CORE=c``; skipped where the other twin runs.
"""

# ruff: noqa: ARG001  fixtures are asked for their effect

from __future__ import annotations

import _thread
import copy
import gc
import inspect
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from concagent import _real, core

pytestmark = [
    pytest.mark.skipif(core.NAME != "c", reason="the C core is not in use"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # fork with threads
]


class Heard(core.Listener):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.misuses: list[tuple[str, Any, Any]] = []
        self.rings: list[Any] = []
        self.answer: BaseException | None = None

    def ring(self, path: Any) -> BaseException | None:
        self.rings.append(path)
        return self.answer

    def misuse(self, detail: str, cell: Any, hold: Any, frame: Any) -> None:  # noqa: ARG002
        self.misuses.append((detail, cell, hold))


@pytest.fixture
def heard() -> Iterator[Heard]:
    listener = Heard()
    core.reset_for_tests()
    core.start(listener)
    yield listener
    core.stop()
    core.reset_for_tests()


def held_lock() -> Any:
    lock = core.allocate_lock()
    lock.acquire()
    return lock


def rows(names: dict[int, str]) -> list[tuple[str, str, bool]]:
    """Return the order ring as ("AB", "C", blocking): C taken inside of A and B."""
    return [("".join(names[serial] for serial in row[0]), names[row[1]], bool(row[5])) for row in core.drain_order()]


def three() -> tuple[list[Any], dict[int, str]]:
    """Return three locks of three classes, and what their classes are called."""
    locks = [
        core.allocate_lock(),
        core.allocate_lock(),
        core.allocate_lock(),
    ]
    return locks, {core.cell_of(lock).cls.serial: name for lock, name in zip(locks, "ABC", strict=True)}


def in_thread(function: Callable[[], object]) -> None:
    done = _real.allocate_lock()
    done.acquire()

    def run() -> None:
        try:
            function()
        finally:
            done.release()

    _real.start_new_thread(run, ())
    assert done.acquire(timeout=30)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "what was waited for does not come"
        time.sleep(0.001)


# ---------------------------------------------------------------- size and speed of growth


def test_a_lock_is_no_larger_than_96_bytes() -> None:
    assert sys.getsizeof(core.allocate_lock()) <= 96


def test_more_locks_than_the_inline_stack_holds_are_all_held(heard: Heard) -> None:
    locks = [core.allocate_lock() for _ in range(300)]

    for lock in locks:
        lock.acquire()
    held = core.current_record().held
    for lock in locks:
        lock.release()

    assert held == [core.cell_of(lock) for lock in locks]
    assert core.current_record().held == []


def test_locks_released_in_any_order_leave_an_empty_stack(heard: Heard) -> None:
    locks = [core.allocate_lock() for _ in range(100)]
    for lock in locks:
        lock.acquire()

    for lock in locks[1::3] + locks[2::3] + locks[0::3]:
        lock.release()

    assert core.current_record().held == []


def test_a_lock_that_comes_and_goes_leaves_nothing(heard: Heard) -> None:
    def round_trip() -> None:
        for _ in range(2000):
            lock = core.allocate_lock()
            weakref.ref(lock)
            with lock:
                core.cell_of(lock)
            with core.RLock():
                pass

    round_trip()
    gc.collect()
    before = sys.getallocatedblocks()
    round_trip()
    gc.collect()

    assert sys.getallocatedblocks() - before < 50


# ---------------------------------------------------------------- chains


def test_a_chain_is_told_once(heard: Heard) -> None:
    (a, b, c), names = three()

    for _ in range(3):
        with a, b, c:
            pass

    assert rows(names) == [("A", "B", True), ("AB", "C", True)]


def test_releasing_out_of_turn_tells_no_order_and_hides_none(heard: Heard) -> None:
    (a, b, c), names = three()
    a.acquire(), b.acquire(), c.acquire()
    rows(names)

    a.release()
    at_release = rows(names)
    c.release(), b.release()
    with b, c:
        pass

    assert at_release == []
    assert rows(names) == [("B", "C", True)]  # without A, which might have been its gate


def test_a_chain_first_only_tried_is_told_again_when_somebody_waits(heard: Heard) -> None:
    (a, b, _), names = three()
    with a:
        assert b.acquire(False)
        b.release()
    tried = rows(names)

    with a, b:
        pass

    assert tried == [("A", "B", False)]
    assert rows(names) == [("A", "B", True)]


def test_a_chain_taken_while_nobody_listened_is_told_later(heard: Heard) -> None:
    (a, b, _), names = three()
    core.stop()
    for _ in range(2):
        with a, b:
            pass
    core.start(heard)

    with a, b:
        pass

    assert rows(names) == [("A", "B", True)]


def test_a_thousand_classes_inside_of_one_are_told_exactly(heard: Heard) -> None:
    outer = core.allocate_lock()
    source = "\n".join(f"locks.append(make())  # {n}" for n in range(1000))
    locks: list[Any] = []
    exec(compile(source, "<a thousand lines>", "exec"), {"locks": locks, "make": core.allocate_lock})

    for _ in range(3):
        with outer:
            for lock in locks:
                with lock:
                    pass

    told = core.drain_order()
    assert len(told) == 1000
    assert {row[1] for row in told} == {core.cell_of(lock).cls.serial for lock in locks}


# ---------------------------------------------------------------- defects that it once had


def test_a_held_lock_that_dies_keeps_the_exception_in_flight(heard: Heard) -> None:
    with pytest.raises(TypeError):
        int(held_lock())

    assert [detail for detail, _, _ in heard.misuses] == ["destroy-held"]


def test_a_lock_used_as_a_signal_says_nothing_when_it_dies(heard: Heard) -> None:
    def signal_lock() -> Any:
        return core.allocate_lock()

    first = signal_lock()
    first.acquire()
    in_thread(first.release)
    second = signal_lock()
    second.acquire()
    del second

    assert heard.misuses == []


def test_an_rlock_of_a_class_in_signal_mode_keeps_its_owner(heard: Heard) -> None:
    lock = core.RLock()
    core.cell_of(lock).cls.signal = True

    with lock, lock:
        owned = lock._is_owned()
    core.cell_of(lock).cls.signal = False

    assert owned
    assert not lock._is_owned()


def test_the_signal_mark_of_a_class_cannot_be_deleted() -> None:
    with pytest.raises(AttributeError):
        del core.cell_of(core.allocate_lock()).cls.signal


def test_a_handler_can_wait_for_the_lock_that_its_thread_waits_for(heard: Heard) -> None:
    lock = held_lock()
    got: list[bool] = []

    def handle(*_: object) -> None:
        got.append(lock.acquire(timeout=20))
        lock.release()

    old = signal.signal(signal.SIGALRM, handle)
    try:
        main = core.current_record()
        _real.start_new_thread(lambda: (until(lambda: len(main.waits) == 2), lock.release()), ())
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        before = time.monotonic()
        assert lock.acquire(timeout=20)
    finally:
        signal.signal(signal.SIGALRM, old)

    assert got == [True]
    assert time.monotonic() - before < 10
    lock.release()


def test_a_handler_that_waits_does_not_keep_a_wake_up_from_others(heard: Heard) -> None:
    lock = held_lock()
    second_has_it = _real.allocate_lock()
    second_has_it.acquire()
    got: list[bool] = []

    def second() -> None:
        with lock:
            second_has_it.release()

    def handle(*_: object) -> None:  # inside of the wait of the first in the queue
        _real.start_new_thread(second, ())
        until(lambda: any(record.waits for record in core.records() if record is not main))
        lock.release()
        got.append(second_has_it.acquire(timeout=20))

    main = core.current_record()
    old = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert lock.acquire(timeout=20)
    finally:
        signal.signal(signal.SIGALRM, old)
    lock.release()

    assert got == [True]


def test_a_signal_handler_cannot_keep_a_condition_from_its_lock(heard: Heard) -> None:
    lock = core.RLock()
    lock.acquire()
    saved = lock._release_save()
    holding = _real.allocate_lock()
    holding.acquire()
    go_on = _real.allocate_lock()
    go_on.acquire()

    def other() -> None:
        with lock:
            holding.release()
            go_on.acquire()

    class InHandlerError(Exception):
        pass

    def handle(*_: object) -> None:
        raise InHandlerError

    _real.start_new_thread(other, ())
    holding.acquire()
    main = core.current_record()
    _real.start_new_thread(lambda: (until(lambda: main.waits), time.sleep(0.1), go_on.release()), ())
    old = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(InHandlerError):  # noqa: PT012 - the handler may run in either line
            lock._acquire_restore(saved)
            until(lambda: False)  # the handler runs no later than here
    finally:
        signal.signal(signal.SIGALRM, old)

    assert lock._is_owned()
    lock.release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_waiter_of_the_parent_swallows_no_wake_up_in_the_child(heard: Heard) -> None:
    lock = held_lock()
    ended = _real.allocate_lock()
    ended.acquire()

    def wait() -> None:
        with lock:
            pass
        ended.release()

    _real.start_new_thread(wait, ())
    until(lambda: core.cell_of(lock).waited_for)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            core.after_fork_in_child()
            _real.start_new_thread(wait, ())
            until(lambda: core.cell_of(lock).waited_for)
            lock.release()
            status = 0 if ended.acquire(timeout=10) else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    lock.release()
    ended.acquire()

    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("how", ["lock.acquire(False)", "lock.acquire(timeout=20)", "lock.acquire()"])
@pytest.mark.parametrize("kind", ["allocate_lock", "RLock"])
def test_a_lock_reserved_for_a_thread_that_is_gone_at_the_end_is_free(kind: str, how: str) -> None:
    # Finalizers of the thread-locals of daemon threads run when all threads are gone and not all of their records.
    program = f"""
import os, sys, threading, time
from concagent import core
lock = core.{kind}()
lock.acquire()
local = threading.local()
class Last:
    def __del__(self, lock=lock, write=os.write):
        write(1, b"got " if {how} else b"not ")
        lock.release()
def park():
    local.last = Last()
    threading.Event().wait()
others = [threading.Thread(target=park, daemon=True) for _ in range(6)]
waiter = threading.Thread(target=lock.acquire, daemon=True)
for thread in (*others[:3], waiter, *others[3:]):
    thread.start()
while not core.cell_of(lock).waited_for:
    time.sleep(0.001)
time.sleep(0.05)  # waited for so long a lock is reserved
sys.setswitchinterval(1000)  # nobody comes before the end
lock.release()
"""

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "got " * 6, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_handler_that_forks_inside_of_a_wait_leaves_both_processes_able_to_wait(heard: Heard) -> None:
    lock = held_lock()
    other = held_lock()
    children: list[int] = []

    def handle(*_: object) -> None:
        children.append(os.fork())
        if children[-1] == 0:
            core.after_fork_in_child()

    old = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        timed_out = not lock.acquire(timeout=0.2)
    finally:
        signal.signal(signal.SIGALRM, old)
    if children == [0]:
        status = 1
        try:
            _real.start_new_thread(lambda: (until(lambda: core.cell_of(other).waited_for), other.release()), ())
            usable = other.acquire(timeout=20) and not core.current_record().waits
            status = 0 if timed_out and usable and not core.cell_of(lock).waited_for else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(children[0], 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert timed_out
    assert core.current_record().waits == []
    assert not core.cell_of(lock).waited_for
    lock.release()
    assert lock.acquire(False)


def test_waiters_that_time_out_at_the_moment_of_the_release_lose_no_wake_up(heard: Heard) -> None:
    # Whatever the interleaving: after each release either the timed one or the untimed one has the lock.
    lock = core.allocate_lock()
    rounds = 300
    got = [0, 0]
    done = _real.allocate_lock()
    done.acquire()

    def patient() -> None:
        for _ in range(rounds):
            with lock:
                got[0] += 1
        done.release()

    def hasty() -> None:
        while got[0] < rounds:
            if lock.acquire(timeout=0.0004):
                got[1] += 1
                lock.release()

    _real.start_new_thread(hasty, ())
    _real.start_new_thread(hasty, ())
    _real.start_new_thread(patient, ())
    while got[0] < rounds:
        with lock:
            time.sleep(0.0004)

    assert done.acquire(timeout=60)
    until(lambda: not core.cell_of(lock).waited_for)
    assert sum(got) >= rounds


def test_a_finalizer_that_takes_the_lock_its_thread_waits_for_gets_it_in_turn(heard: Heard) -> None:
    # The collector runs it wherever something is allocated, also in the handler of a signal inside of the wait.
    lock = held_lock()
    seen: list[bool] = []

    class Last:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            seen.append(lock.acquire(timeout=0.001))

    def handle(*_: object) -> None:
        Last()
        gc.collect()

    old = signal.signal(signal.SIGALRM, handle)
    main = core.current_record()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        _real.start_new_thread(lambda: (until(lambda: seen), until(lambda: len(main.waits) == 1), lock.release()), ())
        assert lock.acquire(timeout=20)
    finally:
        signal.signal(signal.SIGALRM, old)
    lock.release()

    assert seen == [False]
    assert core.current_record().waits == []


@pytest.mark.parametrize("timeout", [-1, 20])
def test_signals_without_pause_neither_end_nor_lose_a_wait(heard: Heard, timeout: float) -> None:
    lock = held_lock()
    calls: list[int] = []
    main = core.current_record()
    old = signal.signal(signal.SIGALRM, lambda *_: calls.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        _real.start_new_thread(lambda: (until(lambda: main.waits and len(calls) > 200), lock.release()), ())
        assert lock.acquire(timeout=timeout)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    lock.release()

    assert len(calls) > 200


def test_a_time_out_is_not_early_because_of_signals(heard: Heard) -> None:
    lock = held_lock()
    calls: list[int] = []
    old = signal.signal(signal.SIGALRM, lambda *_: calls.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        before = time.monotonic()
        assert not lock.acquire(timeout=0.1)
        passed = time.monotonic() - before
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    lock.release()

    assert passed >= 0.1
    assert calls
    assert core.current_record().waits == []


def test_a_victim_in_the_handler_of_its_wait_raises_when_the_handler_is_done(heard: Heard) -> None:
    lock = held_lock()
    error = RuntimeError("you are the one")
    main = core.current_record()
    woken: list[bool] = []
    old = signal.signal(signal.SIGALRM, lambda *_: woken.append(core.wake_victim(main.waits[0], error)))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(RuntimeError, match="you are the one"):
            lock.acquire(timeout=20)
    finally:
        signal.signal(signal.SIGALRM, old)

    assert woken == [True]
    assert main.waits == []
    assert not core.cell_of(lock).waited_for
    lock.release()


def test_a_victim_raises_and_others_get_the_lock(heard: Heard) -> None:
    lock = held_lock()
    raised: list[BaseException] = []
    ended = _real.allocate_lock()
    ended.acquire()

    def wait() -> None:
        try:
            lock.acquire()
        except RuntimeError as error:
            raised.append(error)
        ended.release()

    _real.start_new_thread(wait, ())
    until(lambda: core.cell_of(lock).waited_for)
    (wait_of_it,) = [record.waits[0] for record in core.records() if record.waits]
    error = RuntimeError("you are the one")

    assert core.wake_victim(wait_of_it, error)
    assert ended.acquire(timeout=20)
    assert raised == [error]
    assert not core.wake_victim(wait_of_it, error)
    lock.release()
    assert not core.cell_of(lock).waited_for


def test_an_answer_to_a_ring_is_raised_and_leaves_no_wait(heard: Heard) -> None:
    lock = core.allocate_lock()  # not of held_lock's class, which other tests release from other threads
    lock.acquire()
    heard.answer = RuntimeError("deadlock")

    with pytest.raises(RuntimeError, match="deadlock"):
        lock.acquire()

    assert core.current_record().waits == []
    assert not core.cell_of(lock).waited_for
    lock.release()


@pytest.mark.parametrize("timeout", [threading.TIMEOUT_MAX, 9.2e9, 1e9, 10**9])
def test_the_longest_time_outs_do_not_overflow(heard: Heard, timeout: float) -> None:
    lock = held_lock()
    _real.start_new_thread(lambda: (until(lambda: core.cell_of(lock).waited_for), lock.release()), ())

    assert lock.acquire(timeout=timeout)
    lock.release()


@pytest.mark.parametrize("timeout", [0.02, 1e-9, 0.0005])
def test_a_time_out_is_never_early(heard: Heard, timeout: float) -> None:
    lock = held_lock()

    before = time.monotonic()
    assert not lock.acquire(True, timeout)
    assert time.monotonic() - before >= timeout
    lock.release()


def test_a_thread_that_holds_nearly_always_lets_others_in(heard: Heard) -> None:
    lock = core.allocate_lock()
    counts = [0, 0, 0]
    end = time.monotonic() + 1.0

    def body(index: int) -> Callable[[], None]:
        def run() -> None:
            while time.monotonic() < end:
                with lock:
                    counts[index] += 1
                    for _ in range(5000):
                        pass

        return run

    threads = [threading.Thread(target=body(index)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert min(counts) * 5 > max(counts), counts


# ---------------------------------------------------------------- like the originals


def originals() -> list[tuple[Any, Any]]:
    return [(_real.allocate_lock(), core.allocate_lock()), (_real.RLockType(), core.RLock())]


@pytest.mark.parametrize("which", [0, 1], ids=["lock", "rlock"])
class TestLikeTheOriginal:
    def test_has_the_same_names_and_descriptions(self, which: int) -> None:
        theirs, ours = (type(lock) for lock in originals()[which])

        assert set(vars(theirs)) == set(vars(ours))
        assert (theirs.__name__, theirs.__qualname__, theirs.__module__) == (
            ours.__name__,
            ours.__qualname__,
            ours.__module__,
        )
        for name in set(vars(theirs)) - {"__new__"}:
            assert getattr(theirs, name).__doc__ == getattr(ours, name).__doc__, name

    def test_has_the_same_signatures(self, which: int) -> None:
        def signature(of: Any) -> str:
            try:
                return str(inspect.signature(of))
            except ValueError:
                return "none"

        theirs, ours = originals()[which]

        for name in ("acquire", "release", "__enter__", "__exit__", "_at_fork_reinit"):
            assert signature(getattr(theirs, name)) == signature(getattr(ours, name)), name

    @pytest.mark.parametrize(
        "use",
        [
            lambda lock: setattr(type(lock), "more", 1),
            lambda lock: setattr(lock, "more", 1),
            lambda lock: setattr(lock, "__class__", object),
            lambda lock: type("Derived", (type(lock),), {}).__name__,
            lambda lock: type(lock)(1) and None,
            lambda lock: type(lock)(key=1) and None,
            copy.copy,
            copy.deepcopy,
            *(
                lambda lock, p=protocol: pickle.dumps(lock, p) and None
                for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
            ),
            lambda lock: lock.acquire(1, 2, 3),
            lambda lock: lock.acquire(timeout=-2),
            lambda lock: lock.acquire(False, 1),
            lambda lock: lock.acquire(0, 1.5),
            lambda lock: lock.acquire(True, float("nan")),
            lambda lock: lock.acquire(True, 1e30),
            lambda lock: lock.acquire(True, 10**30),
            lambda lock: lock.acquire(timeout="1"),
            lambda lock: lock.acquire(True, blocking=True),
            lambda lock: lock.acquire(nothing=1),
            lambda lock: lock.acquire(1, -1),
            lambda lock: lock.acquire(2),
            lambda lock: lock.acquire(timeout=-1.0),
            lambda lock: lock.acquire(timeout=0),
            lambda lock: lock.acquire(blocking=False),
            lambda lock: lock.acquire(blocking=0),
            lambda lock: lock.release(),
            lambda lock: lock.__exit__(1, 2, 3, 4),
            lambda lock: lock.__exit__(key=1),
            lambda lock: lock._acquire_restore(None),
            lambda lock: lock._release_save(),
        ],
    )
    def test_answers_alike(self, which: int, use: Callable[[Any], Any]) -> None:
        def answer(lock: Any) -> str:
            try:
                return repr(use(lock))
            except Exception as error:  # noqa: BLE001 - whatever it is, the original must raise it, too
                return repr(error).replace(hex(id(lock)), "0x")

        theirs, ours = originals()[which]

        # 3.10 names the type in such a message only for methods that are called as ours are, the faster way.
        assert answer(theirs) == answer(ours) or (sys.version_info < (3, 11) and "keyword arguments" in answer(ours))


def test_a_subclass_can_say_how_it_is_copied() -> None:
    class Copied(core.RLock):  # type: ignore[misc]
        def __reduce__(self) -> Any:
            return Copied, ()

    assert type(copy.copy(Copied())) is Copied


def test_a_subclass_has_attributes_slots_weak_references_and_an_end() -> None:
    ended: list[str] = []

    class Derived(core.RLock):  # type: ignore[misc]
        __slots__ = ("__dict__", "slot")

        def __init__(self, name: str) -> None:
            self.name = self.slot = name

        def __del__(self) -> None:
            ended.append(self.slot)

    lock = Derived("mine")
    with lock, lock:
        reference = weakref.ref(lock)
    lock.itself = lock
    del lock
    gc.collect()

    assert ended == ["mine"]
    assert reference() is None


def test_an_original_is_an_instance_of_our_type() -> None:
    assert isinstance(_thread.allocate_lock(), core.Lock)
    assert not isinstance(3, core.Lock)


def test_a_second_import_is_the_same_core() -> None:
    from importlib.util import module_from_spec

    spec = core.implementation.__spec__
    again = module_from_spec(spec)
    spec.loader.exec_module(again)

    assert again.Lock is core.Lock
    assert again.current_record() is core.current_record()


def test_the_twin_that_does_not_run_is_not_loaded() -> None:
    program = "import sys\nfrom concagent import core\nprint(core.NAME, *(m for m in sys.modules if '._pycore' in m))"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.split() == ["c"]


def test_a_late_thread_is_unknown_to_python_until_its_descriptor_can_be_read() -> None:
    read, write = os.pipe()
    began = _real.allocate_lock()
    began.acquire()
    seen: list[int] = []

    def function() -> None:
        seen.append(_real.get_ident())
        began.release()

    before = set(sys._current_frames())
    core.start_thread_late(function, (read,), 60_000_000_000)
    unknown = set(sys._current_frames()) == before
    os.write(write, b"x")
    came = began.acquire(True, 30)
    os.close(read)
    os.close(write)

    assert (unknown, came) == (True, True)
    assert seen[0] not in before


def test_a_late_thread_begins_when_its_time_has_come() -> None:
    began = _real.allocate_lock()
    began.acquire()

    core.start_thread_late(began.release, (), 1_000_000)

    assert began.acquire(True, 30)


def test_a_late_thread_without_descriptors_begins_when_it_is_hurried() -> None:
    for _ in range(3):
        began = _real.allocate_lock()
        began.acquire()

        core.start_thread_late(began.release, (), 60_000_000_000)
        core.hurry_late_thread()

        assert began.acquire(True, 20)


def test_what_is_no_descriptor_makes_no_late_thread() -> None:
    with pytest.raises(TypeError):
        core.start_thread_late(lambda: None, ("a",), 0)  # type: ignore[arg-type]
    with pytest.raises(OverflowError):
        core.start_thread_late(lambda: None, (2**70,), 0)
