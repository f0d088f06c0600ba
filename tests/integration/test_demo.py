"""`make demo` shows what it says, and says so if it does not."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

Done = subprocess.CompletedProcess[str]

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "examples" / "demo.py"

# `make test` installs no examples/requirements.txt, but rich is a dependency of concagent's command line.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("rich") is None, reason="the demo's program uses rich")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def shown(scratch: Path) -> subprocess.CompletedProcess[str]:
    """Run the demonstration once, without a terminal, in a folder that is not the checkout's."""
    return run_demo(scratch)


def run_demo(scratch: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    for name in ("examples", "tmp"):
        (scratch / name).mkdir(exist_ok=True)
    for name in ("demo.py", "nightly_backup.py"):
        (scratch / "examples" / name).write_text((ROOT / "examples" / name).read_text())
    # A short path: the agent's socket lies below TMPDIR, and its name has room for 107 bytes.
    environment = {**os.environ, "TMPDIR": "/tmp", **environment}
    return subprocess.run(
        [sys.executable, "examples/demo.py"],
        cwd=scratch,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_demo_ends_by_itself_and_shows_all_that_it_claims(shown: Done) -> None:
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert shown.stderr == ""
    assert "9 of 9 claims shown" in shown.stdout
    assert "FAILED" not in shown.stdout


def test_the_demo_shows_the_report_of_a_proven_deadlock_in_a_released_package(shown: Done) -> None:
    report = shown.stdout.partition("2. It hangs")[2].partition("3. The same")[0]

    assert "DEADLOCK, proven" in report
    # Python 3.10 does not tell a function's class.
    for owner, file in ("Live", "live.py"), ("Console", "console.py"):
        assert f'RLock "{owner if sys.version_info >= (3, 11) else "self"}._lock"' in report
        assert f"/rich/{file}" in report
    assert "with self.live._lock:" in report
    assert 'print(f"warning: volume {self.job} is 93 % full")' in report


def test_the_demo_shows_figures_of_its_own_endpoint_before_and_after(shown: Done) -> None:
    figures = shown.stdout.partition("3. The same")[2].partition("4. Who")[0].split()

    at = figures.index("concagent_deadlocked_threads")
    assert figures[at + 1 : at + 4] == ["0", "->", "2"]


def test_the_demo_shows_the_answer_to_the_signal_and_says_where_all_of_it_is(shown: Done, scratch: Path) -> None:
    answer = shown.stdout.partition("4. Who")[2].partition("5. The same")[0]

    assert "CONCAGENT REPORT" in answer
    assert "asked for by SIGUSR1" in answer
    assert "build/demo/sigusr1.txt" in answer
    assert "MainThread" in (scratch / "build/demo/sigusr1.txt").read_text()


def test_the_demo_leaves_a_picture_of_both_threads_and_both_locks(shown: Done, scratch: Path) -> None:
    picture = scratch / "build/demo/deadlock.svg"

    assert str(picture) in shown.stdout
    words = " ".join(ElementTree.parse(picture).getroot().itertext())
    assert all(word in words for word in ("Thread-1", "copier_", "live.py:", "console.py:"))


def test_the_demo_shows_that_the_same_program_recovers(shown: Done) -> None:
    recovery = shown.stdout.partition("8. The same")[2]

    assert "backup ended: " in recovery
    assert "DeadlockError: deadlock of 2 threads" in recovery
    assert "Exit status 0." in recovery


def test_the_demo_is_plain_text_where_there_is_no_terminal(shown: Done) -> None:
    assert "\033" not in shown.stdout


@pytest.mark.usefixtures("shown")
def test_the_demo_leaves_nothing_but_its_three_files(scratch: Path) -> None:
    left = {str(path.relative_to(scratch)) for path in scratch.rglob("*") if path.is_file()}

    assert left == {
        "examples/demo.py",
        "examples/nightly_backup.py",
        "build/demo/deadlock.svg",
        "build/demo/findings.jsonl",
        "build/demo/sigusr1.txt",
    }


def test_the_demo_fails_where_the_program_does_not_deadlock(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "demo.py").write_text(DEMO.read_text())
    (tmp_path / "examples" / "nightly_backup.py").write_text("print('backup ended: nothing to do')\n")

    done = subprocess.run(
        [sys.executable, "examples/demo.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 1
    assert "FAILED  the demonstration comes to its end: the program came to its end 3 times" in done.stdout
