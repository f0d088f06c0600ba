"""Our locks beside ddtrace's lock profiler and beside our own Python twin, in the same loop.

Each process holds three kinds of locks at once, measured in turn: CPython's, ours, and the peer's.  ddtrace replaces
``threading.Lock`` when its profiler starts; ours are then taken from the core directly, recording as after
``install``, because two tools cannot both replace one name.  The twin is `concagent._pycore` in its own process.

ddtrace lives in an environment of its own, ``build/bench-peers-X.Y.Z``, made on first use with the interpreter that runs this
file.  Where it cannot be installed its rows are skipped, with the reason.  Captured are by default 1 % of the
acquisitions; "100 %" is what a user sets to see every one.

    python benchmarks/bench_peers.py [--quick] [--rows TEXT] [--json PATH]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from typing import Any

import _harness

PEER = "--as-peer"
CASES = {"with": "with lock:\n    pass", "acquire+release": "lock.acquire(); lock.release()", "create": "make()"}


def peer_process(kind: str, rounds: int) -> None:
    """Measure stock, ours and a peer in this process; print JSON."""
    import threading

    from concagent import _real, core

    core.start(core.Listener())
    ours = core.Lock if core.INSTANTIABLE else core.allocate_lock
    if kind == "ddtrace":
        from ddtrace.profiling import Profiler

        Profiler().start()
    makes = {"stock": _real.allocate_lock, "ours": ours, "control": _real.allocate_lock}
    makes |= {"peer": threading.Lock} if kind == "ddtrace" else {}
    results = {}
    for label, code in CASES.items():
        variants = {who: _harness.statement(code, {"lock": make(), "make": make}) for who, make in makes.items()}
        values = _harness.take_turns(variants, rounds)
        results[label] = {who: min(column) * 1e9 for who, column in values.items()}
    print(json.dumps({"results": results, "type": str(type(makes.get("peer", ours)()))}), flush=True)
    os._exit(0)  # the profiler would upload what it has


def run_peer(python: str, kind: str, rounds: int, **environment: str) -> dict[str, Any]:
    """Return what `peer_process` printed; concagent is found where this process found it."""
    code = (
        f"{_harness.this_concagent()}sys.path.insert(0, {sys.path[0]!r})\n"
        f"import bench_peers; bench_peers.peer_process({kind!r}, {rounds})\n"
    )
    settings = {"DD_TRACE_STARTUP_LOGS": "false", "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false"}
    done = subprocess.run(
        [python, "-c", code],
        env={**os.environ, **settings, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if done.returncode:
        raise SystemExit(f"{kind}: {done.stderr[-800:]}")
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def main() -> None:
    """Measure all rows."""
    report = _harness.Report(__doc__)
    rounds = report.effort.rounds(60)
    if report.wants("ddtrace") and not sysconfig.get_config_var("Py_GIL_DISABLED"):
        try:
            python = _harness.environment_with("peers", "ddtrace")
        except ImportError as error:
            report.skip(f"rows of ddtrace: {error}")
        else:
            for label, capture in (("default", None), ("100 %", "100")):
                extra = {} if capture is None else {"DD_PROFILING_CAPTURE_PCT": capture}
                facts = run_peer(python, "ddtrace", rounds if capture is None else max(5, rounds // 3), **extra)
                add_rows(report, f"ddtrace {label}", facts, "peer")
    if report.wants("twin"):
        facts = run_peer(sys.executable, "twin", rounds, CONCAGENT_CORE="python")
        add_rows(report, "Python twin", facts, "ours")
    report.close()


def add_rows(report: _harness.Report, peer: str, facts: dict[str, Any], column: str) -> None:
    """Add the peer's ratio to stock and, where ours was measured beside it, how many times cheaper we are."""
    for label, times in facts["results"].items():
        control = times["control"] / times["stock"]
        noisy = abs(control - 1) > _harness.NOISY
        report.add(
            _harness.Row(
                f"{peer}: {label}, to stock",
                times[column] / times["stock"],
                "x",
                times["stock"],
                times[column],
                "ns",
                control,
                noisy,
            )
        )
        if column == "peer":
            report.add(
                _harness.Row(
                    f"{peer}: {label}, to ours", times["peer"] / times["ours"], "x", times["peer"], times["ours"], "ns"
                )
            )


if __name__ == "__main__":
    main()
