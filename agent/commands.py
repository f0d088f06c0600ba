"""All commands but ``run``: what a person asks of a process or a file.

Whoever types these is mostly in a hurry, so whatever goes wrong is one line on stderr that says what to do next, and exit
status 2; status 1 is kept for "there are findings".  Output is plain where it is not a terminal, so that it can be grepped and
mailed; at a terminal it has colours.

A report is made by the process that is asked, and only shown here: the two may be of different versions.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from concagent._real import open_file, sleep
from concagent.config import FAMILIES, OPTIONS, Config, format_text
from concagent.errors import ConcagentError, ConfigError
from concagent.exporters import control
from concagent.model import (
    KINDS,
    Actor,
    AssignmentEdge,
    CallSite,
    Finding,
    RequestEdge,
    Resource,
    Snapshot,
    StackFrame,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

SEVERE_KINDS = tuple(k for k in KINDS if k not in {"long-wait", "long-hold", "loop-blocked", "atomicity-violation"})

# Two threads, two locks, opposite orders: what the demo shows where no examples are at hand.  The gates are events and not
# sleeps, so that it deadlocks on the slowest machine too.
DEMO = """
import threading

accounts, audit = threading.Lock(), threading.Lock()
first, second = threading.Event(), threading.Event()


def transfer():
    with accounts:
        first.set()
        second.wait()
        with audit:
            pass


def review():
    with audit:
        second.set()
        first.wait()
        with accounts:
            pass


threads = [threading.Thread(target=work, name=work.__name__, daemon=True) for work in (transfer, review)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(timeout=2)
print("transfer and review wait for each other for ever; the program ends without them")
"""


class _Group(click.Group):
    """Shows our errors as one line and exit status 2, and the commands in the order of their use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which they were defined."""
        del ctx
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Carry out a command; whatever is wrong ends here."""
        try:
            return super().invoke(ctx)
        except ConcagentError as error:
            raise _failure(str(error)) from error
        except BrokenPipeError:
            # `concagent report PID | head`: the reader has seen enough.  Python would complain at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            ctx.exit(0)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise _failure(f"{where}{error.strerror or error}") from error


def _failure(message: str) -> click.ClickException:
    """Return what `main` shows as one line."""
    return click.ClickException(" ".join(message.split()))


def main(arguments: Sequence[str]) -> int:
    """Carry out a command line and return its exit status: 0, 1 for findings, 2 for errors."""
    try:
        result = cli.main(list(arguments) or ["--help"], prog_name="concagent", standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"concagent: {error.format_message()}", err=True)
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 130
    return result if isinstance(result, int) else 0


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("concagent")
    except PackageNotFoundError:
        return "unknown (not installed)"


def _print_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"concagent {_version()}")
        ctx.exit()


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
def cli() -> None:
    """Say what a concurrent Python program waits for, and why."""


@cli.command(add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def run() -> None:
    """Run a Python program under the agent: concagent run [OPTIONS] SCRIPT [ARGS]."""
    # Only reached where something stands before `run`; the plain way never imports this module.
    from concagent import runner

    runner.main(click.get_current_context().args)


pid_argument = click.argument("pid", type=click.IntRange(min=1))
timeout_option = click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), default=10.0, show_default=True, help="Seconds to wait."
)


@cli.command()
@pid_argument
@click.option("--format", "form", type=click.Choice(["text", "json", "dot"]), default="text", show_default=True)
@click.option("--tree", is_flag=True, help="Show all processes of the program that PID belongs to (text or json).")
@timeout_option
def report(pid: int, form: str, tree: bool, timeout: float) -> None:
    """Show what all threads of process PID hold and wait for, now."""
    if not tree:
        _write(control.request(pid, f"report-{form}", timeout))
        return
    from concagent import family

    if form == "dot":
        raise click.UsageError("--tree is for text and json; ask each process for its graph")
    if not os.path.exists("/proc/self/stat"):
        raise click.UsageError("--tree needs /proc, which this system does not have")
    if not os.path.exists(f"/proc/{pid}"):
        raise control.NoProcessError(f"no process {pid}")
    limit = min(timeout, family.ANSWER_SECONDS)
    text = family.report_text(pid, limit) if form == "text" else family.report_json(pid, limit)
    _write(text.encode("utf-8", "backslashreplace"))


@cli.command()
@click.argument("source", metavar="PID|FILE")
@click.option("--format", "form", type=click.Choice(["svg", "dot", "json"]), default="svg", show_default=True)
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="File to write instead of standard output.")
@click.option(
    "-n", "--number", type=click.IntRange(min=1), help="Which finding of the file; by default the last deadlock."
)
@timeout_option
def graph(source: str, form: str, output: str | None, number: int | None, timeout: float) -> None:
    """Draw who waits for whom, in process PID or in a FILE of findings or of a report in JSON."""
    if source.isdecimal() and not os.path.exists(source):
        command = "snapshot-json" if form == "json" else f"report-{form}"
        data = control.request(int(source), command, timeout)
    else:
        data = _graph_of_file(source, form, number)
    if output is None:
        _write(data)
        return
    with open_file(output, "wb") as file:
        file.write(data)


@cli.command()
@pid_argument
@click.option("--once", is_flag=True, help="Show one picture and end.")
@click.option(
    "--interval", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds between pictures."
)
@timeout_option
def top(pid: int, once: bool, interval: float, timeout: float) -> None:
    """Show the threads of process PID that wait, the longest first, again every second."""

    def picture() -> RenderableType:
        return _top_picture(json.loads(control.request(pid, "report-json", timeout)))

    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 1000)
    if once or not sys.stdout.isatty():
        console.print(picture())
        while not once:
            sleep(interval)
            console.print(picture())
        return
    from rich.live import Live

    with Live(picture(), console=console, auto_refresh=False, screen=True) as live:
        while True:
            sleep(interval)
            live.update(picture(), refresh=True)


@cli.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("-v", "--verbose", is_flag=True, help="Show each finding in full.")
@click.option(
    "--fail-on",
    metavar="KIND,...",
    help="Kinds that make the exit status 1; by default all that can hang or break a program.",
)
def check(file: str, verbose: bool, fail_on: str | None) -> int:
    """Show the findings in a FILE that was written by --findings; exit status 1 if there are severe ones."""
    kinds = SEVERE_KINDS if fail_on is None else _kinds(fail_on)
    findings = _merged(read_findings(file))
    severe = [finding for finding in findings if finding.kind in kinds]
    if not findings:
        click.echo(f"{file}: no findings")
        return 0
    if verbose:
        from concagent.exporters.text import render_finding

        for finding in findings:
            click.echo(render_finding(finding, color=sys.stdout.isatty()))
    else:
        _print_table(
            ("kind", "confidence", "of", "times", "what"),
            [(f.kind, f.confidence, f.resource_kind, str(f.count), f.title) for f in findings],
        )
    noun = "finding" if len(findings) == 1 else "findings"
    click.echo(f"{file}: {len(findings)} {noun}, {len(severe)} of them severe")
    return 1 if severe else 0


@cli.command()
@click.argument("slug", required=False)
def explain(slug: str | None) -> None:
    """Say what a finding means and how to cure it; without SLUG, list what can be explained."""
    from concagent import explain as explanations

    if slug is None:
        click.echo("\n".join(explanations.slugs()))
        return
    text = explanations.explain(slug)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(text))
    else:
        click.echo(text)


@cli.command()
def doctor() -> int:
    """Show what the agent would do here, and what it cannot; exit status 1 if something is wrong."""
    rows = list(_diagnosis())
    width = max(len(name) for name, _, _ in rows)
    for name, value, good in rows:
        mark = "" if good else click.style("PROBLEM: ", fg="red", bold=True)
        click.echo(f"{name:{width}}  {mark}{value}")
    return 0 if all(good for _, _, good in rows) else 1


@cli.command()
def demo() -> int:
    """Run a program that deadlocks, and show what the agent says about it."""
    import subprocess

    script = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "examples", "demo.py")
    if os.path.isfile(script):
        return subprocess.run([sys.executable, script], check=False).returncode
    import tempfile

    with tempfile.TemporaryDirectory(prefix="concagent-demo-") as directory:
        # A file, not -c: a report quotes the source.
        script = os.path.join(directory, "demo.py")
        with open_file(script, "w", encoding="utf-8") as file:
            file.write(DEMO.lstrip())
        command = [sys.executable, "-m", "concagent", "run", "--stderr", "--no-log", script]
        return subprocess.run(command, check=False).returncode


def _write(data: bytes) -> None:
    """Write to standard output, with a newline at the end."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data if data.endswith(b"\n") else data + b"\n")
    sys.stdout.buffer.flush()


def _kinds(text: str) -> tuple[str, ...]:
    """Return the kinds of a list with commas.

    Raises:
        ConfigError: One of them does not exist.
    """
    kinds = tuple(word.strip() for word in text.split(",") if word.strip())
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(
                f"--fail-on: unknown kind {kind!r}; known: {', '.join(KINDS)}", option="fail_on", value=kind
            )
    return kinds


def read_findings(path: str) -> list[Finding]:
    """Return the findings of a JSON-lines file, in its order.

    Raises:
        ConfigError: A line is not a finding; the message has its number.
        OSError: The file cannot be read.
    """
    from concagent.exporters.json import finding_from_dict

    findings = []
    with open_file(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                findings.append(finding_from_dict(json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{path}:{number}: {error}", option="findings") from error
    return findings


def _merged(findings: Sequence[Finding]) -> list[Finding]:
    """Return each finding once: several runs and processes may have appended the same one."""
    times: Counter[tuple[str, int]] = Counter()
    latest: dict[str, Finding] = {}
    for finding in findings:
        # Within a process a repeated line carries the count so far.
        key = (finding.fingerprint, finding.pid)
        times[key] = max(times[key], finding.count)
        latest.setdefault(finding.fingerprint, finding)
    return [
        finding.with_changes(count=sum(n for (print_, _), n in times.items() if print_ == finding.fingerprint))
        for finding in latest.values()
    ]


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns, the last of which may be as long as it likes."""
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header) - 1)]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*cells, row[-1]]))


def _graph_of_file(path: str, form: str, number: int | None) -> bytes:
    """Return the graph of a report in JSON, or of one finding of a JSON-lines file."""
    from concagent.exporters import dot, svg
    from concagent.exporters.json import finding_line, snapshot_to_json

    picture = _read_report(path)
    if picture is not None:
        snapshot, rings = picture
        if form == "json":
            return snapshot_to_json(snapshot).encode()
        draw = svg.snapshot_svg if form == "svg" else dot.snapshot_dot
        return draw(snapshot, rings=rings).encode("utf-8", "backslashreplace")
    findings = read_findings(path)
    if not findings:
        raise ConfigError(f"{path}: no findings to draw", option="findings")
    if number is None:
        deadlocks = [finding for finding in findings if finding.kind == "deadlock"]
        finding = (deadlocks or findings)[-1]
    elif number > len(findings):
        raise ConfigError(f"{path}: there is no finding {number}; it has {len(findings)}", option="findings")
    else:
        finding = findings[number - 1]
    if form == "json":
        return finding_line(finding).encode()
    return (svg.finding_svg if form == "svg" else dot.finding_dot)(finding).encode("utf-8", "backslashreplace")


def _read_report(path: str) -> tuple[Snapshot, tuple[tuple[int, ...], ...]] | None:
    """Return snapshot and rings of a report or snapshot in JSON; None if the file is something else."""
    with open_file(path, encoding="utf-8", errors="replace") as file:
        try:
            data = json.load(file)
        except (ValueError, RecursionError):
            return None
    if not isinstance(data, dict) or not ("snapshot" in data or "actors" in data) or "fingerprint" in data:
        return None
    try:
        snapshot = _snapshot_from_dict(data.get("snapshot", data))
        rings = tuple(tuple(_serial(actor) for actor in ring) for ring in data.get("rings", ()))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: not a report of this version ({error!r})", option="findings") from error
    return snapshot, rings


def _serial(identity: str) -> int:
    """Return the serial in an actor's ``PID/tSERIAL`` or a resource's ``rSERIAL``."""
    return int(identity.rpartition("/")[2][1:])


def _site(data: Mapping[str, Any] | None) -> CallSite | None:
    return None if data is None else CallSite(str(data["file"]), int(data["line"]), str(data["function"]))


def _snapshot_from_dict(data: Mapping[str, Any]) -> Snapshot:
    """Return the snapshot that a JSON object stands for; its clock starts at the time of the picture."""
    now = float(data["time"])

    def since_ns(seconds: float | None) -> int:
        return 0 if seconds is None else int((seconds - now) * 1e9)

    actors, requests, assignments, resources = [], [], [], []
    for entry in data["actors"]:
        serial = _serial(entry["id"])
        stack = tuple(
            StackFrame(
                str(f["file"]),
                int(f["line"]),
                str(f["function"]),
                str(f.get("source", "")),
                str(f.get("interrupts", "")),
            )
            for f in entry["stack"]
        )
        actors.append(
            Actor(serial, entry["type"], entry["pid"], entry["native_id"], entry["name"], entry["daemon"],
                  entry.get("state", "live"), stack)
        )  # fmt: skip
        if entry["waits_for"] is not None:
            requests.append(
                RequestEdge(serial, _serial(entry["waits_for"]), since_ns(entry["waiting_since"]), 0,
                            bool(entry["timed"]), _site(entry.get("waits_at")))
            )  # fmt: skip
    for entry in data["resources"]:
        serial = _serial(entry["id"])
        resources.append(
            Resource(serial, entry["kind"], entry["name"], _site(entry["created"]),
                     bool(entry.get("signal_mode")), entry.get("permits"))
        )  # fmt: skip
        for holder in entry["holders"]:
            since = None if holder["since"] is None else since_ns(holder["since"])
            assignments.append(AssignmentEdge(serial, _serial(holder["actor"]), since, 1, _site(holder["acquired"])))
    return Snapshot(
        pid=int(data["pid"]),
        monotonic_ns=0,
        wall_seconds=now,
        actors=tuple(sorted(actors, key=lambda actor: actor.serial)),
        resources=tuple(sorted(resources, key=lambda resource: resource.serial)),
        requests=tuple(sorted(requests, key=lambda edge: edge.actor)),
        assignments=tuple(sorted(assignments, key=lambda edge: (edge.resource, edge.holder))),
        untracked_locks=int(data.get("untracked_locks", 0)),
        foreign_threads=int(data.get("foreign_threads", 0)),
        process_name=str(data.get("process_name", "")),
    )


def _top_picture(report: Mapping[str, Any]) -> RenderableType:
    """Return the threads of a report as a table: those in a ring first, then the longest waits, then the others."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    snapshot, statistics = report["snapshot"], report["statistics"]
    now = snapshot["time"]
    in_ring = {actor for ring in report["rings"] for actor in ring}
    names = {r["id"]: f"{r['kind']} {_resource_name(r)}" for r in snapshot["resources"]}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, right in (("id", False), ("thread", False), ("state", False), ("waits for", False), ("since", True)):
        table.add_column(column, justify="right" if right else "left", no_wrap=True, overflow="ellipsis")
    table.add_column("holds", overflow="ellipsis", no_wrap=True)
    table.add_column("where", overflow="ellipsis", no_wrap=True)

    def order(actor: Mapping[str, Any]) -> tuple[bool, bool, float]:
        return actor["id"] not in in_ring, actor["waits_for"] is None, actor["waiting_since"] or now

    actors = [actor for actor in snapshot["actors"] if actor["state"] != "agent"]
    for actor in sorted(actors, key=order):
        waits = actor["waits_for"]
        since = f"{max(0.0, now - actor['waiting_since']):.1f} s" if waits and actor["waiting_since"] else ""
        where = actor.get("waits_at") or (actor["stack"][-1] if actor["stack"] else None)
        # Text, not markup: a lock may be called "[red]".
        cells = [
            str(_serial(actor["id"])),
            actor["name"],
            "deadlock" if actor["id"] in in_ring else actor["state"],
            names.get(waits, waits) if waits else "",
            since,
            ", ".join(names.get(held, held) for held in actor["holds"]),
            f"{os.path.basename(where['file'])}:{where['line']} {where['function']}" if where else "",
        ]
        table.add_row(*(Text(cell) for cell in cells), style="red" if actor["id"] in in_ring else None)
    head = (
        f"pid {snapshot['pid']} {snapshot['process_name']}  {len(actors)} threads, "
        f"{statistics['blocked_threads']} blocked, {len(in_ring)} deadlocked; "
        f"{statistics['locks_alive']} locks; {statistics['open_findings']} open findings"
    )
    return Group(Text(head, style="bold"), Text(""), table)


def _resource_name(resource: Mapping[str, Any]) -> str:
    if resource["name"]:
        return str(resource["name"])
    created = resource["created"]
    place = f" {os.path.basename(created['file'])}:{created['line']}" if created else ""
    return f"{resource['id']}{place}"


def _diagnosis() -> Iterator[tuple[str, str, bool]]:
    """Yield what is to be said: a name, a value, and whether that is as it should be."""
    import platform
    import signal

    from concagent import core
    from concagent.reportsignal import ReportSignal

    yield "concagent", f"{_version()} in {os.path.dirname(os.path.abspath(__file__))}", True
    yield "interpreter", f"{platform.python_implementation()} {platform.python_version()}, {sys.executable}", True
    try:
        config = Config.from_sources({}, os.environ)
    except ConfigError as error:
        yield "configuration", str(error), False
        config = Config()
    else:
        changed = {
            option.name: format_text(option, getattr(config, option.name))
            for option in OPTIONS
            if getattr(config, option.name) != option.default
        }
        told = ", ".join(f"{name}={value}" for name, value in changed.items()) or "all defaults"
        yield "configuration", told, True
    try:
        twin, reason = core.choose(config.core)
        yield "core", f"{twin.NAME} ({reason})", True
    except ConfigError as error:
        yield "core", str(error), False
    missing = [family for family in FAMILIES if family not in config.patch]
    watched = ", ".join(config.patch) or "none"
    yield "watched", watched + (f" (not watched: {', '.join(missing)})" if missing else ""), True
    for tool in ("gevent", "eventlet"):
        if tool in sys.modules:
            yield "conflict", f"{tool} is already imported; start concagent first", False
    if config.socket:
        try:
            yield "control socket", f"in {control.runtime_directory()}", True
        except ConfigError as error:
            yield "control socket", str(error), False
    else:
        yield "control socket", "off", True
    if config.report_signal == "off":
        yield "report signal", "off", True
        return
    try:
        ReportSignal(signal.Signals[config.report_signal]).close()
    except ConcagentError as error:
        yield "report signal", str(error), False
    else:
        yield "report signal", f"{config.report_signal}: kill -{config.report_signal.removeprefix('SIG')} PID", True
