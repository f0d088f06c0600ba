"""How long from SIGUSR1 until the complete report is there, of a process with many blocked threads.

The process under test has the agent installed, ``threads`` threads that wait for one lock (each with a few frames of its
own on the stack), and a main thread stuck in ``acquire``.  This process sends the signal and reads the other's standard
error until the last line of the report.  Reports are asked for one after the other; the first one imports the renderer and
reads the source lines, and is shown by itself.

    python benchmarks/bench_report_signal.py [threads] [reports]
"""

from __future__ import annotations

import os
import platform
import select
import signal
import statistics
import subprocess
import sys
import time

PROGRAM = """
import sys, threading
import concagent

concagent.install(report_signal="SIGUSR1", report_to="stderr", socket=False, log=False)
door, ready = threading.Lock(), threading.Semaphore(0)

def outer():
    middle()

def middle():
    inner()

def inner():
    ready.release()
    with door:
        pass

door.acquire()
threading.stack_size(256 * 1024)
for number in range(int(sys.argv[1])):
    threading.Thread(target=outer, daemon=True).start()
    ready.acquire()
print("ready", flush=True)
door.acquire()
"""
END = b"=" * 90 + b"\n"
PATIENCE_SECONDS = 60.0


def one_report(process: subprocess.Popen[bytes]) -> tuple[float, bytes]:
    """Return (milliseconds, report)."""
    assert process.stderr is not None
    started = time.perf_counter()
    os.kill(process.pid, signal.SIGUSR1)
    report = bytearray()
    while not (report.endswith(END) and b"CONCAGENT REPORT" in report):
        ready, _, _ = select.select([process.stderr], [], [], PATIENCE_SECONDS)
        chunk = os.read(process.stderr.fileno(), 1 << 20) if ready else b""
        if not chunk:
            raise SystemExit(f"no complete report; the last of it: {bytes(report[-500:])!r}")
        report += chunk
    return (time.perf_counter() - started) * 1e3, bytes(report)


def main() -> None:
    """Print the table."""
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    reports = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(threads)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise SystemExit("the program did not come up")
            time.sleep(0.5)
            times = []
            for _ in range(reports):
                took, report = one_report(process)
                times.append(took)
                time.sleep(0.05)
        finally:
            process.kill()
    text = report.decode()
    if f"{threads + 1} threads" not in text:
        raise SystemExit(f"the report does not speak of {threads + 1} threads: {text[:800]}")
    ordered = sorted(times[1:])
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {threads} blocked threads and a stuck main thread"
    )
    print(f"report of {len(report)} bytes, {text.count(chr(10))} lines; ms from kill() to its last line\n")
    print(
        f"first {times[0]:.1f}   then ({len(ordered)}): min {ordered[0]:.1f}  median {statistics.median(ordered):.1f}  ",
        end="",
    )
    print(f"max {ordered[-1]:.1f}")


if __name__ == "__main__":
    main()
