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
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from concagent._real import open_file, sleep
from concagent.diagnosis import diagnosis, installed_version
from concagent.errors import ConcagentError, ConfigError
from concagent.exporters import control
from concagent.model import KINDS
from concagent.saved import graph_of_file, merged, read_findings
from concagent.threadtable import threads_table

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


def _print_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"concagent {installed_version()}")
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
        data = graph_of_file(source, form, number)
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
        return threads_table(json.loads(control.request(pid, "report-json", timeout)))

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
    findings = merged(read_findings(file))
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
    rows = list(diagnosis())
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


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns, the last of which may be as long as it likes."""
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header) - 1)]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*cells, row[-1]]))
