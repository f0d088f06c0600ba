"""What it costs to know who opened a file: ``open(p).close()`` under the hook, as a ratio to the unpatched ``open``.

Both are measured in alternation in one process; the figure is the ratio of the minima of the repeats, so that what else
the machine does falls out.  The control measures the original against itself and shows the noise.

    python benchmarks/bench_open.py [repeats]
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Callable
from timeit import Timer
from typing import Any

from concagent import _real, core
from concagent.hooks.files import Open
from concagent.openings import Openings

NUMBER = 500
OpenFunction = Callable[..., Any]


def text(open_: OpenFunction, path: str) -> Callable[[], object]:
    """Return a loop body: text, closed explicitly."""
    return lambda: open_(path).close()


def binary(open_: OpenFunction, path: str) -> Callable[[], object]:
    """Return a loop body: binary, closed explicitly."""
    return lambda: open_(path, "rb").close()


def with_read(open_: OpenFunction, path: str) -> Callable[[], object]:
    """Return a loop body: a context manager and one small read."""

    def body() -> None:
        with open_(path, encoding="utf-8") as file:
            file.read()

    return body


def write(open_: OpenFunction, path: str) -> Callable[[], object]:
    """Return a loop body: written and closed."""

    def body() -> None:
        with open_(path + ".out", "wb") as file:
            file.write(b"x")

    return body


def fail(open_: OpenFunction, path: str) -> Callable[[], object]:
    """Return a loop body: a file that does not exist."""

    def body() -> None:
        try:
            open_(path + ".no")
        except OSError:
            pass

    return body


def drop(open_: OpenFunction, path: str) -> Callable[[], object]:
    """Return a loop body: dropped unclosed, the rare case; the ResourceWarning is ignored by the default filter."""
    return lambda: open_(path, "rb")


def measure(first: Callable[[], object], second: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return the best nanoseconds per call of both, measured in alternation."""
    timers = (Timer(first), Timer(second))
    best = [float("inf"), float("inf")]
    for _ in range(repeats):
        for index, timer in enumerate(timers):
            best[index] = min(best[index], timer.timeit(NUMBER))
    return best[0] / NUMBER * 1e9, best[1] / NUMBER * 1e9


def main(repeats: int) -> None:
    """Print a line for each case."""
    hook = Open(_real.open_file, Openings(), lambda *_: None)
    hooked = hook.replacement()
    hook.start()
    print(
        f"{platform.python_implementation()} {platform.python_version()}, core {core.NAME}, best of {repeats} x {NUMBER}"
    )
    print(f"{'case':24} {'stock ns':>9} {'hook ns':>9} {'ratio':>6} {'control':>8}")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "data")
        with _real.open_file(path, "wb") as file:
            file.write(b"line\n" * 20)
        for case in (text, binary, with_read, write, fail, drop):
            stock, ours = measure(case(_real.open_file, path), case(hooked, path), repeats)
            one, two = measure(case(_real.open_file, path), case(_real.open_file, path), repeats)
            print(f"{case.__name__:24} {stock:9.0f} {ours:9.0f} {ours / stock:6.2f} {two / one:8.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
