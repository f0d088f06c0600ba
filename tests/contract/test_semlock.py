"""The type in the place of ``_multiprocessing.SemLock`` answers as the original does, error types included."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("_multiprocessing")

PROGRAM = """
    import concagent
    concagent.install(log=False, stderr=False, socket=False)
    import _multiprocessing, itertools, multiprocessing, os, pickle, threading

    ours = _multiprocessing.SemLock
    original = ours.__mro__[1]
    numbers = itertools.count()

    def make(cls, kind, value, maxvalue):
        return cls(kind, value, maxvalue, f"/concagent-{os.getpid()}-{next(numbers)}", True)

    def elsewhere(function):
        found = []
        def run():
            try:
                found.append(function())
            except Exception as error:
                found.append(type(error))
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        return found

    CASES = [
        lambda s: (s.acquire(), s.acquire(False), s._count(), s._is_mine(), s._get_value(), s._is_zero()),
        lambda s: s.release(),
        lambda s: (s.acquire(True, 0.01), s.acquire(True, 0.01), s.release(), s._count()),
        lambda s: (s.acquire(), s.release(), s.release()),
        lambda s: (s.acquire(), elsewhere(s.release), s._get_value()),
        lambda s: (s.acquire(), elsewhere(lambda: s.acquire(False)), elsewhere(lambda: s.acquire(True, 0.01))),
        lambda s: s.acquire(True, -5),
        lambda s: s.acquire(True, "x"),
        lambda s: s.acquire(timeout=0.01, block=1),
        lambda s: (s.acquire(block=False), s.acquire(block=False), s.acquire(False, None), s.acquire(0, 5), s._count()),
        lambda s: (s.acquire(True, 1), s.acquire(True, 0), s.acquire(True, 0.0), s.acquire(True, -1), s._count()),
        lambda s: (s.acquire([]), s.acquire([], None), s._count()),
        lambda s: (s.acquire(True, 10**400), s._count()),
        lambda s: (s.acquire(True, None, block=False)),
        lambda s: (s.acquire(), s.acquire(timeout=None, block=False), s._count(), s._get_value()),
        lambda s: (s.acquire(), elsewhere(s.release), elsewhere(s.release), s._count(), s._get_value()),
        lambda s: (s.acquire(), elsewhere(lambda: (s._is_mine(), s._count()))),
        lambda s: (s.acquire(), s.acquire(False), s.release(), s._count(), s.acquire(False), s._count(), s._is_mine()),
        lambda s: (s.__enter__(), elsewhere(s.__enter__) if s.kind == 0 and s.maxvalue > 9 else 0, s.__exit__()),
        lambda s: s.__exit__(1, 2, 3, 4),
        lambda s: s.release(1),
        lambda s: s.acquire(1, 2, 3),
        lambda s: s.acquire(foo=1),
        lambda s: (s.__enter__(), s._count(), s.__exit__(None, None, None), s._count(), s.__exit__),
        lambda s: (s.__enter__(), s.__exit__(), s.name, s.kind, s.maxvalue),
        lambda s: (s.acquire(), s._after_fork(), s._count()),
        lambda s: pickle.dumps(s),
        lambda s: hasattr(s, "__dict__"),
        lambda s: repr(s).split(" at ")[0],
    ]

    def outcome(case, cls, shape):
        try:
            got = case(make(cls, *shape))
            return [x for x in got if not callable(x)] if isinstance(got, tuple) else got
        except TypeError:
            return TypeError  # the interpreter's words for a wrong call differ
        except Exception as error:
            return type(error), str(error)

    for shape in [(1, 1, 1), (0, 1, 1), (1, 2, 2)]:
        for number, case in enumerate(CASES):
            expected, got = outcome(case, original, shape), outcome(case, ours, shape)
            assert expected == got, (shape, number, expected, got)

    assert isinstance(multiprocessing.Lock()._semlock, ours) and issubclass(ours, original)
    assert (ours.__name__, ours.__module__, ours.SEM_VALUE_MAX) == ("SemLock", "_multiprocessing", original.SEM_VALUE_MAX)
    from concagent import core
    for name in ("acquire", "release", "__enter__", "__exit__"):
        method = ours.__dict__[name]
        assert (method.__name__, method.__qualname__) == (name, "SemLock." + name)
        assert (type(method) is type(original.__dict__[name])) == (core.NAME == "c"), "the fast methods are in place"
    odd = make(ours, 1, 1, 1)
    for strange in (None, 5, object()) if core.NAME == "c" else (None,):
        odd.cell = strange
        assert odd.acquire() and not odd.acquire(False) and odd.release() is None
    lock = multiprocessing.Lock()
    lock.acquire()
    concagent.uninstall()
    assert _multiprocessing.SemLock is original
    assert not lock.acquire(False)
    lock.release()
    assert lock.acquire(False)
    print("DONE")
"""


HOLDS = """
    import concagent
    concagent.install(log=False, stderr=False, socket=False)
    import multiprocessing, os, sys, threading
    from concagent import core, shared

    CTX = multiprocessing.get_context("fork")
    ME = os.getpid(), threading.get_native_id()

    def holder(lock):
        found = lock._semlock.cell.holder()
        return None if found is None else (found.pid, found.native_id)

    def line(lock):
        return shared.site_of(lock._semlock.cell.holder().site)[1].line

    def here():
        return sys._getframe(1).f_lineno

    for make in (CTX.Lock, CTX.RLock):
        lock = make()
        cell = lock._semlock.cell
        assert (holder(lock), cell.hold) == (None, None) and cell.place

        with lock: first = (holder(lock), line(lock), here(), cell.hold, cell.hold)
        assert first[0] == ME and first[1] == first[2], first
        assert first[3] is first[4] and first[3][0] is core.current_record() and first[3][3]
        assert (holder(lock), cell.hold) == (None, None)

        lock.acquire(); second = (holder(lock), line(lock), here(), cell.hold)
        assert second[0] == ME and second[1] == second[2] and second[3] is not first[3] and not second[3][3]
        before = shared.board().holder(cell.place)
        assert cell.hold[1] is sys._getframe().f_code
        if make == CTX.RLock:
            lock.acquire()
            lock.release()
        assert shared.board().holder(cell.place) == before and cell.hold is second[3]

        seen = []
        child = CTX.Process(target=lambda: (sys.exit(10 * (holder(lock) == ME) + (cell.hold is None))))
        child.start(); child.join()
        assert child.exitcode == 11, child.exitcode
        waiter = threading.Thread(target=lambda: (lock.acquire(), seen.append(holder(lock)), lock.release()))
        waiter.start()
        lock.release()
        waiter.join()
        assert seen == [(os.getpid(), waiter.native_id)] and holder(lock) is None

        # A place that was given to another lock is left alone, and another one is found.
        board, place = shared.board(), cell.place
        board._give(place, 4711, 0)
        with lock:
            assert cell.place not in (0, place) and holder(lock) == ME
            assert board.holder(place) is None
            board._give(place, 4712, 0)
            board._give(cell.place, 4713, 0)
        assert board.holder(place) is None and holder(lock) is None

    lock = CTX.Lock()
    lock.acquire()
    giver = threading.Thread(target=lock.release)
    giver.start(); giver.join()
    assert lock._semlock.cell.foreign and holder(lock) is None
    lock.acquire()
    assert holder(lock) is None, "a lock that is used as a signal has no holder"

    semaphore = CTX.BoundedSemaphore(2)
    semaphore.acquire(); semaphore.acquire(); semaphore.release(); semaphore.release()
    try:
        semaphore.release()
    except ValueError:
        print("DONE")
    from concagent import state
    assert not state.errors(), state.error_texts()
"""


def run(text: str, core: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CONCAGENT_")}
    environment["CONCAGENT_CORE"] = core

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)], capture_output=True, text=True, timeout=60, env=environment
    )

    assert (done.returncode, done.stdout) == (0, "DONE\n"), done.stderr[-3000:]


@pytest.fixture(params=["c", "python"])
def twin(request: pytest.FixtureRequest) -> str:
    if request.param == "c":
        pytest.importorskip("concagent._core")
    return str(request.param)


def test_the_replacement_answers_as_the_original_and_goes_on_as_one(twin: str) -> None:
    run(PROGRAM, twin)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is a board on Linux only")
def test_the_holder_is_on_the_board_while_a_lock_is_held_and_only_then(twin: str) -> None:
    run(HOLDS, twin)
