"""What a lock weighs, and whether a million of them give their memory back.

Each figure comes from a process of its own, which makes the locks, looks at its resident memory, drops them, and looks again.
The list that keeps them exists before, so its pages are not counted.

    python benchmarks/bench_memory.py [--quick] [--rows TEXT] [--json PATH] [--raw PATH]
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import _harness

PROGRAM = """
import gc, json, sys
sys.path.insert(0, {folder!r})
import _harness
from concagent import _real, core
_harness.install()
makes = dict(stock_lock=_real.allocate_lock, stock_rlock=_real.RLockType,
             ours_lock=core.Lock if core.INSTANTIABLE else core.allocate_lock, ours_rlock=core.RLock)
make, count, use = makes[{which!r}], {count}, {use}
kept = [None] * count
for i in range(count):
    kept[i] = 1.5 * i  # touch the list
for i in range(count):
    kept[i] = None
make()
gc.collect()
before = _harness.resident_bytes()
for i in range(count):
    kept[i] = make()
if use:
    for lock in kept:
        with lock:
            pass
full = _harness.resident_bytes()
for i in range(count):
    kept[i] = None
gc.collect()
after = _harness.resident_bytes()
lock = make()
print(json.dumps(dict(each=(full - before) / count, left=after - before, size=sys.getsizeof(lock))))
"""


def run(which: str, count: int, *, use: bool) -> dict[str, Any]:
    """Return bytes of each lock, bytes left after they were dropped, and the size of the object."""
    program = PROGRAM.format(folder=sys.path[0], which=which, count=count, use=use)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def main() -> None:
    """Measure all rows."""
    report = _harness.Report(__doc__)
    count = 1_000_000
    for kind in ("lock", "rlock"):
        for use in (False, True):
            name = f"bytes per {kind}{', taken once' if use else ''}"
            if report.wants(name):
                stock, ours = run(f"stock_{kind}", count, use=use), run(f"ours_{kind}", count, use=use)
                row = _harness.Row(name, ours["each"], "B", stock["each"], ours["each"], "B")
                row.note = f"the object itself: stock {stock['size']}, ours {ours['size']}"
                report.add(row)
                report.add(
                    _harness.Row(
                        f"10^6 {kind}s{', taken once' if use else ''}, dropped: left",
                        ours["left"] / 2**20,
                        "MiB",
                        stock["left"] / 2**20,
                        ours["left"] / 2**20,
                        "MiB",
                    )
                )
    report.close()


if __name__ == "__main__":
    main()
