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
    lock = multiprocessing.Lock()
    lock.acquire()
    concagent.uninstall()
    assert _multiprocessing.SemLock is original
    assert not lock.acquire(False)
    lock.release()
    assert lock.acquire(False)
    print("DONE")
"""


def test_the_replacement_answers_as_the_original_and_goes_on_as_one() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CONCAGENT_") or "CORE" in key}

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)], capture_output=True, text=True, timeout=60, env=environment
    )

    assert (done.returncode, done.stdout) == (0, "DONE\n"), done.stderr[-3000:]
