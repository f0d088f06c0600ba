"""What it costs to have the agent: ``import concagent``, and ``import concagent; install()``, in fresh processes.

Three kinds of processes run in alternation: one that does nothing, one that imports, one that imports and installs with
the defaults.  Each reads the clock around what it does and its own resident memory before and after; so the interpreter's
start and what ``site`` imports are not in the figures.  Times are minima and medians of the repeats.

The last two rows load, before the clock runs, what nearly every program that would run an agent has anyway: ``threading``,
``logging``, ``signal``, ``re``, ``dataclasses``, ``traceback``.

    python benchmarks/bench_startup.py [repeats]
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys

MEASURE = """
import sys, time
{before}
def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
memory, modules, started = resident(), len(sys.modules), time.perf_counter()
{what}
took = time.perf_counter() - started
print([took * 1e3, resident() - memory, len(sys.modules) - modules])
"""
COMMON = "import dataclasses, logging, re, signal, threading, traceback"
CASES = {
    "nothing": ("", "pass"),
    "import": ("", "import concagent"),
    "import + install()": ("", "import concagent; concagent.install()"),
    "import, warm": (COMMON, "import concagent"),
    "import + install(), warm": (COMMON, "import concagent; concagent.install()"),
}


def run(before: str, what: str) -> tuple[float, float, float]:
    """Return (ms, KiB of resident memory, modules) of one process."""
    program = MEASURE.format(before=before, what=what)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    took, memory, modules = json.loads(done.stdout)
    return took, memory, modules


def main() -> None:
    """Print the table."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 25
    rows: dict[str, list[tuple[float, float, float]]] = {label: [] for label in CASES}
    for case in CASES.values():
        run(*case)  # writes the .pyc files
    for _ in range(repeats):
        for label, case in CASES.items():
            rows[label].append(run(*case))
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {repeats} fresh processes each, interleaved\n"
    )
    print(f"{'':<26} {'min ms':>8} {'median':>8} {'RSS KiB':>9} {'modules':>8}")
    for label, values in rows.items():
        times = [value[0] for value in values]
        memory = statistics.median(value[1] for value in values)
        print(f"{label:<26} {min(times):8.1f} {statistics.median(times):8.1f} {memory:9.0f} {values[0][2]:8.0f}")


if __name__ == "__main__":
    main()
