"""What stands for `Condition.wait` and the methods of semaphores is what they are, but for what it notes."""

# ruff: noqa: ARG001  the agent is asked for its effect
# mypy: disable-error-code="attr-defined"  the library's private attributes

from __future__ import annotations

import copy
import functools
import importlib.util
import inspect
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
from hypothesis import given
from hypothesis import strategies as st

import concagent
from concagent import _real, core, state


@pytest.fixture(scope="module")
def agent() -> Iterator[Any]:
    """The agent, installed for this module."""
    running = concagent.install(stderr=False, log=False, report_signal="off", socket=False)
    try:
        yield running
    finally:
        concagent.uninstall()


def _private_threading() -> Any:
    """Return the library's module once more: no hook reaches its classes."""
    spec = importlib.util.find_spec("threading")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_stock = _private_threading()


def _kinds(library: Any) -> dict[str, Callable[[int], Any]]:
    """Return makers of semaphores: plain, bounded, derived, and with a method of its own."""

    class Derived(library.Semaphore):  # type: ignore[misc, name-defined, unused-ignore]
        pass

    class Loud(library.BoundedSemaphore):  # type: ignore[misc, name-defined, unused-ignore]
        calls = 0

        def acquire(self, *args: Any, **names: Any) -> Any:
            self.calls += 1
            return super().acquire(*args, **names)

        __enter__ = acquire

        def release(self, *args: Any) -> Any:
            self.calls += 1
            return super().release(*args)

    return {
        "plain": library.Semaphore,
        "bounded": library.BoundedSemaphore,
        "derived": Derived,
        "loud": Loud,
    }


def _use_with(semaphore: Any) -> int:
    with semaphore:
        return int(semaphore._value)


def _set_value(value: Any) -> Callable[[Any], None]:
    return lambda semaphore: setattr(semaphore, "_value", value)


_STEPS: dict[str, Callable[[Any], Any]] = {
    "acquire()": lambda s: s.acquire() if s._value else "would wait",
    "acquire(False)": lambda s: s.acquire(False),
    "acquire(timeout=0)": lambda s: s.acquire(timeout=0),
    "acquire(True, 0)": lambda s: s.acquire(True, 0),
    "acquire(False, 1)": lambda s: s.acquire(False, 1),
    "acquire(nonsense)": lambda s: s.acquire(nonsense=1),
    "release()": lambda s: s.release(),
    "release(2)": lambda s: s.release(2),
    "release(n=3)": lambda s: s.release(n=3),
    "release(0)": lambda s: s.release(0),
    "release(1, 2)": lambda s: s.release(1, 2),
    "with": lambda s: _use_with(s) if s._value else "would wait",
    "base.release": lambda s: type(s).__mro__[-2].release(s),
    "repr": lambda s: repr(s).partition(" at ")[2].partition(":")[2],
    "value = 2**70": _set_value(2**70),
    "value = 1.0": _set_value(1.0),
    "value = 1": _set_value(1),
    "value = True": _set_value(True),
}


def _answer(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (ValueError, TypeError) as error:
        return type(error), str(error)


@pytest.mark.parametrize("kind", ["plain", "bounded", "derived", "loud"])
@given(value=st.integers(0, 3), steps=st.lists(st.sampled_from(sorted(_STEPS)), max_size=12))
def test_a_semaphore_answers_as_the_original_does(agent: Any, kind: str, value: int, steps: list[str]) -> None:
    original, ours = _kinds(_stock)[kind](value), _kinds(threading)[kind](value)

    for step in steps:
        expected, answer = (_answer(functools.partial(_STEPS[step], one)) for one in (original, ours))
        assert answer == expected, step
        assert type(answer) is type(expected)
        assert ours._value == original._value, step
        assert type(ours._value) is type(original._value)
        assert getattr(ours, "calls", 0) == getattr(original, "calls", 0)


@pytest.mark.parametrize("kind", ["plain", "bounded", "derived", "loud"])
@given(steps=st.lists(st.sampled_from(["acquire()", "acquire(False)", "release()", "release(2)", "with"]), max_size=15))
def test_the_permits_noted_are_those_that_were_taken(agent: Any, kind: str, steps: list[str]) -> None:
    semaphore = _kinds(threading)[kind](3)
    taken = 0

    for step in steps:
        amount = 2 if step.endswith("(2)") else 1
        if step.startswith("release") and amount > taken:
            continue  # the semaphore would be a signal
        answer = _answer(lambda one=step: _STEPS[one](semaphore))
        if step.startswith("acquire") and answer is True:
            taken += 1
        elif step.startswith("release") and answer is None:
            taken -= amount
        holders = dict(state.existing_cell(semaphore).holders) if taken else {}
        assert holders == ({core.current_record(): taken} if taken else {})

    cell = state.existing_cell(semaphore)
    assert cell is None or not cell.foreign


def test_a_permit_is_noted_for_the_thread_that_took_it(agent: Any) -> None:
    semaphore = threading.Semaphore(2)
    semaphore.acquire()
    records: list[Any] = []

    def other() -> None:
        semaphore.acquire()
        records.append(core.current_record())
        records.append(dict(state.existing_cell(semaphore).holders))
        semaphore.release()

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()

    assert records[1] == {core.current_record(): 1, records[0]: 1}
    assert dict(state.existing_cell(semaphore).holders) == {core.current_record(): 1}


@pytest.mark.parametrize("kind", ["Semaphore", "BoundedSemaphore"])
def test_a_permit_that_was_waited_for_is_noted_like_any_other(agent: Any, kind: str) -> None:
    semaphore = getattr(threading, kind)(1)
    semaphore.acquire()  # the first use makes the cell, the next ones find it
    holders = state.existing_cell(semaphore).holders
    seen: list[Any] = []

    def other() -> None:
        semaphore.acquire()
        seen.append((core.current_record(), dict(holders)))
        semaphore.release()

    thread = threading.Thread(target=other)
    thread.start()
    while not semaphore._cond._waiters:
        time.sleep(0.001)
    semaphore.release()
    thread.join()

    [(record, then)] = seen
    assert then == {record: 1}
    assert holders == {}
    assert not state.existing_cell(semaphore).foreign
    assert semaphore._value == 1


def test_a_permit_given_to_a_waiter_by_a_thread_that_took_none_marks_a_signal(agent: Any) -> None:
    semaphore = threading.Semaphore(1)
    semaphore.acquire()
    holders = state.existing_cell(semaphore).holders
    thread = threading.Thread(target=semaphore.acquire)
    thread.start()
    while not semaphore._cond._waiters:
        time.sleep(0.001)
    before = state.existing_cell(semaphore).foreign

    giver = threading.Thread(target=semaphore.release)
    giver.start()
    giver.join()
    thread.join()

    assert not before
    assert state.existing_cell(semaphore).foreign
    assert holders[core.current_record()] == 1


@pytest.mark.parametrize("arguments", [(False,), (True, 0.01), (False, None)])
def test_an_acquire_that_gave_up_has_no_permit(agent: Any, arguments: tuple[Any, ...]) -> None:
    semaphore = threading.Semaphore(1)
    semaphore.acquire()

    assert not semaphore.acquire(*arguments)

    assert state.existing_cell(semaphore).holders == {core.current_record(): 1}
    with pytest.raises(ValueError, match="timeout"):
        semaphore.acquire(False, 1)
    assert state.existing_cell(semaphore).holders == {core.current_record(): 1}


def test_a_semaphore_used_as_a_signal_says_so_once_and_goes_on(agent: Any) -> None:
    semaphore = threading.Semaphore(0)

    for _ in range(3):
        semaphore.release()

    assert semaphore._value == 3
    assert state.existing_cell(semaphore).foreign
    assert state.existing_cell(semaphore).holders == {}


def test_a_method_set_on_one_object_is_called_by_with(agent: Any) -> None:
    semaphore = threading.Semaphore(2)
    calls: list[str] = []
    with semaphore:
        pass

    semaphore.release = lambda: calls.append("release")  # type: ignore[method-assign]
    with semaphore:
        pass

    assert calls == ["release"]
    assert semaphore._value == 1


def test_a_lock_of_another_make_inside_a_semaphore_is_taken(agent: Any) -> None:
    semaphore = threading.Semaphore(2)
    with semaphore:
        pass
    entered: list[str] = []

    class Lock:
        def __enter__(self) -> None:
            entered.append("in")

        def __exit__(self, *_: object) -> None:
            entered.append("out")

    semaphore._cond._lock = Lock()
    semaphore.acquire()

    assert entered == ["in", "out"]


def test_who_holds_the_inner_lock_keeps_others_out(agent: Any) -> None:
    semaphore = threading.Semaphore(1)
    with semaphore:
        pass
    got = _real.allocate_lock()
    got.acquire()

    def other() -> None:
        semaphore.acquire()
        got.release()

    semaphore._cond.acquire()
    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    while not getattr(core.record_of_ident(thread.ident), "waits", ()):
        time.sleep(0.001)
    was_kept_out = not got.acquire(False)
    semaphore._cond.release()
    thread.join(20)

    assert was_kept_out
    assert got.acquire(False)


_METHODS = [
    (threading.Condition, "wait"),
    (threading.Semaphore, "acquire"),
    (threading.Semaphore, "__enter__"),
    (threading.Semaphore, "release"),
    (threading.BoundedSemaphore, "release"),
]


@pytest.mark.parametrize(("cls", "name"), _METHODS, ids=lambda value: getattr(value, "__name__", value))
def test_a_method_looks_like_the_original(agent: Any, cls: Any, name: str) -> None:
    method, original = cls.__dict__[name], getattr(_stock, cls.__name__).__dict__[name]

    assert method.__name__ == original.__name__
    assert method.__qualname__ == original.__qualname__
    assert method.__module__ == original.__module__
    assert method.__doc__ == original.__doc__
    assert inspect.signature(method) == inspect.signature(original)
    assert inspect.getsource(method) == inspect.getsource(original)
    assert inspect.isroutine(method)
    assert getattr(cls, name) is method
    assert callable(method)
    assert weakref.ref(method)() is method
    assert copy.deepcopy(method) is method
    assert pickle.loads(pickle.dumps(method)) is getattr(cls, original.__name__)


def test_a_bound_method_looks_like_the_original(agent: Any) -> None:
    semaphore = threading.Semaphore(1)

    bound = semaphore.acquire

    assert type(bound) is type(_stock.Semaphore(1).acquire)
    assert bound == semaphore.acquire
    assert bound.__self__ is semaphore
    assert repr(bound) == f"<bound method Semaphore.acquire of {semaphore!r}>"


def test_a_method_called_without_an_object_fails_as_the_original_does(agent: Any) -> None:
    for name in ("acquire", "release"):
        expected, answer = (_answer(getattr(library.Semaphore, name)) for library in (_stock, threading))
        assert answer == expected
    expected, answer = (_answer(library.Condition.wait) for library in (_stock, threading))
    assert answer == expected


def test_waiting_without_the_lock_fails_as_the_original_does(agent: Any) -> None:
    for arguments in ((), (1,)):
        with pytest.raises(RuntimeError, match="cannot wait on un-acquired lock"):
            threading.Condition().wait(*arguments)

    assert core.current_record().waiting() is None


def test_a_timeout_by_name_is_a_timeout(agent: Any) -> None:
    seen: list[bool] = []

    class Lock:
        """A lock that looks at the wait when it is released for it."""

        def __init__(self) -> None:
            self.real = _real.allocate_lock()
            self.acquire = self.real.acquire
            self.locked = self.real.locked  # a condition asks for it since 3.14

        def release(self) -> None:
            wait = core.current_record().waiting()
            if wait is not None:
                seen.append(wait.timed)
            self.real.release()

        __enter__ = lambda self: self.acquire()  # noqa: E731
        __exit__ = lambda self, *_: self.release()  # noqa: E731

    condition = threading.Condition(Lock())  # type: ignore[arg-type]
    with condition:
        condition.wait(timeout=0)
        condition.wait(0)

    assert seen == [True, True]


def test_the_start_of_a_thread_is_no_wait_to_publish(agent: Any) -> None:
    thread = threading.Thread(target=lambda: None)

    thread.start()
    thread.join()

    assert state.existing_cell(thread._started) is None


_STORM = """
import signal, threading
import concagent
from concagent import core

class AlarmError(Exception):
    pass

def handler(_signal, _frame):
    raise AlarmError

concagent.install(stderr=False, log=False, report_signal="off", socket=False)
condition = threading.Condition()
signal.signal(signal.SIGALRM, handler)
for number in range(300):
    try:
        # Again and again: what is raised inside a collector's callback, or inside a hook, is lost.
        signal.setitimer(signal.ITIMER_REAL, 0.00005 + number % 30 * 0.00001, 0.2)
        while True:
            with condition:
                condition.wait(0)
    except (AlarmError, RuntimeError):  # or the library's own: it had not retaken the lock
        signal.setitimer(signal.ITIMER_REAL, 0)
        condition = threading.Condition()
    assert core.current_record().waiting() is None
print("DONE")
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
def test_no_signal_leaves_a_wait_behind() -> None:
    # In a process of its own: it leaves locks behind that are held, as the library does.
    done = subprocess.run([sys.executable, "-c", _STORM], capture_output=True, text=True, timeout=100, check=False)

    assert (done.stdout, done.stderr) == ("DONE\n", "")


@pytest.mark.skipif(core.NAME != "c", reason="the C core is not in use")
def test_methods_are_freed_with_what_they_hold(agent: Any) -> None:
    hook = lambda: None  # noqa: E731
    count = sys.getrefcount(hook)

    for _ in range(10):
        core.implementation.sync_method("acquire", hook, hook)

    assert sys.getrefcount(hook) == count


def test_the_condition_that_a_start_waits_on_is_a_condition_as_good_as_any(agent: Any) -> None:
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(thread._started.is_set()))
    thread.start()
    thread.join()
    inner = thread._started._cond
    attributes = set(vars(inner))

    with inner:
        inner.notify_all()
        timed_out = not inner.wait(0)
    inner._at_fork_reinit()

    assert seen == [True]
    assert isinstance(inner, _real.Condition)
    assert attributes == set(vars(_stock.Condition(_real.allocate_lock())))
    assert timed_out
    assert not inner._lock.locked()
    with pytest.raises(RuntimeError, match="threads can only be started once"):
        thread.start()
