"""Row D04 and its kin: locks on files, taken by ``flock`` itself or by a library that polls."""

from __future__ import annotations

import sys
import textwrap
from typing import Any

import pytest
from pollinglibrary import LIBRARY

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="who has a lock on a file can be asked on Linux only"
)

HEAD = """
    import os, sys
    if REAL:
        sys.path.pop(0)
    from filelock import FileLock
    import fcntl, subprocess, threading, time
    from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, flock
    from scaffold import Gate, Meeting, finish, pause, until, waiting
    def start(function, *args, **options):
        thread = threading.Thread(target=function, args=args, **options)
        thread.start()
        return thread
    def other_process(seconds, path="a.lock"):
        code = f"import fcntl, time; f = open({path!r}, 'w'); fcntl.flock(f, 2); print(1, flush=True); time.sleep({seconds})"
        child = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE)
        child.stdout.readline()
        return child
    def poll(file):
        while True:
            try:
                return flock(file, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                time.sleep(0.02)
    """


def program(body: str, *, real: bool = False) -> str:
    head = "" if real else f"open('filelock.py', 'w').write({LIBRARY!r})\n"
    tail = "from concagent import state; assert not state.errors(), state.error_texts()\nfinish()\n"
    return f"REAL = {real}\n" + head + textwrap.dedent(HEAD) + textwrap.dedent(body) + tail


TWICE = """
    def save():
        with FileLock("a.lock"):
            pass
    def update():
        with FileLock("a.lock"):
            save()
    """


def assert_ring(found: dict[str, Any], confidence: str, *names: str) -> None:
    assert (found["kind"], found["confidence"]) == ("deadlock", confidence), found["title"]
    members = sorted(actor["name"] for actor in found["actors"] if actor["role"] == "member")
    assert members == sorted(names), found["title"]
    assert "file-lock" in {resource["kind"] for resource in found["resources"]}


def test_d04_two_file_locks_on_one_file_in_one_thread_are_a_deadlock(
    runner: Any, shape: str, assert_deadlock: Any
) -> None:
    outcome = runner.hangs(program(TWICE + "\n    update()\n"), shape=shape)

    assert_ring(outcome.only, "proven", "MainThread")
    assert_deadlock(outcome.only | {"time": 0}, 1)
    assert '"a.lock"' in outcome.only["title"]
    assert outcome.only["resources"][0]["holders"][0]["acquired"]["function"] == "update"


def test_d04_with_the_real_filelock(runner: Any) -> None:
    version = pytest.importorskip("filelock").__version__
    if tuple(map(int, version.split(".")[:2])) > (3, 20):
        pytest.skip("it refuses this itself")

    outcome = runner.hangs(program(TWICE + "\n    update()\n", real=True))

    assert_ring(outcome.only, "proven", "MainThread")


PROVEN = {
    "with others alive": (TWICE + "\n    start(pause, 600, daemon=True); update()\n", ("MainThread",)),
    "in a thread": (TWICE + "\n    start(update, name='one').join()\n", ("one",)),
    "flock": (
        """
        one, two = open("a", "w"), open("a", "w")
        flock(one, LOCK_EX)
        flock(two, LOCK_EX)
        """,
        ("MainThread",),
    ),
    "a shared lock": (
        """
        one, two = open("a", "w"), open("a", "w")
        flock(one.fileno(), LOCK_SH)
        flock(two.fileno(), LOCK_EX)
        """,
        ("MainThread",),
    ),
    "opposite order": (
        """
        meeting = Meeting(2)
        def take(first, second):
            with FileLock(first):
                meeting.wait()
                with FileLock(second):
                    pass
        start(take, "a", "b", name="one")
        start(take, "b", "a", name="two")
        """,
        ("one", "two"),
    ),
    "opposite order of flock": (
        """
        meeting = Meeting(2)
        def take(first, second):
            with open(first, "w") as outer, open(second, "w") as inner:
                flock(outer, LOCK_EX)
                meeting.wait()
                flock(inner, LOCK_EX)
        start(take, "a", "b", name="one")
        start(take, "b", "a", name="two")
        """,
        ("one", "two"),
    ),
    "a file and a lock": (
        """
        meeting, lock = Meeting(2), threading.Lock()
        def file_first():
            with FileLock("a"):
                meeting.wait()
                with lock:
                    pass
        def lock_first():
            with lock:
                meeting.wait()
                with FileLock("a"):
                    pass
        start(file_first, name="one")
        start(lock_first, name="two")
        """,
        ("one", "two"),
    ),
}


@pytest.mark.parametrize("case", PROVEN.values(), ids=PROVEN)
def test_d04_rings_through_locks_on_files_are_deadlocks(runner: Any, case: tuple[str, tuple[str, ...]]) -> None:
    body, names = case

    outcome = runner.hangs(program(body))

    assert_ring(outcome.only, "proven", *names)


SUSPECTED = {
    "code that may give up": """
        with open("a", "w") as one, open("a", "w") as two:
            flock(one, LOCK_EX)
            poll(two)
        """,
    "another thread could close the file": """
        one, two = open("a", "w"), open("a", "w")
        start(pause, 600, daemon=True)
        flock(one, LOCK_EX)
        flock(two, LOCK_EX)
        """,
    "acquire without with, another thread could release": """
        one = FileLock("a").acquire()
        start(pause, 600, daemon=True)
        FileLock("a").acquire()
        """,
}


@pytest.mark.parametrize("body", SUSPECTED.values(), ids=SUSPECTED)
def test_d04_what_could_still_end_is_suspected(runner: Any, body: str) -> None:
    outcome = runner.hangs(program(body), stall_after=1)

    assert_ring(outcome.only, "suspected", "MainThread")
    assert outcome.only["reason"]


def test_d04_two_threads_that_try_again_and_again_are_one_suspicion(runner: Any) -> None:
    body = """
        meeting = Meeting(2)
        def take(first, second):
            with open(first, "w") as one, open(second, "w") as two:
                flock(one, LOCK_EX)
                meeting.wait()
                poll(two)
        start(take, "a", "b", name="one")
        start(take, "b", "a", name="two")
        """

    outcome = runner.hangs(program(body), stall_after=1)

    assert_ring(outcome.only, "suspected", "one", "two")


def test_d04_a_blocking_flock_that_closes_a_ring_can_be_a_victim(runner: Any) -> None:
    body = """
        import concagent
        one, two = open("a", "w"), open("a", "w")
        flock(one, LOCK_EX)
        try:
            flock(two, LOCK_EX)
        except concagent.DeadlockError as error:
            flock(one, LOCK_UN)
        """

    outcome = runner.ends(program(body), recover="raise")

    assert outcome.stdout == "DONE\n"
    assert [actor["role"] for actor in outcome.only["actors"]] == ["victim"]


SOUND = {
    "another process has it": """
        child = other_process(2)
        with FileLock("a.lock"):
            pass
        child.wait()
        """,
    "flock waits for another process": """
        child = other_process(2)
        with open("a.lock", "w") as file:
            flock(file, LOCK_EX)
        child.wait()
        """,
    "lockf": """
        with open("a", "w") as one, open("a", "w") as two:
            fcntl.lockf(one, LOCK_EX)
            fcntl.lockf(two, LOCK_EX)
            os.lockf(two.fileno(), os.F_LOCK, 0)
        """,
    "it has a time limit": """
        with FileLock("a"):
            try:
                FileLock("a").acquire(timeout=2.5)
            except TimeoutError:
                pass
        """,
    "code that gives up": """
        with open("a", "w") as one, open("a", "w") as two:
            flock(one, LOCK_EX)
            for _ in range(60):
                try:
                    flock(two, LOCK_EX | LOCK_NB)
                except BlockingIOError:
                    time.sleep(0.03)
        """,
    "somebody else releases": """
        one = FileLock("a").acquire()
        start(lambda: (pause(2.5), one.release()))
        FileLock("a").acquire()
        """,
    "somebody else unlocks": """
        one, two = open("a", "w"), open("a", "w")
        flock(one, LOCK_EX)
        start(lambda: (pause(2.5), flock(one, LOCK_UN)))
        flock(two, LOCK_EX)
        """,
    "shared by both": """
        one, two = open("a", "w"), open("a", "w")
        flock(one, LOCK_SH)
        flock(two, LOCK_SH)
        """,
    "one opening, two descriptors": """
        one = open("a", "w")
        two = os.dup(one.fileno())
        flock(one, LOCK_EX)
        flock(two, LOCK_EX)
        flock(one, LOCK_SH)
        """,
    "closed": """
        child = other_process(2, "b")
        for _ in range(3):
            one = open("b", "w")
            flock(one, LOCK_EX)
            one.close()
            two = os.open("b", os.O_RDWR)
            flock(two, LOCK_EX)
            os.close(two)
        child.wait()
        """,
    "the parent of a fork has it, and releases": """
        one = FileLock("a").acquire()
        child = os.fork()
        if child == 0:
            with open("a", "w") as two:
                flock(two, LOCK_EX)
            os._exit(0)
        pause(2)
        one.release()
        os.waitpid(child, 0)
        """,
    "the child of a fork releases": """
        one = open("a", "w")
        flock(one, LOCK_EX)
        if os.fork() == 0:
            pause(2)
            flock(one, LOCK_UN)
            os._exit(0)
        two = open("a", "w")
        flock(two, LOCK_EX)
        """,
    "one order": """
        def take():
            for _ in range(5):
                with FileLock("a"), FileLock("b"):
                    pause(0.1)
        threads = [start(take) for _ in range(3)]
        for thread in threads:
            thread.join()
        """,
    "a class keeps flock": """
        class Locker:
            lock = fcntl.flock
        with open("a", "w") as file:
            Locker().lock(file, LOCK_EX)
        """,
}


@pytest.mark.parametrize("body", SOUND.values(), ids=SOUND)
def test_d04_ordinary_use_of_locks_on_files_is_silent(runner: Any, body: str) -> None:
    runner.silent(program(body), recover="raise")  # which would raise at a ring that is not yet told


@pytest.mark.parametrize("body", ["one.close()", "flock(one, LOCK_UN)", "os.close(os.dup(one.fileno())); one.close()"])
def test_d04_what_was_given_up_or_closed_is_no_hold_any_more(runner: Any, body: str) -> None:
    """The file is kept by another process meanwhile: who waits for it waits for nobody here."""
    outcome = runner.silent(
        program(
            f"""
            one, two = open("a.lock", "w"), open("a.lock", "w")
            flock(one, LOCK_EX)
            {body}
            child = other_process(2)
            flock(two, LOCK_EX)
            child.wait()
            """
        ),
        stall_after=1,
    )

    assert outcome.stdout == "DONE\n"


def test_d04_errors_are_those_of_the_originals(runner: Any) -> None:
    body = """
        file = open("c", "w")
        def errors(flock, lockf, os_lockf):
            for call in (
                lambda: flock(-1, LOCK_EX), lambda: flock("x", LOCK_UN), lambda: flock(object(), LOCK_EX | LOCK_NB),
                lambda: flock(99999, LOCK_EX), lambda: flock(0, "x"), lambda: flock(file, 64),
                lambda: lockf(-1, LOCK_EX), lambda: lockf(99999, LOCK_EX), lambda: lockf("x", LOCK_UN),
                lambda: os_lockf("x", os.F_LOCK, 0), lambda: os_lockf(99999, os.F_LOCK, 0),
            ):
                try:
                    yield call()
                except Exception as error:
                    yield type(error), str(error)
        ours = list(errors(fcntl.flock, fcntl.lockf, os.lockf))
        originals = list(errors(fcntl.flock.__wrapped__, fcntl.lockf.__wrapped__, os.lockf.__wrapped__))
        assert len(ours) == 11
        differing = [pair for pair in zip(ours, originals) if pair[0] != pair[1]]
        print(differing)
        file.close()
        """

    outcome = runner.silent(program(body))

    assert outcome.stdout == "[]\nDONE\n"
