"""Programs that treat signals and descriptors as daemons do: what they block, close and reopen is theirs alone."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PYTHON = os.environ.get("CONCAGENT_TEST_PYTHON", sys.executable)


def run(program: str, folder: Path, *options: str, agent: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder, under ``concagent run`` or plain."""
    script = folder / "program.py"
    script.write_text(textwrap.dedent(program), encoding="utf-8")
    launcher = ["-m", "concagent", "run", *options] if agent else []
    return subprocess.run(
        [PYTHON, *launcher, str(script)], capture_output=True, text=True, timeout=60, check=False, cwd=folder
    )


SIGWAIT = {
    "main, pending before it waits": """
        import os, signal, time
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        print(signal.sigwait({signal.SIGTERM}).name)
        """,
    "a thread": """
        import os, signal, subprocess, threading
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        stop = threading.Event()
        def wait():
            print(signal.sigwait({signal.SIGTERM}).name)
            stop.set()
        threading.Thread(target=wait, daemon=True).start()
        subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -TERM {os.getpid()}"])
        stop.wait()
        """,
}


@pytest.mark.parametrize("where", SIGWAIT)
@pytest.mark.parametrize("agent", [True, False], ids=["agent", "plain"])
def test_a_program_that_blocks_a_signal_fetches_it_with_sigwait(where: str, agent: bool, tmp_path: Path) -> None:
    done = run(SIGWAIT[where], tmp_path, agent=agent)

    assert (done.returncode, done.stdout, done.stderr) == (0, "SIGTERM\n", "")


def test_no_thread_of_the_agent_takes_a_signal_and_the_program_keeps_its_mask(tmp_path: Path) -> None:
    done = run(
        """
        import os, signal
        def blocked(thread):
            status = open(f"/proc/self/task/{thread}/status").read()
            return int(status.partition("SigBlk:")[2].split()[0], 16)
        for thread in os.listdir("/proc/self/task"):
            ours = int(thread) == os.getpid()
            mask = blocked(thread)
            print(ours, [s.name for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGSEGV) if mask >> (s - 1) & 1])
        """,
        tmp_path,
        "--metrics-port=0",
    )

    assert sorted(done.stdout.splitlines()) == ["False ['SIGTERM', 'SIGUSR1']", "True []"]
