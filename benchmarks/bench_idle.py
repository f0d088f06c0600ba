"""What an idle program pays: how often the agent's threads wake up, and their share of a core.

Two processes that sleep in their main thread run side by side, one with the agent and one without; the operating system
counts the times each of their threads was switched in, and their time on the processor.

    python benchmarks/bench_idle.py [--quick] [--json PATH]
"""

from __future__ import annotations

import json
import subprocess
import sys

import _harness

SECONDS = 20.0
PROGRAM = """
import glob, json, resource, sys, threading, time
sys.path.insert(0, {folder!r})
import _harness
if {agent}:
    _harness.install(socket=True, report_signal="SIGUSR1")
def switches():
    total = 0
    for path in glob.glob("/proc/self/task/*/status"):
        if path.split("/")[4] != str(__import__("os").getpid()):
            with open(path) as file:
                total += sum(int(line.split()[1]) for line in file if "voluntary_ctxt" in line and "non" not in line)
    return total
def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
time.sleep(2.5)
before, spent, started = switches(), cpu(), time.monotonic()
spent = cpu()
time.sleep({seconds})
used, took = cpu() - spent, time.monotonic() - started
print(json.dumps([(switches() - before) / took, used / took]))
"""


def main() -> None:
    """Measure both rows."""
    report = _harness.Report(__doc__)
    seconds = SECONDS / 4 if report.options.quick else SECONDS
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(folder=sys.path[0], agent=agent, seconds=seconds)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for agent in (False, True)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a process failed")
    stock, ours = (json.loads(text) for text in outputs)
    report.add(_harness.Row("idle: wake-ups per second", ours[0], "1/s", stock[0], ours[0], "1/s"))
    report.add(
        _harness.Row("idle: share of a core", (ours[1] - stock[1]) * 100, "%", stock[1] * 100, ours[1] * 100, "%")
    )
    report.close()


if __name__ == "__main__":
    main()
