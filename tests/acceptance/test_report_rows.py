"""Rows M01-M04, M06, M11, M14, M15, E21: what is told, to whom, and how often."""

from __future__ import annotations

import datetime
import re
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest

E01 = """
    import threading
    from scaffold import Meeting
    A = threading.Lock()
    B = threading.Lock()
    both = Meeting(2)

    def transfer(first, second):
        with first:
            both.wait()
            inner(second)

    def inner(lock):
        with lock:
            pass

    pairs = ((A, B), (B, A))
    threads = [threading.Thread(target=transfer, args=pair, name=f"T{{i}}", daemon=True) for i, pair in enumerate(pairs)]
    for thread in threads:
        thread.start()
    {main}
    """
JOIN = "for thread in threads: thread.join()"
READY = "print('ready', flush=True)\n    " + JOIN

# ---------------------------------------------------------------- M01

# DESIGN.md, section 5, by hand: a type or tuple of types; [x] is a list of x; {...} an object with exactly these keys.
NULL = type(None)
NUMBER = (int, float)
SITE = {"file": str, "line": int, "function": str}
FRAME = {**SITE, "source": str}
SCHEMA = {
    "schema": int,
    "kind": str,
    "resource_kind": str,
    "confidence": str,
    "id": str,
    "fingerprint": str,
    "time": NUMBER,
    "pid": int,
    "title": str,
    "detail": (str, NULL),
    "reason": (str, NULL),
    "actors": [
        {
            "id": str,
            "type": str,
            "pid": int,
            "native_id": (int, NULL),
            "name": str,
            "daemon": bool,
            "waits_for": (str, NULL),
            "waiting_since": (*NUMBER, NULL),
            "timed": bool,
            "holds": [str],
            "role": str,
            "stack": [FRAME],
        }
    ],
    "resources": [
        {
            "id": str,
            "kind": str,
            "name": (str, NULL),
            "created": (SITE, NULL),
            "holders": [{"actor": str, "acquired": (SITE, NULL), "since": (*NUMBER, NULL)}],
            "detail": (str, NULL),
        }
    ],
    "edges": [[str]],
    "order": [object],
    "count": int,
    "advice": str,
    "suppress": str,
}


def problems(value: Any, schema: Any, at: str = "$") -> list[str]:
    """Return where a value is not as the schema says."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{at}: {value!r} is no object"]
        wrong = [f"{at}: keys {set(value) ^ set(schema)}"] if set(value) != set(schema) else []
        return wrong + [p for key in schema if key in value for p in problems(value[key], schema[key], f"{at}.{key}")]
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{at}: {value!r} is no list"]
        return [p for i, item in enumerate(value) for p in problems(item, schema[0], f"{at}[{i}]")]
    if isinstance(schema, tuple):
        return (
            [] if any(not problems(value, one, at) for one in schema) else [f"{at}: {value!r} is not one of {schema}"]
        )
    good = isinstance(value, schema) and not (schema is int and isinstance(value, bool))
    return [] if good else [f"{at}: {value!r} is no {schema.__name__}"]


def test_m01_a_report_has_every_field_of_the_wire_format(runner: Any, shape: str) -> None:
    found = runner.hangs(E01.format(main=JOIN), shape=shape).only

    assert problems(found, SCHEMA) == []
    assert found["schema"] == 1
    assert re.fullmatch(r"[0-9a-f]{16}", found["fingerprint"])
    assert found["advice"]
    assert found["suppress"].startswith(f"deadlock: fingerprint={found['fingerprint']}")
    members = {actor["name"]: actor for actor in found["actors"] if actor["role"] == "member"}
    assert set(members) == {"T0", "T1"}
    resources = {resource["id"]: resource for resource in found["resources"]}
    for actor in members.values():
        wanted, held = resources[actor["waits_for"]], resources[actor["holds"][0]]
        assert {wanted["name"], held["name"]} == {"A", "B"}
        assert held["holders"][0]["actor"] == actor["id"]
        assert held["holders"][0]["acquired"]["function"] == "transfer"
        assert [frame["function"] for frame in actor["stack"]][-2:] == ["transfer", "inner"]
        assert actor["stack"][-1]["source"] == "with lock:"
        assert [actor["id"], "waits", wanted["id"]] in found["edges"]
        assert [held["id"], "held-by", actor["id"]] in found["edges"]
    lines = {
        resource["name"]: resource["created"]["line"] for resource in resources.values() if resource["kind"] == "lock"
    }
    assert lines["B"] == lines["A"] + 1


def test_m01_the_fingerprint_is_the_same_in_another_run(runner: Any) -> None:
    one, other = (runner.hangs(E01.format(main=JOIN)).only for _ in range(2))

    assert one["fingerprint"] == other["fingerprint"]
    assert one["pid"] != other["pid"]


# ---------------------------------------------------------------- M02, M03, M06


def suppressed(runner: Any, folder: Path, text: str, program: str = E01.format(main=JOIN)) -> list[dict[str, Any]]:
    """Return what is found in a program with this suppressions file."""
    file = folder / "suppressions"
    file.write_text(text, encoding="utf-8")
    child = runner.start(program, suppressions=file, metrics_port=0)
    child.until(lambda: bool(child.findings()) or child.process.poll() is not None or waited(child))
    child.linger()
    return child.end().findings  # type: ignore[no-any-return]


def waited(child: Any) -> bool:
    """Return True two seconds after the first call: by then a deadlock would have been told."""
    import time

    child.first = getattr(child, "first", time.monotonic())
    return time.monotonic() - child.first > 2


@pytest.mark.parametrize("pattern", ["frame=transfer", "frame=inner", "lock=A", "file=*/program.py"])
def test_m02_a_pattern_that_matches_anywhere_in_the_ring_suppresses(runner: Any, tmp_path: Path, pattern: str) -> None:
    assert suppressed(runner, tmp_path, f'deadlock: {pattern} reason="known"\n') == []


@pytest.mark.parametrize("pattern", ["frame=withdraw", "lock=C", "file=*/other.py"])
def test_m02_twin_a_pattern_that_matches_nothing_does_not(runner: Any, tmp_path: Path, pattern: str) -> None:
    found = suppressed(runner, tmp_path, f'deadlock: {pattern} reason="known"\n')

    assert [finding["kind"] for finding in found] == ["deadlock"]


def test_m03_a_suppression_of_deadlocks_does_not_hide_a_leak(runner: Any, tmp_path: Path) -> None:
    text = 'deadlock: file=*/program.py reason="known"\n'
    found = suppressed(runner, tmp_path, text, "def read():\n    file = open(__file__)\n    file.read()\nread()\n")

    assert [finding["kind"] for finding in found] == ["leak"]


def test_m03_twin_a_suppression_of_leaks_does(runner: Any, tmp_path: Path) -> None:
    text = 'leak: file=*/program.py reason="known"\n'

    assert suppressed(runner, tmp_path, text, "def read():\n    file = open(__file__)\n    file.read()\nread()\n") == []


def test_m06_an_expired_suppression_does_not_hide_and_is_named(runner: Any, tmp_path: Path) -> None:
    found = suppressed(runner, tmp_path, 'deadlock: lock=A reason="known" expires=2020-01-31\n')

    assert [finding["kind"] for finding in found] == ["deadlock"]
    assert "expired" in str(found[0])


def test_m06_twin_a_suppression_that_is_still_valid_hides(runner: Any, tmp_path: Path) -> None:
    tomorrow = datetime.date.today() + datetime.timedelta(days=1)

    assert suppressed(runner, tmp_path, f'deadlock: lock=A reason="known" expires={tomorrow}\n') == []


# ---------------------------------------------------------------- M04

M04 = """
    import threading
    import concagent
    from scaffold import finish
    L = threading.Lock()
    def release():
        try:
            L.release()
        except RuntimeError:
            pass
    for _ in range(1000):
        {body}
    print([finding.count for finding in concagent.findings()])
    """


def test_m04_a_thousand_times_the_same_is_one_report_with_its_count(runner: Any) -> None:
    outcome = runner.ends(M04.format(body="release()"))

    assert outcome.only["kind"] == "misuse"
    assert outcome.stdout == "[1000]\n"


def test_m04_twin_a_thousand_good_releases_are_silent(runner: Any) -> None:
    assert runner.silent(M04.format(body="L.acquire(); L.release()")).stdout == "[]\n"


# ---------------------------------------------------------------- M11

M11 = """
    import os, threading, time
    import concagent
    from scaffold import Gate, Meeting, finish, until
    agent = concagent.install()
    print(agent.metrics_port, flush=True)
    A = threading.Lock()
    B = threading.Lock()
    both = Meeting(2)

    def one(first, second):
        first.acquire()
        both.wait()
        second.acquire()
        second.release()
        if first is B:  # A is given back by main
            first.release()

    threads = [threading.Thread(target=one, args=pair) for pair in ((A, B), (B, A))]
    for thread in threads:
        thread.start()
    until(lambda: os.path.exists("recover"))
    A.release()
    for thread in threads:
        thread.join()
    until(lambda: os.path.exists("end"))
    finish()
    os._exit(0)
    """


def metric(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return float(re.search(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)[1])  # type: ignore[index]


def test_m11_the_gauge_of_deadlocked_threads_is_two_and_then_none(runner: Any) -> None:
    child = runner.start(M11, metrics_port=0)
    folder = child._folder
    assert child.wait_for_findings(1)
    port = int(child.stdout())

    assert metric(port, "concagent_deadlocked_threads") == 2
    assert metric(port, "concagent_blocked_threads") >= 2

    (folder / "recover").touch()

    assert child.until(lambda: metric(port, "concagent_deadlocked_threads") == 0)
    assert metric(port, "concagent_findings_total") == 1

    (folder / "end").touch()
    assert child.wait_for_end()
    assert child.end().stdout.endswith("DONE\n")


def test_m11_twin_without_a_deadlock_the_gauge_is_zero(runner: Any) -> None:
    sound = M11.replace("(B, A)", "(A, B)").replace("Meeting(2)", "Meeting(1)").replace("if first is B:", "if True:")
    child = runner.start(sound, metrics_port=0)
    assert child.until(lambda: child.stdout().endswith("\n"))

    assert metric(int(child.stdout()), "concagent_deadlocked_threads") == 0
    assert child.end().findings == []


# ---------------------------------------------------------------- M14, M15, E21


def ring_in(text: str) -> int:
    """Return how often the text shows the ring of T0 and T1, whichever comes first."""
    return len(re.findall(r'T([01]) -> \[lock "[AB]"\] -> T[01] -> \[lock "[AB]"\] -> T\1', text))


def ask(child: Any, times: int) -> str:
    """Send SIGUSR1 so many times, each after the last report; return what was written."""
    for _ in range(times):
        before = len(child.stderr())
        child.signal()
        assert child.until(lambda before=before: len(child.stderr()) > before)
        settle(child)
    return child.stderr()  # type: ignore[no-any-return]


def settle(child: Any) -> None:
    """Wait until standard error has been the same for a moment."""
    sizes = [-1, 0]
    while sizes[-1] != sizes[-2]:
        child.linger(0.15)
        sizes.append(len(child.stderr()))


MAINS = {
    "joins": JOIN,
    "polls": "import time\n    while threads: time.sleep(0.01)",
    "sleeps": "import time; time.sleep(60)",
    "blocked in acquire": "A.acquire()",
    "in select": "import select, os; select.select([os.pipe()[0]], [], [])",
}


@pytest.mark.parametrize("main", MAINS)
def test_m14_two_signals_during_a_deadlock_show_the_same_ring_twice(runner: Any, main: str) -> None:
    child = runner.start(E01.format(main=MAINS[main]))
    assert child.wait_for_findings(1)
    first = ask(child, 1)
    both = ask(child, 1)
    second = both[len(first) :]

    # On a busy machine one signal may be answered twice: its handler writes in pieces.
    assert all(ring_in(text) >= 1 for text in (first, second))
    assert child.process.poll() is None


def test_m14_twin_a_signal_without_a_deadlock_shows_none_and_harms_nothing(runner: Any) -> None:
    child = runner.start(
        """
        import os, threading
        from scaffold import finish, until
        L = threading.Lock()
        with L:
            print("ready", flush=True)
            until(lambda: os.path.exists("end"))
        finish()
        """
    )
    assert child.until(lambda: "ready" in child.stdout())
    text = ask(child, 2)
    (child._folder / "end").touch()
    assert child.wait_for_end()
    outcome = child.end()

    assert "MainThread" in text
    assert "held by" not in text
    assert outcome.stdout.endswith("DONE\n")
    assert (outcome.returncode, outcome.findings) == (0, [])


def test_m15_signals_while_the_agent_itself_is_reporting_harm_nothing(runner: Any) -> None:
    # Main is in the agent's own code nearly all the time: it makes reports, metrics and snapshots and is interrupted there.
    child = runner.start(
        """
        import io, os, threading
        import concagent
        from scaffold import finish
        L = threading.Lock()
        print("ready", flush=True)
        while not os.path.exists("end"):
            with L:
                concagent.report(io.StringIO())
                concagent.snapshot()
                concagent.install().statistics()
                try:
                    L.acquire(False) and L.release()
                except RuntimeError:
                    pass
        finish()
        """
    )
    assert child.until(lambda: "ready" in child.stdout())
    for _ in range(100):
        child.signal()
        child.linger(0.005)
    settle(child)
    (child._folder / "end").touch()
    assert child.wait_for_end()
    outcome = child.end()

    assert (outcome.returncode, outcome.findings) == (0, [])
    assert outcome.stdout.endswith("DONE\n")
    assert "MainThread" in outcome.stderr


def test_m15_a_handler_of_the_program_still_runs(runner: Any) -> None:
    child = runner.start(
        """
        import os, signal, threading
        from scaffold import finish, until
        came = []
        signal.signal(signal.SIGUSR1, lambda *_: came.append(1))
        import concagent
        concagent.install()
        print("ready", flush=True)
        until(lambda: came and os.path.exists("end"))
        finish()
        """,
        shape="plain",
    )
    assert child.until(lambda: "ready" in child.stdout())
    text = ask(child, 1)
    (child._folder / "end").touch()
    assert child.wait_for_end()

    assert child.end().stdout.endswith("DONE\n")
    assert "MainThread" in text


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_e21_with_nothing_told_by_itself_the_dump_names_the_ring(runner: Any, number: signal.Signals) -> None:
    # Passive: no log, no file, nobody listens; the holders are recorded all the same.
    child = runner.start(E01.format(main=READY), findings="none", report_signal=number.name)
    assert child.until(lambda: "ready" in child.stdout())
    child.linger(0.2)
    before = child.stderr()
    child.signal(number)
    assert child.until(lambda: "T1" in child.stderr())
    settle(child)

    assert before == ""
    assert ring_in(child.stderr()) >= 1
    assert child.process.poll() is None


def test_e21_twin_a_dump_of_a_program_without_a_ring_names_none(runner: Any) -> None:
    program = E01.format(main=READY).replace("both = Meeting(2)", "both = Meeting(1)")
    program = program.replace("(B, A)", "(A, B)").replace("        both.wait()", "        pause(60)")
    program = program.replace("import Meeting", "import Meeting, pause")
    child = runner.start(program, findings="none")
    assert child.until(lambda: "ready" in child.stdout())
    child.linger(0.2)
    child.signal()
    assert child.until(lambda: "T1" in child.stderr())
    settle(child)

    assert "DEADLOCK" not in child.stderr()


@pytest.mark.parametrize("asked", ["python", "auto"])
def test_the_core_that_an_option_asks_for_is_the_one_that_runs(runner: Any, asked: str) -> None:
    program = "from concagent import core\nprint(core.NAME, core._load_c()[0] is not None)\n"

    name, has_c = runner.ends(program, core=asked).stdout.split()

    assert name == ("python" if asked == "python" or has_c == "False" else "c")


def test_a_core_that_comes_too_late_is_refused(runner: Any) -> None:
    outcome = runner.silent(
        """
        import concagent
        from concagent import core
        other = "python" if core.NAME == "c" else "c"
        concagent.uninstall()
        try:
            concagent.install(core=other)
        except concagent.ConfigError as error:
            print("core" in str(error))
        """
    )

    assert outcome.stdout.split() == ["True"]
