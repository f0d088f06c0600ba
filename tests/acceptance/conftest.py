"""Runs one program of an acceptance row in a child process under the agent, and collects what was found.

A real deadlock must be killable, so each program is a process group of its own with a hard limit, and nothing of the agent
is in this process.  Two shapes: ``run``, the unchanged program under ``concagent run``; ``install``, the program that calls
``concagent.install()`` in its first line (``plain``: somewhere else, as its text says).
Findings are read from the JSON lines that the child writes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
LIMIT_SECONDS = 10.0
LINGER_SECONDS = 0.3  # time in which a second report of the same thing would come
POLL_SECONDS = 0.01


@dataclass
class Outcome:
    """How a child ended and what was found in it; ``returncode`` is None if it had to be killed."""

    returncode: int | None
    stdout: str
    stderr: str
    findings: list[dict[str, Any]]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [finding for finding in self.findings if finding["kind"] == kind]

    @property
    def kinds(self) -> list[str]:
        return [finding["kind"] for finding in self.findings]

    @property
    def only(self) -> dict[str, Any]:
        """Return the one finding that there must be."""
        assert len(self.findings) == 1, [f["title"] for f in self.findings] or f"nothing found; {self.stderr[-2000:]}"
        return self.findings[0]


class Child:
    """A running program."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, limit_seconds: float = LIMIT_SECONDS) -> None:
        self.process = process
        self._folder = folder
        self._deadline = time.monotonic() + limit_seconds

    def findings(self) -> list[dict[str, Any]]:
        try:
            text = (self._folder / "findings.jsonl").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def stdout(self) -> str:
        return (self._folder / "stdout").read_text(encoding="utf-8", errors="replace")

    def stderr(self) -> str:
        return (self._folder / "stderr").read_text(encoding="utf-8", errors="replace")

    def until(self, condition: Callable[[], bool]) -> bool:
        """Wait for a condition while the child runs; False at the limit or if it ended without."""
        while not condition():
            if self.process.poll() is not None:
                return condition()
            if time.monotonic() > self._deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def wait_for_findings(self, number: int) -> bool:
        """Wait until so many findings are written."""
        return self.until(lambda: len(self.findings()) >= number)

    def linger(self, seconds: float = LINGER_SECONDS) -> None:
        """Give a wrong second report time to come."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end)

    def wait_for_end(self) -> bool:
        return self.until(lambda: self.process.poll() is not None)

    def signal(self, number: int = signal.SIGUSR1) -> None:
        self.process.send_signal(number)

    def end(self) -> Outcome:
        """Kill what is left, and return what there was."""
        ended = self.process.poll()
        self.kill()
        return Outcome(ended, self.stdout(), self.stderr(), self.findings())

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


class Runner:
    """Starts children; those that are left at the end of the test are killed."""

    def __init__(self, folder: Path) -> None:
        self.limit_seconds = LIMIT_SECONDS
        self._folder = folder
        self._children: list[Child] = []

    def start(self, program: str, *, shape: str = "run", **options: object) -> Child:
        """Start a program; options are those of ``install``."""
        folder = self._folder / f"child{len(self._children)}" / "app"  # fingerprints have the last folder in them
        folder.mkdir(parents=True)
        script = folder / "program.py"
        text = textwrap.dedent(program).lstrip("\n")
        given = {"findings": folder / "findings.jsonl", "log": False, "socket": False, **options}
        environment = {key: value for key, value in os.environ.items() if not key.startswith("CONCAGENT_")}
        environment["PYTHONPATH"] = os.fspath(HERE)
        command = [sys.executable]
        if shape == "run":
            command += ["-m", "concagent", "run", *(word for item in given.items() for word in _flag(*item))]
        else:
            if shape == "install":
                text = "import concagent; concagent.install()\n" + text
            environment |= {f"CONCAGENT_{name.upper()}": _text(value) for name, value in given.items()}
        script.write_text(text, encoding="utf-8")
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            process = subprocess.Popen(
                [*command, os.fspath(script)],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        child = Child(process, folder, self.limit_seconds)
        self._children.append(child)
        return child

    def hangs(self, program: str, number: int = 1, **options: Any) -> Outcome:
        """Return what is found in a program that hangs, once ``number`` findings are there and no more come."""
        child = self.start(program, **options)
        child.wait_for_findings(number)
        child.linger()
        return child.end()

    def ends(self, program: str, **options: Any) -> Outcome:
        """Return what is found in a program that comes to its end by itself."""
        child = self.start(program, **options)
        ended = child.wait_for_end()
        outcome = child.end()
        assert ended, (
            f"hangs: {outcome.stdout[-500:]} {[f['title'] for f in outcome.findings]} {outcome.stderr[-2000:]}"
        )
        return outcome

    def silent(self, program: str, **options: Any) -> Outcome:
        """Run a program that must come to a good end with nothing found."""
        outcome = self.ends(program, **options)
        assert outcome.returncode == 0, outcome.stderr[-2000:]
        assert outcome.findings == [], [f"{f['kind']} {f['confidence']}: {f['title']}" for f in outcome.findings]
        return outcome

    def close(self) -> None:
        for child in self._children:
            child.kill()


def _flag(name: str, value: object) -> list[str]:
    words = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{words}" if value else f"--no-{words}"]
    return [f"--{words}", str(value)]


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    runner = Runner(tmp_path)
    yield runner
    runner.close()


@pytest.fixture(params=["run", "install"])
def shape(request: pytest.FixtureRequest) -> str:
    """Both ways to bring the agent into a program."""
    return str(request.param)


@pytest.fixture
def assert_deadlock() -> Callable[..., None]:
    return _assert_deadlock


def _assert_deadlock(finding: dict[str, Any], members: int, behind: int = 0) -> None:
    """Check a proven deadlock of so many members: complete, and told within a second of the last block."""
    assert (finding["kind"], finding["confidence"]) == ("deadlock", "proven"), finding["title"]
    roles = [actor["role"] for actor in finding["actors"]]
    assert (roles.count("member"), roles.count("behind")) == (members, behind), finding["title"]
    inside = [actor for actor in finding["actors"] if actor["role"] == "member"]
    assert finding["time"] - max(actor["waiting_since"] for actor in inside) < 1.0
    resources = {resource["id"]: resource for resource in finding["resources"]}
    followed = {actor["id"]: resources[actor["waits_for"]]["holders"][0]["actor"] for actor in inside}
    seen, at = [], inside[0]["id"]
    while at not in seen:
        seen.append(at)
        at = followed[at]
    assert at == inside[0]["id"]
    assert len(seen) == members
    assert all(actor["stack"] and actor["stack"][-1]["source"] for actor in inside)
