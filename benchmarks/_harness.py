"""What the benchmarks share: variants measured in turn in one process, a control, and one file of results.

A figure in nanoseconds says more about the machine than about us: its clock drifts, and other programs run.  What can be
compared is two variants that ran at the same time.  So each round runs every variant once, for a few milliseconds, in an
order that turns from round to round; of the rounds the minimum counts, because whatever else the machine does can only add
time.  Beside each pair runs a control, the original once more (another object, compiled anew): where it differs from the
original by more than 5 % the row is marked noisy, and a budget missed by a noisy row is to be measured again.  Where
threads hand over to each other there is no undisturbed minimum (the two may meet on one core or on two), so there the
median of the ratios of neighbours counts.

Stock and ours in one process.  For locks both types exist side by side.  Conditions, events, semaphores, queues and
threads are patched in place, so after ``install`` nothing stock is left.  `private_stdlib` therefore runs the source of
``threading`` and ``queue`` once more, before ``install``, in modules that are in no table: their names are bound to the
original primitives, and no scan for aliases finds them.  Two processes in alternation were the other choice; their
layouts in memory differ by several per cent from run to run, which is as much as we want to see.  That the private copy is
as fast as the real one is measured, too (``bench_sync.py``, rows "method"; before ``install``).

Nothing here fails for being slow: a benchmark says what it saw, ``run.py --check`` judges.

Invariants H1 a variant returns seconds for one unit of work (H1b: a rate says so by ``better="more"``).
           H2 the collector of garbage is off while a clock runs.
Sources    pyperf (system metadata, the format of the raw values); Chen and Revels, arXiv:1608.04295 (why the minimum).
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import threading
import time
from dataclasses import asdict, dataclass, field
from timeit import Timer
from types import ModuleType, SimpleNamespace
from typing import Any, Final

ROUND_SECONDS: Final = 0.002  # of one variant in one round: shorter than a time slice of a busy machine
NOISY: Final = 0.05  # a control further from 1 than this makes its row doubtful
INSTALL_SECONDS: Final = 300
PROC_STATUS: Final = "/proc/self/status"


@dataclass(slots=True)
class Row:
    """One figure; ``value`` is what the budget speaks of: a ratio to ``stock``, or ours alone where there is no stock."""

    row: str
    value: float
    unit: str = "x"
    stock: float | None = None
    ours: float | None = None
    absolute_unit: str = ""
    control: float | None = None
    noisy: bool = False
    note: str = ""
    raw: dict[str, list[float]] = field(default_factory=dict)


@dataclass(slots=True)
class Effort:
    """How long to measure."""

    quick: bool

    def rounds(self, full: int) -> int:
        """Return the number of rounds: a quarter in a hurry."""
        return max(5, full // 4) if self.quick else full


class Report:
    """The rows of one benchmark; printed, and written for ``run.py``."""

    def __init__(self, description: str) -> None:
        """Read the command line that all benchmarks share."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--quick", action="store_true", help="a quarter of the rounds")
        parser.add_argument("--json", metavar="PATH", help="also write the rows there")
        parser.add_argument("--raw", metavar="PATH", help="also write all values, in pyperf's format")
        parser.add_argument("--rows", metavar="TEXT", default="", help="only rows whose name contains TEXT")
        self.options = parser.parse_args()
        self.effort = Effort(self.options.quick)
        self.rows: list[Row] = []
        self.skipped: list[str] = []
        self.title = description.splitlines()[0]
        print(f"{self.title}\n{describe_python()}\n")

    def wants(self, name: str) -> bool:
        """Return whether the row was asked for."""
        return self.options.rows in name

    def add(self, row: Row) -> Row:
        """Take a row and print it."""
        self.rows.append(row)
        print(render_row(row), flush=True)
        return row

    def skip(self, why: str) -> None:
        """Say why rows are missing."""
        self.skipped.append(why)
        print(f"skipped: {why}", flush=True)

    def close(self) -> None:
        """Write what was asked for."""
        if self.options.raw:
            write_raw(self.options.raw, self.rows)
        if self.options.json:
            rows = [{key: value for key, value in asdict(row).items() if key != "raw"} for row in self.rows]
            document = {"python": python_facts(), "rows": rows, "skipped": self.skipped}
            with open(self.options.json, "w", encoding="utf-8") as file:
                json.dump(document, file, indent=1)


def render_row(row: Row) -> str:
    """Return one line of the printed table."""
    text = f"{row.row:<44} {row.value:9.3f} {row.unit:<6}"
    if row.stock is not None and row.ours is not None:
        text += f" stock {row.stock:11.1f} ours {row.ours:11.1f} {row.absolute_unit:<5}"
    if row.control is not None:
        text += f" control {row.control:5.2f}"
    return text + (" NOISY" if row.noisy else "") + (f"  {row.note}" if row.note else "")


# ------------------------------------------------------------ measuring


def take_turns(variants: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Return what each variant returned in each round; the order turns."""
    labels = list(variants)
    values: dict[str, list[float]] = {label: [] for label in labels}
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            turn = number % len(labels)
            for label in labels[turn:] + labels[:turn]:
                values[label].append(variants[label]())
    finally:
        if was_enabled:
            gc.enable()
    return values


def ratio_of(values: dict[str, list[float]], one: str, other: str, *, by: str, better: str) -> float:
    """Return ``one`` to ``other``: of the best of both, or the median of the ratios of neighbours."""
    if by == "median":
        return statistics.median(a / b for a, b in zip(values[one], values[other], strict=True) if b)
    best = min if better == "less" else max
    return best(values[one]) / best(values[other])


def compare(
    name: str,
    stock: Any,
    ours: Any,
    control: Any,
    *,
    rounds: int,
    by: str = "minimum",
    better: str = "less",
    scale: float = 1e9,
    absolute_unit: str = "ns",
    note: str = "",
) -> Row:
    """Return the row of ours to stock; the three are variants (H1)."""
    values = take_turns({"stock": stock, "ours": ours, "control": control}, rounds)
    to_itself = ratio_of(values, "control", "stock", by=by, better=better)
    best = statistics.median if by == "median" else min if better == "less" else max
    return Row(
        row=name,
        value=ratio_of(values, "ours", "stock", by=by, better=better),
        stock=best(values["stock"]) * scale,
        ours=best(values["ours"]) * scale,
        absolute_unit=absolute_unit,
        control=to_itself,
        noisy=abs(to_itself - 1) > NOISY,
        note=note,
        raw={label: values[label] for label in ("stock", "ours", "control")},
    )


def statement(code: str, names: dict[str, Any], *, number: int = 0) -> Any:
    """Return the variant that runs ``code`` with ``names`` as locals, as a program's own hot function would have them."""
    setup = "; ".join(f"{name} = _{name}" for name in names) or "pass"
    timer = Timer(code, setup, globals={f"_{name}": value for name, value in names.items()})
    count = number or calibrate(timer)

    def variant() -> float:
        return timer.timeit(count) / count

    return variant


def calibrate(timer: Timer) -> int:
    """Return how many repetitions take about a round."""
    number = 50
    while (took := timer.timeit(number)) < ROUND_SECONDS / 4:
        number *= 4
    return max(10, int(number * ROUND_SECONDS / took))


# ------------------------------------------------------------ stock beside ours


def private_stdlib() -> SimpleNamespace:
    """Return copies of ``threading`` and ``queue`` that no hook reaches; to be called before ``install``."""
    private = _run_again("threading", {})
    return SimpleNamespace(threading=private, queue=_run_again("queue", {"threading": private}))


def _run_again(name: str, instead: dict[str, ModuleType]) -> ModuleType:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    real = {other: sys.modules[other] for other in instead}
    sys.modules.update(instead)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.modules.update(real)
    return module


def three_libraries() -> tuple[SimpleNamespace, SimpleNamespace, SimpleNamespace]:
    """Install the agent; return (stock, ours, stock once more), each with ``threading`` and ``queue``."""
    import queue

    stock, control = private_stdlib(), private_stdlib()
    install()
    return stock, SimpleNamespace(threading=threading, queue=queue), control


def install(**options: Any) -> Any:
    """Install the agent as a program would, but for what writes to the outside."""
    import concagent

    return concagent.install(**{"log": False, "socket": False, "report_signal": "off", **options})


def in_thread(function: Any, *arguments: Any) -> Any:
    """Run ``function`` in a thread that neither variant sees; return what waits for its end and raises its error."""
    from concagent import _real

    done = _real.allocate_lock()
    done.acquire()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function(*arguments)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            errors.append(error)
        finally:
            done.release()

    _real.start_new_thread(run, ())

    def wait() -> None:
        if not done.acquire(True, 120):
            raise SystemExit("a thread of a benchmark did not end")
        if errors:
            raise errors[0]

    return wait


# ------------------------------------------------------------ the machine


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    with open(PROC_STATUS, encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))


def is_optimised() -> bool:
    """Return whether the interpreter was built with profile-guided optimisation.

    Distributions do not leave their flags in ``sysconfig``; what lives in ``/usr`` is theirs, and they all optimise.
    """
    arguments = str(sysconfig.get_config_var("CONFIG_ARGS"))
    return "--enable-optimizations" in arguments or sys.base_prefix == "/usr"


def python_facts() -> dict[str, Any]:
    """Return what identifies the interpreter and our core in it."""
    from concagent import core

    return {
        "version": platform.python_version(),
        "minor": ".".join(platform.python_version_tuple()[:2]),
        "optimised": is_optimised(),
        "core": core.NAME,
        "compiler": platform.python_compiler(),
    }


def describe_python() -> str:
    """Return one line for the head of a table."""
    facts = python_facts()
    return (
        f"CPython {facts['version']}{' (PGO)' if facts['optimised'] else ''}, {platform.machine()}, core {facts['core']}, "
        f"load {os.getloadavg()[0]:.1f}"
    )


def write_raw(path: str, rows: list[Row]) -> None:
    """Write all values as a suite that ``pyperf`` can show and compare; nothing if pyperf is absent."""
    try:
        import pyperf
    except ImportError:
        print("no raw values: pyperf is not installed", file=sys.stderr)
        return
    benchmarks = [
        pyperf.Benchmark(
            [
                pyperf.Run(
                    values, metadata={"name": f"{row.row} [{label}]", "unit": "second"}, collect_metadata=not index
                )
            ]
        )
        for row in rows
        for index, (label, values) in enumerate(row.raw.items())
        if values and min(values) > 0 and row.absolute_unit != "op/s"
    ]
    if benchmarks:
        pyperf.BenchmarkSuite(benchmarks).dump(path, replace=True)


def machine_facts() -> dict[str, str]:
    """Return what is known of the machine, by pyperf if it is there."""
    facts = {"system": platform.platform(), "cores": str(os.cpu_count())}
    try:
        import pyperf

        metadata = pyperf.Run([1.0], metadata={"name": "machine"}, collect_metadata=True).get_metadata()
        for name in ("cpu_model_name", "cpu_config", "aslr", "boot_time"):
            if name in metadata:
                facts[name] = str(metadata[name])
    except ImportError:
        pass
    return facts


def build_extension(name: str, source: str) -> ModuleType:
    """Return a C module compiled from ``source`` below ``build/``.

    Raises:
        ImportError: There is no compiler, or it failed; says which.
    """
    tag = sysconfig.get_config_var("EXT_SUFFIX")
    folder = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "build", "bench", "c")
    os.makedirs(folder, exist_ok=True)
    c_file, library = os.path.join(folder, name + ".c"), os.path.join(folder, name + tag)
    with open(c_file, "w", encoding="ascii") as file:
        file.write(source)
    include = sysconfig.get_path("include")
    compiler = os.environ.get("CC", "cc")
    command = [compiler, "-O3", "-fPIC", "-shared", f"-I{include}", c_file, "-o", f"{library}.{os.getpid()}"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise ImportError(f"no compiler {compiler}") from error
    except subprocess.CalledProcessError as error:
        raise ImportError(f"{compiler} failed: {error.stderr[-300:]}") from error
    os.replace(f"{library}.{os.getpid()}", library)
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def child_environment(**settings: str) -> dict[str, str]:
    """Return the environment of a process to be measured: as a user has it, with compiled modules kept."""
    environment = {**os.environ, **settings}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def environment_with(name: str, *packages: str) -> str:
    """Return the interpreter of an environment that has these packages, made on first use below ``build``.

    Each interpreter has its own, also two of one version.

    Raises:
        ImportError: It cannot be made; says why.
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    version = ".".join(str(part) for part in sys.version_info[:3])
    folder = os.path.join(root, "build", f"bench-{name}-{version}{'-pgo' if is_optimised() else ''}")
    python = os.path.join(folder, "bin", "python")
    code = "import " + ", ".join(packages)
    if os.path.exists(python) and not subprocess.run([python, "-c", code], capture_output=True, check=False).returncode:
        return python
    for step in (
        [sys.executable, "-m", "venv", "--clear", folder],
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages],
    ):
        try:
            subprocess.run(step, check=True, capture_output=True, text=True, timeout=INSTALL_SECONDS)
        except (subprocess.SubprocessError, OSError) as error:
            words = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            why = words[-1] if words else error
            raise ImportError(f"{', '.join(packages)} cannot be installed: {why}") from error
    return python


def this_concagent() -> str:
    """Return the first lines of a program for such an interpreter: it finds concagent where this process found it."""
    lines = ["import sys, importlib.util as u"]
    for name in ("concagent", "concagent.hooks", "concagent.exporters"):
        package = importlib.import_module(name)
        lines += [
            f"spec = u.spec_from_file_location({name!r}, {package.__file__!r},",
            f"    submodule_search_locations={list(package.__path__)!r})",
            f"sys.modules[{name!r}] = module = u.module_from_spec(spec); spec.loader.exec_module(module)",
        ]
    return "\n".join(lines) + "\nconcagent = sys.modules['concagent']\n"


def clock() -> float:
    """Return seconds of a clock that only goes forward."""
    return time.perf_counter()
