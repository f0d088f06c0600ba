"""`make demo`: the agent on a real program that really deadlocks, and everything that it has to say about it.

The program is ``nightly_backup.py`` beside this file: 60 lines around rich, as released on PyPI.  It is started as a user
would start it, with ``python -m concagent run``; whatever is shown comes from the process itself (its standard error,
its port, its socket), and the exit status is 0 only if each step has shown what it claims.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROGRAM = HERE / "nightly_backup.py"
ATTEMPTS = 3  # a race can be won; the program is then simply run again
PATIENCE_SECONDS = 15.0
BOLD = sys.stdout.isatty() and "NO_COLOR" not in os.environ
# Figures that change anyway, or that only fill the page here.
DULL = ("_bucket", "_sum", "_created", "agent_cpu_seconds", "lock_acquisitions", "lock_class")


class Failed(Exception):  # noqa: N818 - not an error of the program
    """A step that cannot go on; the message says what was missing."""


class Demo:
    """What was claimed, and whether it was so."""

    def __init__(self) -> None:
        self.scratch = Path(tempfile.mkdtemp(prefix="concagent-demo-"))
        self.output = output_folder()
        self.claims: list[tuple[bool, str]] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("CONCAGENT_")}
        # rich is to believe that its output goes to a terminal; sockets and report files go to our own folder.
        self.environment |= {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "TERM": "xterm", "COLUMNS": "80"}
        self.environment |= {"XDG_RUNTIME_DIR": str(self.scratch), "PYTHONUNBUFFERED": "1"}

    def claim(self, text: str, true: bool) -> bool:
        """Note a claim, and say so at once if it is wrong."""
        self.claims.append((true, text))
        if not true:
            say(f"NOT SHOWN: {text}")
        return true

    def start(self, name: str, *options: str) -> Path:
        """Start the program under the agent; returns the path of its standard error."""
        out, err = self.scratch / f"{name}.out", self.scratch / f"{name}.err"
        command = [sys.executable, "-m", "concagent", "run", *options, str(PROGRAM)]
        with out.open("wb") as stdout, err.open("wb") as stderr:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=self.environment
            )
        return err

    def running(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            raise Failed("the program was not started")
        return self.process

    def end(self) -> int | None:
        """End the program if it still runs; returns the status that it had, None if it had to be ended."""
        process, self.process = self.process, None
        if process is None:
            return None
        status = process.poll()
        if status is None:
            process.kill()
            process.wait()
        return status

    def concagent(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of concagent's, as a user at another terminal would."""
        command = [sys.executable, "-m", "concagent", *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=30, check=False)

    # ------------------------------------------------------------ the steps

    def run(self) -> None:
        heading("The program")
        say(
            f"examples/nightly_backup.py copies volumes in two threads, under a progress bar of rich {version('rich')}, with a "
            "panel for each. It uses no lock. Its third volume is nearly full, and says so with print()."
        )
        finding, err, before, port = self.hang()
        pid = self.running().pid
        self.show_report(finding, err)
        self.show_metrics(before, port)
        self.show_signal(pid, err)
        self.show_socket(pid)
        self.show_picture()
        self.show_end()
        self.show_recovery()

    def hang(self) -> tuple[dict[str, Any], Path, dict[str, float], int]:
        """Run until the agent has found something; returns it, standard error, the figures before, and the port."""
        self.findings = self.output / "findings.jsonl"
        for _ in range(ATTEMPTS):
            self.findings.unlink(missing_ok=True)
            port = free_port()
            options = ["--findings", str(self.findings), "--stderr", "--no-log", "--metrics-port", str(port)]
            heading("1. Start it under the agent")
            shown = ["--findings", relative(self.findings), *options[2:], relative(PROGRAM)]
            show(f"$ python -m concagent run {shlex.join(shown)}")
            err = self.start("hanging", *options)
            before: dict[str, float] = {}
            deadline = time.monotonic() + PATIENCE_SECONDS
            scraped = 0.0
            while time.monotonic() < deadline and self.running().poll() is None:
                # A reader can see the first pages of a line before the last ones: one that has no end is not there yet.
                if self.findings.exists() and "\n" in (text := self.findings.read_text()):
                    seen = time.time()
                    line = text.splitlines()[0]
                    finding = json.loads(line)
                    last_block = max(actor["waiting_since"] for actor in members(finding))
                    self.seen_ms = (seen - last_block) * 1e3
                    self.found_ms = (finding["time"] - last_block) * 1e3
                    return finding, err, before, port
                if time.monotonic() - scraped > (0.25 if before else 0.02):
                    now = self.scrape(port)
                    before = now if now.get("concagent_open_deadlocks") == 0 else before
                    scraped = time.monotonic()
                time.sleep(0.0005)
            if self.end() is None:
                raise Failed(f"nothing found in {PATIENCE_SECONDS:.0f} s; standard error:\n{tail(err)}")
            say("This time the threads missed each other and it came to its end. Once more.")
        raise Failed(f"the program came to its end {ATTEMPTS} times")

    def scrape(self, port: int) -> dict[str, float]:
        """Return /metrics as name -> value; {} while nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            return {}
        rows = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in rows}

    def show_report(self, finding: dict[str, Any], err: Path) -> None:
        heading("2. It hangs, and the agent says why")
        say("This is on the program's standard error, written the moment the last of the threads blocked:")
        text = wait_for_text(err, "fingerprint " + finding["fingerprint"], "the report on standard error")
        report = text.partition("\n== concagent")[0].strip("\n")
        show(report)
        names = {actor["name"] for actor in members(finding)}
        wanted = {actor["waits_for"] for actor in members(finding)}
        locks = [resource for resource in finding["resources"] if resource["id"] in wanted]
        made = {os.path.basename(resource["created"]["file"]) for resource in locks}
        called = " and ".join(
            f"{resource['name']} (of {os.path.basename(resource['created']['file'])})" for resource in locks
        )
        self.claim(
            f"a proven deadlock of {' and '.join(sorted(names))} over {called}",
            (finding["kind"], finding["confidence"]) == ("deadlock", "proven")
            and len(names) == 2
            and made == {"live.py", "console.py"},
        )
        places = ("live.py", "console.py", "nightly_backup.py")
        quoted = all(place in report for place in places) and "with self.live._lock:" in report
        self.claim("the report quotes the lines of rich that take and want the locks, and ours that printed", quoted)
        self.claim(f"found {self.seen_ms:.1f} ms after the last block", 0 <= self.seen_ms < 1000)

    def show_metrics(self, before: dict[str, float], port: int) -> None:
        heading("3. The same for dashboards and alerts: /metrics")
        show(f"$ curl http://127.0.0.1:{port}/metrics      # once while it worked, once now; what changed:")
        during = self.scrape(port)
        changed = [name for name in during if before.get(name) != during[name] and not any(d in name for d in DULL)]
        width = max((len(name) for name in changed), default=0)
        for name in changed:
            show(f"{name:{width}}  {before.get(name, 0.0):>6.4g} -> {during[name]:.4g}")
        change = [(before.get(n), during.get(n)) for n in ("concagent_open_deadlocks", "concagent_deadlocked_threads")]
        found = [value for name, value in during.items() if "findings_total" in name and 'kind="deadlock"' in name]
        ok = change == [(0, 1), (0, 2)] and sum(found) == 1
        self.claim("/metrics went from no deadlock to 1, with 2 threads in it", ok)

    def show_signal(self, pid: int, err: Path) -> None:
        heading("4. Who holds what, and who waits for what? SIGUSR1")
        size = err.stat().st_size
        started = time.monotonic()
        os.kill(pid, signal.SIGUSR1)
        text = wait_for_text(err, "\n" + "=" * 80, "the report that SIGUSR1 asks for", size, "CONCAGENT REPORT")
        took_ms = (time.monotonic() - started) * 1e3
        text = text[text.index("CONCAGENT REPORT") :]
        full = self.output / "sigusr1.txt"
        full.write_text(text)
        show(f"$ kill -USR1 {pid}")
        above, _, stacks = text.partition("\nThreads\n")
        show(above.strip("\n"))
        lines = len(stacks.splitlines())
        say(f"({lines} more lines: each thread with its stack. All of it is in {relative(full)})")
        ours = [name for name in ("MainThread", "copier_0", "copier_1", "Thread-1") if name not in stacks]
        self.claim(
            f"SIGUSR1, with the main thread stuck, gave all threads with their stacks in {took_ms:.0f} ms",
            not ours and "1 deadlock right now" in above and "progress.console.print(" in stacks,
        )

    def show_socket(self, pid: int) -> None:
        heading("5. The same from another terminal: concagent report PID")
        show(f"$ concagent report {pid} --format json | jq .rings")
        answer = self.concagent("report", str(pid), "--format", "json")
        if answer.returncode:
            raise Failed(f"concagent report ended with {answer.returncode}: {answer.stderr.strip()}")
        report = json.loads(answer.stdout)
        show(json.dumps(report["rings"]))
        names = {actor["id"]: actor["name"] for actor in report["snapshot"]["actors"]}
        for ring in report["rings"]:
            say(f"That is: {' -> '.join(names[actor] for actor in [*ring, ring[0]])}")
        ok = [len(ring) for ring in report["rings"]] == [2] and report["snapshot"]["pid"] == pid
        self.claim("concagent report gave the same ring over the process's socket", ok)

    def show_picture(self) -> None:
        heading("6. A picture of it: concagent graph")
        self.picture = self.output / "deadlock.svg"
        show(f"$ concagent graph {relative(self.findings)} --format svg -o {relative(self.picture)}")
        self.picture.unlink(missing_ok=True)
        made = self.concagent("graph", str(self.findings), "--format", "svg", "-o", str(self.picture))
        if made.returncode:
            raise Failed(f"concagent graph ended with {made.returncode}: {made.stderr.strip()}")
        words = " ".join(ElementTree.parse(self.picture).getroot().itertext())
        say(f"Open it in a browser: {self.picture}")
        show(
            "[copier_0] --waits for--> (Live._lock) --held by--> [Thread-1] --waits for--> (Console._lock) --held by--> ..."
        )
        ok = all(word in words for word in ("Thread-1", "copier_", "live.py:", "console.py:", "_lock"))
        self.claim(f"the wait-for graph is a picture with both threads and both locks: {relative(self.picture)}", ok)

    def show_end(self) -> None:
        heading("7. Would it have ended by itself?")
        out = self.scratch / "hanging.out"
        alive = self.running().poll() is None and "backup ended" not in out.read_text()
        self.running().send_signal(signal.SIGTERM)
        try:
            status = self.running().wait(10)
        except subprocess.TimeoutExpired as error:
            raise Failed("SIGTERM did not end the program") from error
        self.process = None
        say(f"No. It still hung, and ended by SIGTERM only (status {status}), as without the agent.")
        self.claim(
            "the program really hung, and SIGTERM ends it as it would without the agent",
            alive and status == -signal.SIGTERM,
        )

    def show_recovery(self) -> None:
        heading("8. The same program with --recover raise")
        show(f"$ python -m concagent run --recover raise --no-log {relative(PROGRAM)}")
        for _ in range(ATTEMPTS):
            findings = self.scratch / "recovered.jsonl"
            findings.unlink(missing_ok=True)
            err = self.start("recovered", "--recover", "raise", "--no-log", "--findings", str(findings))
            try:
                status = self.running().wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired as error:
                raise Failed(f"it still hangs; standard error:\n{tail(err)}") from error
            self.process = None
            if findings.stat().st_size:
                break
            say("This time the threads missed each other. Once more.")
        text = (self.scratch / "recovered.out").read_text(errors="replace") + err.read_text(errors="replace")
        _, found, ended = text.partition("backup ended")
        show(textwrap.shorten(found + ended.splitlines()[0], 200) if found else "(it did not say that it ended)")
        for line in (line.strip() for line in text.splitlines() if "DeadlockError: " in line):
            show(textwrap.fill(line, 100, subsequent_indent="    "))
        say(
            "One thread of the ring got DeadlockError out of its `with lock:`, all its locks were released on the way, the others"
        )
        say(f"went on. Exit status {status}.")
        ok = status == 0 and bool(found) and "DeadlockError: deadlock of 2 threads" in text
        self.claim("with --recover raise the same program deadlocks, recovers and comes to its end", ok)


# ---------------------------------------------------------------- helpers


def output_folder() -> Path:
    """Return the folder of what is left behind on purpose: build/demo of the checkout, or a temporary one."""
    folder = HERE.parent / "build" / "demo"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "findings.jsonl").write_text("")
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="concagent-demo-output-"))
    return folder


def members(finding: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the actors in the ring, without those stuck behind it."""
    return [actor for actor in finding["actors"] if actor["role"] in {"member", "victim"}]


def wait_for_text(path: Path, text: str, what: str, offset: int = 0, after: str = "") -> str:
    """Return what the file holds from ``offset`` on, once ``text`` is there (behind ``after``).

    Raises:
        Failed: It did not come.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        content = path.read_bytes()[offset:].decode(errors="replace")
        start = content.find(after)
        if start >= 0 and text in content[start:]:
            end = content.find("\n", content.index(text, start) + len(text))
            return content if end < 0 else content[:end]
        time.sleep(0.002)
    raise Failed(f"no {what} in {PATIENCE_SECONDS:.0f} s:\n{tail(path)}")


def tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-20:])


def free_port() -> int:
    """Return a port that is free now; the agent says so clearly if somebody takes it in between."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def relative(path: Path) -> str:
    """Return the path as seen from here if it is below, for people."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def heading(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if BOLD else f"\n{text}\n{'-' * len(text)}", flush=True)


def say(text: str) -> None:
    print(textwrap.fill(text, 120) if len(text) > 120 else text, flush=True)


def show(text: str) -> None:
    """Print what a program said, set off from what we say."""
    print(textwrap.indent(text, "  | ", lambda _line: True), flush=True)


def main() -> int:
    started = time.monotonic()
    # Somebody who presses Ctrl-C or ends us must not find our children later.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    print(f"concagent {version('concagent')} on Python {platform.python_version()}: a demonstration", flush=True)
    demo = Demo()
    try:
        demo.run()
    except Failed as error:
        demo.claim(f"the demonstration comes to its end: {error}", False)
    except KeyboardInterrupt:
        return 130
    finally:
        demo.end()
        shutil.rmtree(demo.scratch, ignore_errors=True)
    heading("Summary")
    for true, text in demo.claims:
        say(f"{'shown ' if true else 'FAILED'}  {text}")
    shown = sum(true for true, _ in demo.claims)
    whole = shown == len(demo.claims)
    say(
        f"{shown} of {len(demo.claims)} claims shown, in {time.monotonic() - started:.1f} s; exit status {0 if whole else 1}."
    )
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
