"""One question to any process of a program is answered for all of them: reports, figures, and those that are silent."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a family is known on Linux only")

SECONDS = 40.0
# A parent, a child by each way, and a grandchild through a shell; each says who it is, then waits for the end of its input.
PROGRAM = """
    import multiprocessing, os, shlex, subprocess, sys, threading

    def child(name):
        threading.current_thread().name = name
        os.write(1, f"{name} {os.getpid()}\\n".encode())  # at once: others write, too
        threading.Event().wait()

    def main():
        for method in ("fork", "spawn", "forkserver"):
            multiprocessing.get_context(method).Process(target=child, args=(method,), daemon=True).start()
        code = "import os, threading; os.write(1, b'shell %d' % os.getpid() + bytes([10])); threading.Event().wait()"
        subprocess.Popen(f"{sys.executable} -c {shlex.quote(code)}; true", shell=True)
        child("root")

    if __name__ == "__main__":
        main()
    """
NAMES = {"root", "fork", "spawn", "forkserver", "shell"}


class Family:
    """A running program: name -> pid."""

    def __init__(self, runner: Any, **options: Any) -> None:
        runner.limit_seconds = SECONDS
        self.child = runner.start(PROGRAM, socket=True, **options)
        assert self.child.until(lambda: len(self.pids()) == len(NAMES)), self.child.stderr()

    def pids(self) -> dict[str, int]:
        return {name: int(pid) for name, pid in re.findall(r"^(\w+) (\d+)$", self.child.stdout(), re.MULTILINE)}

    def tree(self, name: str, *options: str) -> str:
        command = [sys.executable, "-m", "concagent", "report", str(self.pids()[name]), "--tree", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def until_all_answer(self) -> str:
        """Return the tree, once the control socket of each is there: a fork's child has its own a moment later."""
        found = [""]

        def complete() -> bool:
            found[0] = self.tree("root")
            return all(f"== process {pid} ==" in found[0] for pid in self.pids().values())

        assert self.child.until(complete), found[0]
        return found[0]


@pytest.fixture
def family(runner: Any) -> Callable[..., Family]:
    return lambda **options: Family(runner, **options)


def test_any_process_can_be_asked_for_the_report_of_all(family: Any) -> None:
    program = family()
    program.until_all_answer()

    texts = {name: program.tree(name) for name in NAMES}

    for text in texts.values():
        head = text[: text.index("\n\n")]
        depths = {int(pid): len(indent) for indent, pid in re.findall(r"^( *)(\d+) answered", head, re.MULTILINE)}
        pids = program.pids()
        assert set(depths) >= set(pids.values())
        assert depths[pids["root"]] == 0
        assert depths[pids["fork"]] == depths[pids["spawn"]] == 2
        assert depths[pids["forkserver"]] == depths[pids["shell"]] == 4  # below the server, and below the shell
        assert re.search(r"^  \d+ asleep, without concagent  .*sh -c", head, re.MULTILINE)
        assert f"== process {pids['root']} ==" in text
        assert text.count("\n== process ") == len(depths)


def test_the_report_of_all_as_json_has_a_report_for_each(family: Any) -> None:
    program = family()
    program.until_all_answer()

    processes = {one["pid"]: one for one in json.loads(program.tree("fork", "--format", "json"))["processes"]}

    for pid in program.pids().values():
        assert processes[pid]["report"]["snapshot"]["pid"] == pid
        assert processes[pid]["seen_from_outside"] is None


def test_a_process_that_is_stopped_is_shown_from_outside(family: Any) -> None:
    program = family()
    program.until_all_answer()
    pid = program.pids()["spawn"]
    os.kill(pid, signal.SIGSTOP)

    text = program.tree("spawn")

    assert f"== process {pid}, which did not answer ==" in text
    silent = text[text.index(f"== process {pid}, which") :]
    assert "stopped; its threads, as the kernel sees them:" in silent
    assert re.search(rf"^  {pid} \S.*: stopped", silent, re.MULTILINE)


def test_a_stopped_process_is_shown_with_what_it_wrote_on_the_board(runner: Any) -> None:
    runner.limit_seconds = SECONDS
    program = """
        import multiprocessing, os, threading

        def child(lock):
            with lock:
                pass

        if __name__ == "__main__":
            lock = multiprocessing.Lock()
            lock.acquire()
            process = multiprocessing.Process(target=child, args=(lock,), daemon=True)
            process.start()
            print(process.pid, flush=True)
            threading.Event().wait()
        """
    child = runner.start(program, socket=True)
    assert child.until(lambda: child.stdout().endswith("\n"))
    pid = int(child.stdout())
    command = [sys.executable, "-m", "concagent", "report", str(child.process.pid), "--tree"]
    texts = [""]

    def is_on_board() -> bool:
        os.kill(pid, signal.SIGSTOP)
        texts.append(subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout)
        os.kill(pid, signal.SIGCONT)
        return "its waits, as it last wrote them" in texts[-1]

    assert child.until(is_on_board), texts[-1]
    assert re.search(r"MainThread has waited \d+\.\d s for mp-lock .* in child", texts[-1])


def test_the_signal_to_one_process_reports_all(family: Any) -> None:
    program = family(report_tree=True)
    program.until_all_answer()
    pids = program.pids()

    os.kill(pids["fork"], signal.SIGUSR1)

    def all_told() -> bool:
        return all(f"\n== process {pid} ==\n" in program.child.stderr() for pid in pids.values())

    assert program.child.until(all_told), program.child.stderr()[:3000]
    assert program.child.stderr().count("processes of one program ==") == 1


def test_the_signal_reports_one_process_by_default(family: Any) -> None:
    program = family()
    program.until_all_answer()

    os.kill(program.pids()["fork"], signal.SIGUSR1)

    assert program.child.until(lambda: "SIGUSR1" in program.child.stderr())
    assert "processes of one program" not in program.child.stderr()


def test_one_scrape_shows_all_processes_below(family: Any) -> None:
    program = family(metrics_port=0)
    program.until_all_answer()
    match = re.search(r"http://\S+/metrics", program.child.stderr())
    assert match

    with urllib.request.urlopen(match[0], timeout=SECONDS) as answer:
        text = answer.read().decode()

    seen = set(re.findall(r'concagent_threads_seen_total\{pid="(\d+)"\}', text))
    below = {str(pid) for name, pid in program.pids().items() if name != "root"}
    assert seen >= below
    assert str(program.pids()["root"]) not in seen
    assert re.search(r"^concagent_threads_seen_total \d", text, re.MULTILINE)
    assert f'concagent_child_processes{{state="answered"}} {len(seen)}.0' in text


def test_a_tree_of_no_process_is_an_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "concagent", "report", "4194304", "--tree"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, cwd=tmp_path)

    assert (done.returncode, done.stderr) == (2, "concagent: no process 4194304\n")
