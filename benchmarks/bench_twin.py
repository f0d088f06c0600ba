"""What the core's Lock and RLock cost where nobody waits, as a ratio to CPython's own.

Both are measured in alternation in one process, by statements that are compiled once for each type; the figure is the
ratio of the minima of the repeats, so that what else the machine does falls out.  The control measures the original
against itself and shows the noise.  The agent is installed but for the monitor's thread: the types record, nobody reads.

    python benchmarks/bench_twin.py [repeats]
"""

from __future__ import annotations

import platform
import sys
from timeit import Timer
from typing import Any

from concagent import _real, core

NUMBER = 20_000
STATEMENTS = {
    "with lock: pass": "with lock:\n    pass",
    "acquire(); release()": "acquire(); release()",
    "acquire(False); release()": "acquire(False); release()",
    "create and drop": "make()",
}
NESTED = {
    "with inside a with": "with outer:\n    with lock:\n        pass",
    "three nested": "with outer:\n    with lock:\n        with inner:\n            pass",
}
AGAIN = {"re-entry": "with lock:\n    pass"}


def names(make: Any) -> dict[str, Any]:
    """Return what the statements refer to, made by ``make``."""
    lock = make()
    return {
        "make": make,
        "lock": lock,
        "outer": make(),
        "inner": make(),
        "acquire": lock.acquire,
        "release": lock.release,
    }


def compare(statement: str, stock: Any, ours: Any, repeats: int, *, held: bool = False) -> tuple[float, float, float]:
    """Return (ns of the original, ratio of ours, ratio of the original to itself)."""
    timers = []
    for make in (stock, ours, stock):
        bound = names(make)
        if held:
            bound["lock"].acquire()
        # Names as locals of the timed function, as they would be in a program's own hot function.
        setup = "; ".join(f"{name} = _{name}" for name in bound)
        timers.append(Timer(statement, setup, globals={f"_{name}": value for name, value in bound.items()}))
    best = [
        min(column)
        for column in zip(*([timer.timeit(NUMBER) for timer in timers] for _ in range(repeats)), strict=True)
    ]
    return best[0] / NUMBER * 1e9, best[1] / best[0], best[2] / best[0]


def main() -> None:
    """Print the table."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 25
    core.start(core.Listener())
    print(f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}, core {core.NAME}")
    print(f"minimum of {repeats} repeats of {NUMBER}, interleaved\n")
    print(f"{'type':<6} {'statement':<27} {'stock ns':>9} {'ratio':>7} {'control':>8}")
    for kind, stock, ours in (
        ("Lock", _real.allocate_lock, core.Lock if core.INSTANTIABLE else core.allocate_lock),
        ("RLock", _real.RLockType, core.RLock),
    ):
        cases = STATEMENTS | NESTED | (AGAIN if kind == "RLock" else {})
        for label, statement in cases.items():
            stock_ns, ratio, control = compare(statement, stock, ours, repeats, held=label == "re-entry")
            print(f"{kind:<6} {label:<27} {stock_ns:9.1f} {ratio:7.2f} {control:8.2f}")
    core.stop()


if __name__ == "__main__":
    main()
