"""The command line without a running agent: parsing, files, and one line for whatever is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from concagent import cli, runline, runner, saved
from concagent.errors import ConfigError
from concagent.exporters import control
from concagent.exporters.json import finding_line, report_to_json, snapshot_to_json
from concagent.model import (
    Actor,
    AgentStats,
    AssignmentEdge,
    CallSite,
    Finding,
    Report,
    RequestEdge,
    Resource,
    Snapshot,
    StackFrame,
)

SITE = CallSite("app.py", 12, "work")


def a_finding(kind: str = "deadlock", fingerprint: str = "f1", **changes: object) -> Finding:
    finding = Finding(kind, "lock", "proven", "id", fingerprint, 1732270000.5, 4711, f"a {kind} of two threads")
    return finding.with_changes(**changes)


def a_report() -> Report:
    stack = (StackFrame("app.py", 12, "work", "with b:"),)
    snapshot = Snapshot(
        pid=4711,
        monotonic_ns=5_000_000_000,
        wall_seconds=1732270000.5,
        actors=tuple(
            Actor(serial, "thread", 4711, 4711 + serial, name, False, "blocked", stack)
            for serial, name in ((1, "worker-1"), (2, "[red]worker"))
        ),
        resources=(Resource(1, "lock", "orders", SITE), Resource(2, "rlock", None, SITE, permits=None)),
        requests=(
            RequestEdge(1, 2, 3_000_000_000, 7, False, SITE),
            RequestEdge(2, 1, 4_000_000_000, 9, False, SITE),
        ),
        assignments=(AssignmentEdge(1, 1, 2_000_000_000, 1, SITE), AssignmentEdge(2, 2, 2_500_000_000, 1, SITE)),
        process_name="app.py",
    )
    return Report(snapshot, ((1, 2),), (), AgentStats(blocked_threads=2, locks_alive=2))


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Answer requests as a process 4711 would; return how often each command was asked for."""
    asked: dict[str, int] = {}
    answering = control.report_commands(a_report)

    def request(pid: int, command: str, timeout: float) -> bytes:
        assert pid == 4711
        assert timeout > 0
        asked[command] = asked.get(command, 0) + 1
        return answering[command]()

    monkeypatch.setattr(control, "request", request)
    return asked


class TestOptionsOfRun:
    def test_values_follow_or_are_joined(self) -> None:
        plan = runner.parse(["--metrics-port", "0", "--long-wait=1m", "app.py"])

        assert plan.options == {"metrics_port": 0, "long_wait": 60.0}

    def test_switches_take_no_value_unless_joined(self) -> None:
        plan = runner.parse(["--no-files", "--socket", "--log=off", "app.py"])

        assert plan.options == {"files": False, "socket": True, "log": False}

    def test_the_last_of_two_wins(self) -> None:
        assert runner.parse(["--files", "--no-files", "x"]).options == {"files": False}

    @pytest.mark.parametrize(
        ("arguments", "command"),
        [
            (["app.py", "--files", "-m"], ["app.py", "--files", "-m"]),
            (["--", "--odd.py", "x"], ["--odd.py", "x"]),
            (["-m", "package", "-c"], ["-m", "package", "-c"]),
            (["-mpackage"], ["-m", "package"]),
            (["-c", "pass", "--"], ["-c", "pass", "--"]),
            (["-cpass"], ["-c", "pass"]),
            (["-", "a"], ["-", "a"]),
        ],
    )
    def test_what_follows_the_program_is_the_programs(self, arguments: list[str], command: list[str]) -> None:
        assert runner.parse(["--log", *arguments]).command == command

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "no program given"),
            (["--files"], "no program given"),
            (["--"], "no program given"),
            (["--fils", "x"], "unknown option --fils; did you mean --files?"),
            (["-x", "x"], "unknown option -x; see concagent run --help"),
            (["--no-long-wait", "x"], "unknown option --no-long-wait"),
            (["--no-files=on", "x"], "--no-files takes no value"),
            (["--findings"], "--findings needs a value"),
            (["-m"], "argument expected for the -m option"),
            (["-c"], "argument expected for the -c option"),
        ],
    )
    def test_a_wrong_command_line_is_explained(self, arguments: list[str], message: str) -> None:
        with pytest.raises(runner.UsageError) as caught:
            runner.parse(arguments)

        assert str(caught.value).startswith(message)

    def test_a_wrong_value_names_the_flag(self) -> None:
        with pytest.raises(ConfigError, match=r"^--metrics-port: '70000' is not allowed"):
            runner.parse(["--metrics-port", "70000", "x"])

    def test_the_help_names_every_flag(self) -> None:
        text = runner.help_text()

        assert all(flag in text for flag in runline.BY_FLAG)

    @pytest.mark.parametrize(
        ("head", "options"),
        [
            (["python", "-m", "concagent"], []),
            (["python", "-X", "dev", "-B", "-m", "concagent"], ["-X", "dev", "-B"]),
            (["python", "-Im", "concagent"], ["-I"]),
            (["python", "-E", "/usr/bin/concagent"], ["-E"]),
            (["python", "concagent"], []),
        ],
    )
    def test_the_interpreters_own_options_are_handed_over(self, head: list[str], options: list[str]) -> None:
        assert runner._interpreter_options(head) == options


# An agent that has found what it is told, in place of the real one.
RUN_WITH_FINDINGS = """
import os, sys, types
from concagent import runner
from concagent.config import Config

class Agent:
    config = Config.from_sources({"fail_on": "deadlock,leak"}, {})
    def findings(self):
        return tuple(types.SimpleNamespace(kind=k.strip("-"), suppressed=k.startswith("-")) for k in sys.argv[1:])

sys.modules["concagent.bootstrap"] = types.SimpleNamespace(install=lambda **options: Agent())
import concagent
concagent.bootstrap = sys.modules["concagent.bootstrap"]
runner.main(["-c", %r, *sys.argv[1:]])
"""


class TestFailOn:
    def run(self, program: str, *kinds: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-c", RUN_WITH_FINDINGS % program, *kinds], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout, done.stderr

    def test_a_finding_of_the_kind_makes_status_86_after_all_that_runs_at_exit(self) -> None:
        program = "import atexit; atexit.register(print, 'last'); print('first'); raise SystemExit(3)"

        assert self.run(program, "leak") == (86, "first\nlast\n", "")

    def test_an_unhandled_exception_is_shown_all_the_same(self) -> None:
        status, _, stderr = self.run("1 / 0", "long-wait", "deadlock")

        assert status == 86
        assert stderr.endswith("ZeroDivisionError: division by zero\n")

    @pytest.mark.parametrize("kinds", [(), ("long-wait",), ("-deadlock",)])
    def test_otherwise_the_status_is_the_programs(self, kinds: tuple[str, ...]) -> None:
        assert self.run("import sys; sys.exit(3)", *kinds) == (3, "", "")

    def test_a_forked_child_keeps_its_own_status(self) -> None:
        program = (
            "import os, sys\npid = os.fork()\nif not pid: sys.exit(5)\n"
            "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
        )

        assert self.run(program, "deadlock") == (86, "5\n", "")

    def test_an_agent_that_cannot_be_installed_is_one_line_and_status_2(self) -> None:
        code = RUN_WITH_FINDINGS.replace(
            "install=lambda **options: Agent()",
            "install=lambda **options: (_ for _ in ()).throw(PatchError('cannot patch threading.Lock:\\n gevent'))",
        ).replace(
            "from concagent import runner", "from concagent import runner\nfrom concagent.errors import PatchError"
        )

        done = subprocess.run(
            [sys.executable, "-c", code % "print('never')"], capture_output=True, text=True, check=False
        )

        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "concagent run: cannot patch threading.Lock: gevent\n"


class TestCheck:
    def test_severe_findings_make_status_1(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "findings.jsonl"
        path.write_text("\n".join(map(finding_line, (a_finding(), a_finding("long-wait", "f2")))) + "\n")

        status = cli.main(["check", str(path)])

        assert status == 1
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["kind", "confidence", "of", "times", "what"]
        assert lines[1].endswith("a deadlock of two threads")
        assert lines[-1] == f"{path}: 2 findings, 1 of them severe"

    def test_findings_that_only_warn_make_status_0(self, tmp_path: Path) -> None:
        path = tmp_path / "findings.jsonl"
        path.write_text(finding_line(a_finding("long-wait")) + "\n")

        assert cli.main(["check", str(path)]) == 0
        assert cli.main(["check", "--fail-on", "long-wait,leak", str(path)]) == 1

    def test_one_defect_in_many_lines_is_shown_once(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "findings.jsonl"
        lines = (a_finding(), a_finding(count=3), a_finding(pid=4712))
        path.write_text("".join(finding_line(finding) + "\n" for finding in lines))

        cli.main(["check", str(path)])

        out = capsys.readouterr().out.splitlines()
        assert len(out) == 3
        assert out[1].split()[3] == "4"

    def test_verbose_shows_the_full_text(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "findings.jsonl"
        path.write_text(finding_line(a_finding(advice="Take both locks in one order.")) + "\n")

        cli.main(["check", "-v", str(path)])

        assert "Take both locks in one order." in capsys.readouterr().out

    def test_no_findings_is_status_0(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "empty"
        path.touch()

        assert cli.main(["check", str(path)]) == 0
        assert capsys.readouterr().out == f"{path}: no findings\n"

    @pytest.mark.parametrize("text", ["not json\n", "[]\n", '{"schema": 99}\n', "[" * 100_000])
    def test_a_bad_line_is_named_with_its_number(
        self, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "bad"
        path.write_text(finding_line(a_finding()) + "\n\n" + text)

        assert cli.main(["check", str(path)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"concagent: {path}:3: ")
        assert captured.err.count("\n") == 1

    def test_an_unknown_kind_is_status_2(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["check", "--fail-on", "deadlok", str(tmp_path / "any")]) == 2
        assert "deadlok" in capsys.readouterr().err


class TestGraph:
    @pytest.mark.parametrize(("form", "begins"), [("svg", "<"), ("dot", "digraph"), ("json", "{")])
    def test_a_findings_file_is_drawn(
        self, form: str, begins: str, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        path = tmp_path / "findings.jsonl"
        path.write_text("".join(finding_line(f) + "\n" for f in (a_finding(), a_finding("leak", "f2"))))

        assert cli.main(["graph", str(path), "--format", form]) == 0
        assert capfdbinary.readouterr().out.decode().startswith(begins)

    def test_the_last_deadlock_is_drawn_unless_a_number_is_given(
        self, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        path = tmp_path / "findings.jsonl"
        path.write_text("".join(finding_line(f) + "\n" for f in (a_finding(), a_finding("leak", "f2"))))

        cli.main(["graph", str(path), "--format", "json"])
        assert json.loads(capfdbinary.readouterr().out)["kind"] == "deadlock"
        cli.main(["graph", str(path), "--format", "json", "-n", "2"])
        assert json.loads(capfdbinary.readouterr().out)["kind"] == "leak"
        assert cli.main(["graph", str(path), "-n", "3"]) == 2

    def test_a_report_in_json_draws_the_same_graph_as_the_process(self, tmp_path: Path) -> None:
        report = a_report()
        path = tmp_path / "report.json"
        path.write_text(report_to_json(report))

        for form in ("dot", "svg"):
            output = tmp_path / f"graph.{form}"
            assert cli.main(["graph", str(path), "--format", form, "-o", str(output)]) == 0
            assert output.read_bytes() == control.report_commands(lambda: report)[f"report-{form}"]()

    def test_a_snapshot_survives_being_read_and_written(self) -> None:
        text = snapshot_to_json(a_report().snapshot)

        assert snapshot_to_json(saved.snapshot_from_dict(json.loads(text))) == text

    def test_a_report_that_is_damaged_is_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "report.json"
        path.write_text('{"snapshot": {"actors": [{}]}}')

        assert cli.main(["graph", str(path)]) == 2
        assert capsys.readouterr().err.count("\n") == 1

    def test_a_process_is_asked_for_the_format(self, answers: dict[str, int]) -> None:
        for form in ("svg", "dot", "json"):
            assert cli.main(["graph", "4711", "--format", form]) == 0

        assert answers == {"report-svg": 1, "report-dot": 1, "snapshot-json": 1}


class TestReport:
    @pytest.mark.parametrize("form", ["text", "json", "dot"])
    def test_the_answer_is_shown_as_it_came(
        self, form: str, answers: dict[str, int], capfdbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        assert cli.main(["report", "4711", "--format", form]) == 0

        assert answers == {f"report-{form}": 1}
        assert capfdbinary.readouterr().out == control.report_commands(a_report)[f"report-{form}"]()

    def test_an_error_is_one_line_and_status_2(self, capsys: pytest.CaptureFixture[str]) -> None:
        done = subprocess.Popen([sys.executable, "-c", ""])
        done.wait()

        assert cli.main(["report", str(done.pid)]) == 2
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("", f"concagent: no process {done.pid}\n")

    @pytest.mark.parametrize(
        "arguments", [["report", "x"], ["report"], ["report", "0"], ["no-such-command"], ["--odd"]]
    )
    def test_wrong_usage_is_one_line_and_status_2(
        self, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1


class TestTop:
    def test_a_deadlock_is_on_top_and_names_are_not_markup(
        self, answers: dict[str, int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["top", "4711", "--once"]) == 0

        out = capsys.readouterr().out
        assert answers == {"report-json": 1}
        assert "[red]worker" in out
        assert "deadlock" in out
        assert "lock orders" in out
        assert "rlock r2 app.py:12" in out
        assert "2.0 s" in out
        assert "2 blocked, 2 deadlocked" in out


class TestOthers:
    def test_the_version_is_shown(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["--version"]) == 0
        assert capsys.readouterr().out.startswith("concagent ")

    def test_nothing_is_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main([]) == 0
        assert "explain" in capsys.readouterr().out

    def test_explain_prints_a_section_or_the_list(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["explain", "deadlock"]) == 0
        assert capsys.readouterr().out.startswith("## deadlock")
        assert cli.main(["explain"]) == 0
        assert "deadlock" in capsys.readouterr().out.splitlines()
        assert cli.main(["explain", "deadlok"]) == 2

    def test_doctor_says_what_is_wrong(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tmp_path.chmod(0o700)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        monkeypatch.setenv("CONCAGENT_REPORT_SIGNAL", "off")
        monkeypatch.setenv("CONCAGENT_PATCH", "locks")

        assert cli.main(["doctor"]) == 0
        out = capsys.readouterr().out
        assert "report_signal=off" in out
        assert f"in {tmp_path}{os.sep}concagent" in out
        assert "not watched: sync, threads, files" in out

        monkeypatch.setenv("CONCAGENT_LONG_WIAT", "5")
        assert cli.main(["doctor"]) == 1
        assert "PROBLEM: unknown environment variable CONCAGENT_LONG_WIAT" in capsys.readouterr().out

    def test_run_imports_neither_click_nor_rich(self) -> None:
        code = (
            "import sys; from concagent import cli, runner; print(sorted({'click', 'rich', 'json'} & set(sys.modules)))"
        )

        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

        assert done.stdout == "[]\n"
