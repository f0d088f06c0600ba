"""Runs all benchmarks on all given interpreters, writes what came out, and compares it with the budgets.

    python benchmarks/run.py                       this interpreter, everything, three fresh processes for each ratio
    python benchmarks/run.py --quick               one process, a quarter of the rounds
    python benchmarks/run.py --python PY [PY ...]  other interpreters; concagent must be importable in each
    python benchmarks/run.py --only locks sync     these benchmarks; the others keep the figures they have
    python benchmarks/run.py --again               measure again what was missed or noisy, and count all measurements
    python benchmarks/run.py --check               judge by budgets.toml, too; with --render only judge what is kept

    python benchmarks/run.py --merge FILE ...      take in what other runs kept: another checkout, another root file system
    python benchmarks/run.py --render              measure nothing; write anew from what is kept

All figures are kept in ``benchmarks/results.json``, beside ``RESULTS.md`` and ``results.svg``, which are written from there
after each benchmark.  So a run can be broken off and continued, and what one interpreter measures leaves the figures of all
others as they are.  A figure measured in several processes is the median of theirs.  ``--again`` adds to the figures and
never replaces them: who measures until the result pleases has measured nothing.

A benchmark that fails is told, keeps the figures that it had, and lets the others run.  Exit status: 2 if one failed; with
``--check`` 1 if a row is missed by more than its slack; else 0.  A row that could not be measured is named and fails nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from datetime import date, datetime
from typing import Any, Final

import _harness
from _adapters import ADAPTERS

try:
    import tomllib
except ImportError:  # 3.10
    from pip._vendor import tomli as tomllib

HERE: Final = os.path.dirname(os.path.abspath(__file__))
ROOT: Final = os.path.dirname(HERE)
WORK: Final = os.path.join(ROOT, "build", "bench")
OWN: Final = (
    "locks",
    "sync",
    "queue",
    "processes",
    "contention",
    "threads",
    "memory",
    "scale",
    "idle",
    "board",
    "app",
    "peers",
)
SEVERAL: Final = ("locks", "sync", "queue", "processes", "contention", "threads")  # in several processes
PROCESSES: Final = 3
PATIENCE_SECONDS: Final = 900
KEPT: Final = os.path.join(HERE, "results.json")

Results = dict[str, Any]  # interpreter -> {"python": facts, "rows": {row -> {"values": [...], last row ...}}, ...}


# ------------------------------------------------------------ measuring


def facts_of(python: str) -> dict[str, Any]:
    """Return what identifies an interpreter.

    Raises:
        SystemExit: concagent cannot be imported there.
    """
    code = (
        f"import sys, json; sys.path.insert(0, {HERE!r}); import _harness; print(json.dumps(_harness.python_facts()))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"{python} cannot be measured: {done.stderr.strip().splitlines()[-1:]}; is concagent installed there?"
        )
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def label_of(facts: dict[str, Any]) -> str:
    """Return what an interpreter is called in tables."""
    return facts["version"] + (" PGO" if facts["optimised"] else "")


def run_bench(python: str, bench: str, quick: bool, label: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return (rows, what was skipped) of one benchmark in one fresh process."""
    if bench in ADAPTERS:
        rows = ADAPTERS[bench](python, quick)
        return [{name: getattr(row, name) for name in _harness.Row.__slots__ if name != "raw"} for row in rows], []
    path = os.path.join(WORK, f"{label.replace(' ', '-')}.{bench}")
    command = [
        python,
        os.path.join(HERE, f"bench_{bench}.py"),
        "--json",
        path + ".json",
        "--raw",
        path + ".pyperf.json",
    ]
    done = subprocess.run(
        command + ["--quick"] * quick,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        env=_harness.child_environment(),
    )
    if done.returncode:
        raise SystemExit(f"bench_{bench}.py: {(done.stderr or done.stdout)[-1500:]}")
    with open(path + ".json", encoding="utf-8") as file:
        document = json.load(file)
    return document["rows"], document["skipped"]


def take_in(results: Results, label: str, rows: list[dict[str, Any]], *, afresh: bool, commit: str) -> None:
    """Add rows to what is there, or put them in its place."""
    now = {"measured": datetime.now().isoformat(timespec="minutes"), "load": os.getloadavg()[0], "commit": commit}
    kept = results[label]["rows"]
    for row in rows:
        old = kept.get(row["row"])
        samples = [] if afresh or old is None else old["samples"]
        samples = [*samples, {key: row[key] for key in ("value", "stock", "ours", "control", "noisy")}]
        kept[row["row"]] = {**row, "samples": samples, **middle(samples), **now}


def middle(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians over processes; noisy is a row whose median control is."""
    merged: dict[str, Any] = {}
    for key in ("value", "stock", "ours", "control"):
        values = [sample[key] for sample in samples if sample[key] is not None]
        merged[key] = statistics.median(values) if values else None
    control = merged["control"]
    merged["noisy"] = control is not None and abs(control - 1) > _harness.NOISY
    return merged


def measure(options: argparse.Namespace, results: Results, budgets: list[dict[str, Any]]) -> int:
    """Run what was asked for; keep the figures after each benchmark.  Return how many benchmarks failed."""
    os.makedirs(WORK, exist_ok=True)
    failed, commit = 0, checked_out()
    for python in options.python or [sys.executable]:
        facts = facts_of(python)
        label = label_of(facts)
        entry = results.setdefault(label, {"rows": {}, "skipped": {}})
        entry["python"] = {**facts, "machine": _harness.machine_facts()}
        benches = options.only or [*OWN, *ADAPTERS]
        if options.again:
            doubtful = {b["bench"] for b in budgets if is_doubtful(b, entry)}
            benches = [bench for bench in benches if bench in doubtful]
        for bench in benches:
            count = options.processes or (1 if options.quick or bench not in SEVERAL else PROCESSES)
            started = time.monotonic()
            told = ""
            try:
                for number in range(count):
                    rows, skipped = run_bench(python, bench, options.quick, label)
                    take_in(results, label, rows, afresh=number == 0 and not options.again, commit=commit)
                    entry["skipped"][bench] = skipped
            except (SystemExit, subprocess.TimeoutExpired, OSError) as error:
                failed += 1
                told = f", FAILED: {str(error).strip().splitlines()[-1][-300:]}"
                entry["skipped"][bench] = [f"bench_{bench}.py failed on {date.today().isoformat()}{told[8:]}"]
            load = os.getloadavg()[0]
            write(results, budgets)
            print(f"{label:<12} {bench:<14} {time.monotonic() - started:5.0f} s, load {load:.1f}{told}", flush=True)
    return failed


def checked_out() -> str:
    """Return the commit that is measured, with a + where files differ from it; empty where git cannot tell."""
    git = ["git", "-C", ROOT, "-c", f"safe.directory={ROOT}"]
    names = ["describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run([*git, *names], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def load_results(path: str = KEPT) -> Results:
    """Return the kept figures."""
    try:
        with open(path, encoding="utf-8") as file:
            results: Results = json.load(file)
            return results
    except FileNotFoundError:
        return {}


def merge(results: Results, other: Results) -> None:
    """Take in what another run kept, as far as it is newer than what is here: it may have begun with our older figures."""
    for label, entry in other.items():
        kept = results.setdefault(label, {"rows": {}, "skipped": {}})
        newer = {
            name: row
            for name, row in entry["rows"].items()
            if name not in kept["rows"] or row["measured"] > kept["rows"][name]["measured"]
        }
        if newer:
            kept["python"] = entry["python"]
            kept["rows"].update(newer)
            kept["skipped"].update(entry["skipped"])


def as_lines(results: Results) -> str:
    """Return the figures as JSON with one line for each row, so that a new figure is one changed line."""
    texts = []
    for label, entry in results.items():
        rows = [f"{json.dumps(name)}: {json.dumps(row)}" for name, row in entry["rows"].items()]
        texts.append(
            f'{json.dumps(label)}: {{"python": {json.dumps(entry["python"])},\n'
            f'"skipped": {json.dumps(entry["skipped"])},\n"rows": {{\n' + ",\n".join(rows) + "}}"
        )
    return "{\n" + ",\n".join(texts) + "\n}\n"


def write(results: Results, budgets: list[dict[str, Any]]) -> None:
    """Keep the figures, and write the tables and the plot."""
    texts = {
        KEPT: as_lines(results),
        os.path.join(HERE, "RESULTS.md"): render(results, budgets),
        os.path.join(HERE, "results.svg"): render_svg(results, budgets),
    }
    for path, text in texts.items():
        with open(path + ".new", "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(path + ".new", path)


# ------------------------------------------------------------ judging


def read_budgets() -> list[dict[str, Any]]:
    """Return the rows of ``budgets.toml``."""
    with open(os.path.join(HERE, "budgets.toml"), "rb") as file:
        rows: list[dict[str, Any]] = tomllib.load(file)["row"]
    return rows


def goal_of(budget: dict[str, Any], minor: str) -> float | None:
    """Return the goal on a version, None if the row is not judged there."""
    if minor not in budget.get("only", [minor]):
        return None
    return float(budget.get("goals", {}).get(minor, budget["goal"]))


def judge(budget: dict[str, Any], entry: dict[str, Any]) -> str:
    """Return ``met``, ``near`` (missed by no more than the slack), ``missed``, ``absent`` or ``not judged``."""
    goal = goal_of(budget, entry["python"]["minor"])
    row = entry["rows"].get(budget["row"])
    if goal is None:
        return "not judged"
    if row is None:
        return "absent"
    least = budget.get("at", "most") == "least"
    value, slack = row["value"], budget["slack"] * goal
    if value >= goal if least else value <= goal:
        return "met"
    return "near" if (value >= goal - slack if least else value <= goal + slack) else "missed"


def is_doubtful(budget: dict[str, Any], entry: dict[str, Any]) -> bool:
    """Return whether a row should be measured again."""
    row = entry["rows"].get(budget["row"])
    return judge(budget, entry) in ("near", "missed") or bool(row and row["noisy"])


def check(results: Results, labels: list[str], budgets: list[dict[str, Any]]) -> int:
    """Print what is missed; return the exit status."""
    status = 0
    for label in labels:
        entry = results[label]
        verdicts = [(budget, judge(budget, entry)) for budget in budgets]
        counts = {word: sum(verdict == word for _, verdict in verdicts) for word in ("met", "near", "missed", "absent")}
        print(f"{label} (core {entry['python']['core']}): " + ", ".join(f"{n} {word}" for word, n in counts.items()))
        for budget, verdict in verdicts:
            row = entry["rows"].get(budget["row"])
            if verdict in ("near", "missed") and row is not None:
                goal = goal_of(budget, entry["python"]["minor"])
                noisy = "  NOISY: measure again" if row["noisy"] else ""
                unit = "" if row["unit"] == "x" else " " + row["unit"]
                print(f"  {verdict:<7} {budget['row']:<44} {row['value']:8.2f}{unit}, goal {goal:g}{unit}{noisy}")
            elif verdict == "absent":
                print(f"  not measured: {budget['row']}")
        status |= bool(counts["missed"])
    return status


# ------------------------------------------------------------ writing

MARKS = {"met": "", "near": " (near)", "missed": " **missed**", "absent": "", "not judged": ""}


def cell(budget: dict[str, Any], entry: dict[str, Any]) -> str:
    """Return a table cell: the figure, its goal where it differs from the row's, and how it did."""
    row = entry["rows"].get(budget["row"])
    if row is None:
        return "-"
    text = number(row["value"]) + ("~" if row["noisy"] else "")
    goal = goal_of(budget, entry["python"]["minor"])
    if goal is not None and goal != budget["goal"]:
        text += f" /{goal:g}"
    return text + MARKS[judge(budget, entry)]


def number(value: float) -> str:
    """Return a figure with as many digits as it deserves."""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"


def version_key(label: str) -> list[int]:
    """Return what versions are sorted by."""
    return [int("".join(c for c in part if c.isdigit()) or 0) for part in label.split(" ")[0].split(".")]


def render(results: Results, budgets: list[dict[str, Any]]) -> str:
    """Return ``RESULTS.md``."""
    labels = sorted(results, key=version_key)
    lines = [
        "# What concagent costs",
        "",
        "Written by `python benchmarks/run.py` from `results.json`. Do not edit.",
        "",
        "Figures without a unit are ratios: ours to the unpatched primitive, both measured in turn in one process, so what",
        "else the machine does falls out (`_harness.py` argues the method). Less is better, but for rows with a goal of *at",
        "least*. **missed**: by more than the row's slack (`budgets.toml`); (near): missed within the slack; `~`: the control,",
        "the original measured against itself, was more than 5 % off; `/x`: the goal on that version; `-`: not measured.",
        "",
        "![ratios](results.svg)",
        "",
        "| row | goal | " + " | ".join(labels) + " |",
        "|---|---|" + "---|" * len(labels),
    ]
    for budget in budgets:
        row = next(
            (results[label]["rows"][budget["row"]] for label in labels if budget["row"] in results[label]["rows"]), None
        )
        if row is not None:
            unit = "" if row["unit"] == "x" else f" {row['unit']}"
            at = "at least " if budget.get("at") == "least" else "<= "
            cells = " | ".join(cell(budget, results[label]) for label in labels)
            lines.append(f"| {budget['row']} | {at}{budget['goal']:g}{unit} | {cells} |")
    lines += ["", *render_missing(results, labels)]
    for label in labels:
        lines += render_interpreter(label, results[label])
    return "\n".join(lines) + "\n"


def render_missing(results: Results, labels: list[str]) -> list[str]:
    """Return what was skipped, and why."""
    told = [
        f"* {label}: {why}"
        for label in labels
        for reasons in results[label].get("skipped", {}).values()
        for why in reasons
    ]
    return ["Not measured:", "", *told, ""] if told else []


def circumstances(entry: dict[str, Any]) -> str:
    """Return when, where and of what the figures of an interpreter were taken."""
    rows = entry["rows"].values()
    days = sorted({row["measured"][:10] for row in rows})
    commits = list(dict.fromkeys(row["commit"] for row in rows if row.get("commit")))
    loads = [row["load"] for row in rows if "load" in row]
    told = [f"Measured {' to '.join(dict.fromkeys((days[0], days[-1])))}"] if days else []
    told += [f"commit {', '.join(commits)}"] if commits else []
    told += [f"{key} {value}" for key, value in entry["python"].get("machine", {}).items()]
    told += [f"load {min(loads):.1f} to {max(loads):.1f}, our own included"] if loads else []
    return "; ".join(told) + "." if told else ""


def render_interpreter(label: str, entry: dict[str, Any]) -> list[str]:
    """Return all figures of one interpreter."""
    facts = entry["python"]
    lines = [
        f"## CPython {label}",
        "",
        f"Core: {facts['core']}; built by {facts['compiler']}{', profile-guided' if facts['optimised'] else ''}. "
        + circumstances(entry),
        "",
        "| row | figure | stock | ours | control | processes | note |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in entry["rows"].items():
        unit = "" if row["unit"] == "x" else f" {row['unit']}"
        stock, ours = (
            f"{number(row[k])} {row['absolute_unit']}" if row[k] is not None else "" for k in ("stock", "ours")
        )
        control = f"{row['control']:.2f}{'~' if row['noisy'] else ''}" if row["control"] is not None else ""
        values = [sample["value"] for sample in row["samples"]]
        spread = f"{len(values)} ({number(min(values))}-{number(max(values))})" if len(values) > 1 else "1"
        lines.append(
            f"| {name} | {number(row['value'])}{unit} | {stock} | {ours} | {control} | {spread} | {row['note']} |"
        )
    return [*lines, ""]


# ------------------------------------------------------------ the plot

COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e")
LEFT, RIGHT, STEP, TOP = 300, 810, 22, 76
LOWEST, HIGHEST = 0.2, 5.0


def position(ratio: float) -> float:
    """Return where a ratio lies on the logarithmic axis."""
    import math

    bounded = min(max(ratio, LOWEST), HIGHEST)
    return LEFT + (RIGHT - LEFT) * math.log(bounded / LOWEST) / math.log(HIGHEST / LOWEST)


def render_svg(results: Results, budgets: list[dict[str, Any]]) -> str:
    """Return the plot: a line for each row that is a ratio, a dot for each interpreter, a bar where the goal is."""
    labels = sorted(results, key=version_key)
    shown = [
        budget
        for budget in budgets
        if budget["bench"] != "peers"
        and any(results[label]["rows"].get(budget["row"], {}).get("unit") == "x" for label in labels)
    ]
    height = TOP + STEP * len(shown) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{RIGHT + 30}" height="{height}" '
        f'viewBox="0 0 {RIGHT + 30} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{RIGHT + 30}" height="{height}" fill="white"/>',
        '<text x="12" y="22" font-size="15" font-weight="bold">Ours to the unpatched primitive (1 = as fast as stock; '
        "grey bar: the goal)</text>",
    ]
    for index, label in enumerate(labels):
        x = 12 + index * 96
        parts.append(f'<circle cx="{x + 5}" cy="42" r="5" fill="{COLOURS[index % len(COLOURS)]}"/>')
        parts.append(f'<text x="{x + 15}" y="46">{label}</text>')
    bottom = TOP + STEP * len(shown)
    for tick in (0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0):
        x = position(tick)
        colour, width = ("#444", 1.5) if tick == 1.0 else ("#ddd", 1)
        parts.append(
            f'<line x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{bottom}" stroke="{colour}" stroke-width="{width}"/>'
        )
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle" fill="#555">{tick:g}</text>')
    for line, budget in enumerate(shown):
        y = TOP + STEP * line + STEP / 2
        more = budget.get("at") == "least"
        parts.append(
            f'<text x="{LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{budget["row"]}{" (more is better)" * more}</text>'
        )
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{RIGHT}" y2="{y:.1f}" stroke="#eee"/>')
        goals = sorted(
            {goal for label in labels if (goal := goal_of(budget, results[label]["python"]["minor"])) is not None}
        )
        parts += [
            f'<rect x="{position(goal) - 2:.1f}" y="{y - 8:.1f}" width="4" height="16" fill="#bbb"/>' for goal in goals
        ]
        for index, label in enumerate(labels):
            row = results[label]["rows"].get(budget["row"])
            if row is not None:
                fill = COLOURS[index % len(COLOURS)]
                shift = (index - (len(labels) - 1) / 2) * 1.6
                title = f"<title>{label}: {row['value']:.2f}</title>"
                centre = f'cx="{position(row["value"]):.1f}" cy="{y + shift:.1f}"'
                paint = f'fill="white" stroke="{fill}" stroke-width="1.5"' if row["noisy"] else f'fill="{fill}"'
                parts.append(f'<circle {centre} r="4" {paint} fill-opacity="0.85">{title}</circle>')
    parts.append(
        f'<text x="12" y="{height - 6}" fill="#777">Hollow: the control was more than 5 % off. Off the scale: at its edge.</text>'
    )
    return "\n".join([*parts, "</svg>", ""])


def main() -> int:
    """Measure, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--python", nargs="+", metavar="PY")
    parser.add_argument("--only", nargs="+", metavar="BENCH", choices=[*OWN, *ADAPTERS])
    parser.add_argument("--processes", type=int, metavar="N", help="fresh processes for each benchmark")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--render", action="store_true", help="measure nothing; write anew")
    parser.add_argument("--merge", nargs="+", metavar="FILE", help="results.json of other runs")
    options = parser.parse_args()
    results, budgets = load_results(), read_budgets()
    for path in options.merge or []:
        if not os.path.exists(path):
            raise SystemExit(f"there is no {path}")
        merge(results, load_results(path))
    failed = 0
    labels = sorted(results, key=version_key)
    if not (options.render or options.merge):
        labels = [label_of(facts_of(python)) for python in options.python or [sys.executable]]
        failed = measure(options, results, budgets)
    write(results, budgets)
    status = check(results, labels, budgets) if options.check else 0
    if not options.check:
        print("written: benchmarks/results.json, benchmarks/RESULTS.md, benchmarks/results.svg")
    return 2 if failed else status


if __name__ == "__main__":
    sys.exit(main())
