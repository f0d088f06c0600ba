"""Reads the tables of benchmarks that print for people only, as rows for ``run.py``.

Those files answer one question each and have their own command lines.  They run as they are, in fresh processes; a table
that no longer looks as expected is an error and not a row less.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

from _harness import NOISY, Row, child_environment

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = os.path.dirname(os.path.abspath(__file__))
NUMBER = r"\s+(-?[\d.]+)"


def latency(python: str, quick: bool) -> list[Row]:
    """Return how long after the last block a ring of locks is told."""
    text = _run(python, "bench_latency.py", "200" if quick else "500")
    rows = []
    for label, name in (("on disk", "on disk"), ("callback", "callback")):
        least, median, p99, _ = _find(rf"^{label}{NUMBER}{NUMBER}{NUMBER}{NUMBER}", text)
        rows.append(Row(f"ring of locks: {name}, p99", p99, "ms", note=f"min {least:.2f}, median {median:.2f}"))
    return rows


def stalls(python: str, quick: bool) -> list[Row]:
    """Return how long after the last block it is told where no walk can decide: the worst of the shapes."""
    text = _run(python, "bench_stalls.py", "5" if quick else "15")
    found = re.findall(rf"^(.+?){NUMBER}{NUMBER}{NUMBER}$", text, re.MULTILINE)
    if len(found) < 6:
        raise SystemExit(f"bench_stalls.py printed something else:\n{text}")
    shape, _, median, most = max(found, key=lambda row: float(row[3]))
    return [Row("stall: finding, worst", float(most), "ms", note=f"{shape.strip()}; its median {float(median):.0f}")]


def report_signal(python: str, quick: bool) -> list[Row]:
    """Return how long after a signal the report is complete."""
    text = _run(python, "bench_report_signal.py", "1000", "8" if quick else "20")
    first, _, least, median, most = _find(
        r"first ([\d.]+)\s+then \((\d+)\): min ([\d.]+)\s+median ([\d.]+)\s+max ([\d.]+)", text
    )
    return [
        Row(
            "SIGUSR1 to report, 1,000 threads",
            median,
            "ms",
            note=f"first {first:.0f}, then min {least:.0f}, max {most:.0f}",
        )
    ]


def startup(python: str, quick: bool) -> list[Row]:
    """Return what import and install cost in time and memory."""
    text = _run(python, "bench_startup.py", "7" if quick else "25")
    rows = []
    for label in ("import", "import + install()", "import + install(), warm"):
        least, median, memory, modules = _find(rf"^{re.escape(label)}{NUMBER}{NUMBER}{NUMBER}{NUMBER}", text)
        rows.append(Row(label, least, "ms", note=f"median {median:.0f}, {modules:.0f} modules"))
        rows.append(Row(f"{label}: memory", memory / 1024, "MiB"))
    return rows


def opening(python: str, quick: bool) -> list[Row]:
    """Return what it costs to know who opened a file."""
    text = _run(python, "bench_open.py", "10" if quick else "40")
    rows = []
    for label in ("text", "binary", "with_read", "write", "fail", "drop"):
        stock, ours, ratio, control = _find(rf"^{label}{NUMBER}{NUMBER}{NUMBER}{NUMBER}", text)
        rows.append(Row(f"open: {label}", ratio, "x", stock, ours, "ns", control, abs(control - 1) > NOISY))
    return rows


ADAPTERS: dict[str, Callable[[str, bool], list[Row]]] = {
    "latency": latency,
    "stalls": stalls,
    "report_signal": report_signal,
    "startup": startup,
    "open": opening,
}


def _run(python: str, file: str, *arguments: str) -> str:
    command = [python, os.path.join(HERE, file), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=child_environment())
    if done.returncode:
        raise SystemExit(f"{file}: {(done.stderr or done.stdout)[-800:]}")
    return done.stdout


def _find(pattern: str, text: str) -> tuple[float, ...]:
    found = re.search(pattern, text, re.MULTILINE)
    if found is None:
        raise SystemExit(f"no {pattern!r} in: {text[-800:]}")
    return tuple(float(group) for group in found.groups())
