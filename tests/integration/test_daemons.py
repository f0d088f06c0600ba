"""Programs that treat signals and descriptors as daemons do: what they block, close and reopen is theirs alone."""

from __future__ import annotations

import os
import re
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
    command = [PYTHON, *launcher, str(script)]
    environ = {
        name: value for name, value in os.environ.items() if name != "CONCAGENT_TEST_PYTHON"
    }  # no option of ours
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=folder, env=environ)
    done.stderr = re.sub(r"\Aconcagent: metrics on http\S+\n", "", done.stderr)
    return done


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
            while mask >> (signal.SIGSEGV - 1) & 1:  # libc blocks all in a thread that is being born; for ever is too long
                mask = blocked(thread)
            print(ours, [s.name for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGSEGV) if mask >> (s - 1) & 1])
        """,
        tmp_path,
        "--metrics-port=0",
    )

    *agents, program = sorted(done.stdout.splitlines())
    assert program == "True []"
    assert agents
    assert set(agents) == {"False ['SIGTERM', 'SIGUSR1']"}


CLOSES = """
    import os, resource, signal, sys, threading, time
    started = time.process_time()
    os.closerange(3, 256)
    files = [os.open(f"user{number}", os.O_CREAT | os.O_RDWR) for number in range(12)]
    for file in files:
        os.write(file, b"data")
    def intact():
        return all(os.pread(file, 100, 0) == b"data" for file in files)
    """


def closing(rest: str) -> str:
    return textwrap.dedent(CLOSES) + textwrap.dedent(rest)


def test_nothing_is_written_into_files_that_took_over_our_numbers_and_findings_are_made(tmp_path: Path) -> None:
    done = run(
        closing(
            """
            a, b = threading.Lock(), threading.Lock()
            both = threading.Barrier(2)
            def take(first, second):
                with first:
                    both.wait()
                    with second: pass
            for pair in ((a, b), (b, a)):
                threading.Thread(target=take, args=pair, daemon=True).start()
            time.sleep(2)
            import concagent
            print([finding.kind for finding in concagent.findings()], intact())
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(1)
            print(intact(), flush=True)
            os._exit(0)
            """
        ),
        tmp_path,
        "--report-to=stderr",
        "--no-log",
        "--no-stderr",
        "--metrics-port=0",
        "--findings=found.json",
    )

    assert (done.returncode, done.stdout) == (0, "['deadlock'] True\nTrue\n")
    assert "SIGUSR1" in done.stderr
    assert "internal errors: listener 2, monitor 1, report 1" in done.stderr
    assert len((tmp_path / "found.json").read_text(encoding="utf-8").splitlines()) == 1


@pytest.mark.parametrize("reopen", [True, False], ids=["numbers in use", "numbers free"])
def test_closed_descriptors_cost_no_time_and_the_exit_is_silent(reopen: bool, tmp_path: Path) -> None:
    done = run(
        closing(
            ("" if reopen else "for file in files: os.close(file)\nfiles = []\n")
            + "time.sleep(2)\nprint(intact(), time.process_time() - started < 0.3)\n"
        ),
        tmp_path,
        "--metrics-port=0",
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "True True\n", "")


def test_exit_right_after_closing_is_silent_and_leaves_the_files_open(tmp_path: Path) -> None:
    done = run(
        closing(
            """
            import atexit
            atexit.register(lambda: print(intact()))
            import concagent
            concagent.uninstall()
            print(intact())
            """
        ),
        tmp_path,
        "--metrics-port=0",
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "True\nTrue\n", "")


def test_pipes_and_sockets_of_the_program_with_our_old_numbers_are_not_read(tmp_path: Path) -> None:
    done = run(
        """
        import os, socket, time
        os.closerange(3, 256)
        pairs = [os.pipe() for _ in range(4)]
        listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
        for _, end in pairs:
            os.write(end, b"data")
        clients = [socket.create_connection(server.getsockname()) for server in listeners]
        started = time.process_time()
        time.sleep(2)
        spent = time.process_time() - started
        print([os.read(end, 10) for end, _ in pairs] == [b"data"] * 4, spent < 0.3)
        for server in listeners:
            server.settimeout(1)
            server.accept()[0].close()
        """,
        tmp_path,
        "--metrics-port=0",
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "True True\n", "")


def test_a_daemon_gets_its_standard_streams_and_can_be_asked(tmp_path: Path) -> None:
    done = run(
        """
        import os, subprocess, sys, time
        if os.fork():
            os.wait()
            print(open("asked").read(), end="")
            os._exit(0) if sys.stdout.flush() is None else None
        os.setsid()
        if os.fork():
            os._exit(0) if os.wait() else None
        os.closerange(0, 256)
        time.sleep(0.05)
        numbers = [os.open(os.devnull, os.O_RDWR), os.dup(0), os.dup(0)]
        time.sleep(2)
        asked = subprocess.run([sys.executable, "-m", "concagent", "report", str(os.getpid())], capture_output=True)
        with open("asked", "w") as file:
            print(numbers, asked.returncode, b"MainThread" in asked.stdout, file=file)
        os._exit(0)
        """,
        tmp_path,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "[0, 1, 2] 0 True\n", "")
