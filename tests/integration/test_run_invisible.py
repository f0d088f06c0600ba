"""A table of programs, each run by plain Python and by ``concagent run``: output, errors and status must be equal.

To add a program, put it into ``run_scripts`` and a row into ``PROGRAMS``; programs whose bytes matter are rows of
``SOURCES``.  ``CONCAGENT_TEST_PYTHON`` names another interpreter to compare with itself; concagent must be importable
there (``PYTHONPATH`` will do).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).with_name("run_scripts")
PYTHON = os.environ.get("CONCAGENT_TEST_PYTHON", sys.executable)
AGENT = ("-m", "concagent", "run")
VERSION = tuple(
    map(
        int,
        subprocess.run(
            [PYTHON, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True, check=True
        ).stdout.split(),
    )
)


@dataclass(frozen=True)
class Row:
    """One program: its arguments, what it reads, and what cannot be equal."""

    name: str
    arguments: tuple[str, ...]
    stdin: bytes = b""
    flags: tuple[str, ...] = ()
    one_pipe: bool = False
    status: int | None = None
    since: tuple[int, int] = (3, 10)
    normalise: str | None = None


def row(name: str, *arguments: str, **more: object) -> Row:
    """Return a row, by default of the script with the row's name."""
    return Row(name, arguments or (f"{name}.py",), **more)  # type: ignore[arg-type]


def script(name: str, *arguments: str, **more: object) -> Row:
    """Return a row of a script with arguments."""
    return row(" ".join((name, *arguments)), f"{name}.py", *arguments, **more)


# A stack printed by the program shows the one frame of ours that holds the program's (runner.py says why).
OUR_FRAME = r'  File "[^"]*runner\.py", line \d+,? in start\n(    .*\n(    [ ~^]*\n)?)?'

# A dump of all threads shows the agent's too: it began in one of our files, from which it may import, or has no frame yet.
OUR_THREADS = (
    r"Thread 0xADDRESS(?: \[[^\]]*\])? \(most recent call first\):\n"
    r'(?:  <no Python frame>\n|(?:  File .*\n)*  File "[^"]*(?:concagent|agent)/[^"]*", line \d+ in .*\n)\n'
)

PROGRAMS = (
    script("arguments", "one", "--two", "-m", "--", "--findings=x"),
    row("path with a dot", "./arguments.py"),
    row("path with a folder", "directory/../arguments.py"),
    row("a symbolic link", "linked/link.py", "x"),
    row("safe path", "arguments.py", flags=("-P",), since=(3, 11)),
    row("isolated", "-c", "import sys; print(sys.path[0] == '', sys.argv)", flags=("-P",), since=(3, 11)),
    row("other flags", "arguments.py", flags=("-B", "-u", "-X", "utf8", "-W", "ignore")),
    row("optimised", "arguments.py", flags=("-OO",)),
    row("development mode", "arguments.py", flags=("-X", "dev")),
    row("main_module"),
    row("main_module of a module", "-m", "main_module"),
    row(
        "main_module of standard input",
        "-",
        "a",
        stdin=(SCRIPTS / "main_module.py")
        .read_bytes()
        .replace(b"print(type(__loader__).__name__, __loader__.name, __loader__.path,", b"print(__loader__,"),
    ),
    row(
        "main_module of a command", "-c", "import sys; print(list(globals()), __loader__, sys.argv, [sys.path[0]])", "a"
    ),
    row("at_exit"),
    *(
        script("exit_code", name)
        for name in ("none", "zero", "seven", "big", "negative", "text", "tuple", "object", "true", "empty")
    ),
    row("exit_subclass", status=9),
    row("exit_in_thread"),
    row("exit_hard", status=17),
    row("exit_from_finally"),
    row("exit of a module", "-m", "exit_code", "seven", status=7),
    row("unhandled", status=1),
    row("unhandled in a module", "-m", "unhandled", status=1),
    row("unhandled in a command", "-c", "def f():\n    raise ValueError('x')\n\nf()", status=1),
    row("unhandled in standard input", "-", stdin=b"def f():\n    1 / 0\nf()\n", status=1),
    row("unhandled_notes"),
    row("unhandled_in_thread"),
    row("unhandled_recursion", normalise=r"  \[Previous line repeated \d+ more times\]\n"),
    row("excepthook"),
    row("excepthook_fails", status=1),
    row("excepthook_exits", status=5),
    row("excepthook_missing", status=1),
    row("excepthook_state"),
    row("interrupt", status=-signal.SIGINT),
    row("interrupt in a module", "-m", "interrupt", status=-signal.SIGINT),
    row("interrupt in a command", "-c", "raise KeyboardInterrupt", status=-signal.SIGINT),
    row("interrupt_raised", status=-signal.SIGINT),
    row("interrupt_caught", status=0),
    *(
        script("signal_death", name, status=-signal.Signals[name])
        for name in ("SIGTERM", "SIGHUP", "SIGKILL", "SIGUSR2")
    ),
    row("broken_pipe"),
    row("order_of_streams", one_pipe=True),
    row("order_of_streams of a module", "-m", "order_of_streams", one_pipe=True),
    row("order_of_streams of standard input", "-", stdin=(SCRIPTS / "order_of_streams.py").read_bytes(), one_pipe=True),
    row("warnings_shown"),
    row("warnings as errors", "warnings_shown.py", flags=("-W", "error")),
    row("pickling"),
    row("pickling in a module", "-m", "pickling"),
    *(script("spawning", method) for method in ("spawn", "forkserver", "fork")),
    row("spawning from a module", "-m", "spawning", "spawn"),
    row("preparation_data", normalise=r"'orig_dir': '[^']*'|tracker_fd=\d+"),
    row("preparation_data of a module", "-m", "preparation_data", normalise=r"tracker_fd=\d+"),
    row("type_hints"),
    row("sources"),
    row("doctests"),
    row("unit_tests"),
    row("stack", normalise=OUR_FRAME),
    row("crash", status=-signal.SIGSEGV, normalise=OUR_FRAME + "|" + OUR_THREADS + r"|\nExtension modules: .*\n"),
    row("faulthandler_state"),
    row("imports"),
    row("reimport_main"),
    row("standard_input", stdin=b"a line\nand one more"),
    row("threads_outlive"),
    row("daemon_thread"),
    row("fork_and_exit"),
    row("subprocess_self"),
    row("asyncio_main"),
    row("chdir"),
    row("delete_main"),
    row("unraisable"),
    row("close_streams"),
    row("logging_module"),
    row("package", "-m", "package", "an argument"),
    row("module in a package", "-m", "package.inner.deep"),
    row("module joined to its switch", "-mpackage", "x"),
    row("package as a script", "package/__main__.py"),
    row("directory", "directory", "an argument", status=4),
    row("directory without main", "empty"),
    row("zip file", "program.zip", "an argument", status=4),
    row("zip file in safe mode", "program.zip", flags=("-P",), since=(3, 11)),
    row("missing script", "missing.py", "x", status=2),
    row("missing module", "-m", "missing_module", status=1),
    row("missing module in a package", "-m", "package.missing", status=1),
    row("unreadable script", "dangling.py", status=2),
    row("command that does not compile", "-c", "def f(:", status=1),
    row("standard input that does not compile", "-", stdin=b"def f(:\n", status=1),
    row("command of several lines", "-c", "import sys\nfor x in range(2):\n    print(x, sys.argv)", "--", "-x"),
    row("standard library module", "-m", "this"),
    row("compiled script", "compiled.pyc", "x"),
    row("compiled script in its cache", "renamed_cache"),
    row("bad compiled script", "bad.pyc"),
)

SOURCES = {
    "syntax error": b"print('never')\ndef broken(:\n    pass\n",
    "unbalanced": b"x = (1,\n",
    "bad indentation": b"if True:\n    x = 1\n  y = 2\n",
    "syntax warning": b'print("\\d")\nassert (1, "always")\n',
    "syntax warning, then error": b'print("\\d")\ndef f(:\n',
    "byte order mark": b"\xef\xbb\xbfprint('bom', __file__)\n",
    "latin-1": b"# -*- coding: latin-1 -*-\nprint(ascii('caf\xe9'))\n",
    "cookie in the second line": b"#!/usr/bin/env python\n# vim: set fileencoding=cp1251 :\nprint(ascii('\xe9'))\n",
    "unknown encoding": b"# coding: no-such-code\nprint(1)\n",
    "not UTF-8": b"print('caf\xe9')\n",
    "bom against cookie": b"\xef\xbb\xbf# coding: latin-1\nprint(1)\n",
    "null byte": b"print(1)\nx = 1\0\n",
    "carriage returns": b"x = 1\r\nprint('''a\r\nb'''.encode())\r\n1 / 0\r\n",
    "no newline at the end": b"print('last')",
    "empty": b"",
    "only a comment": b"# nothing",
    "form feed": b"\x0cprint(1)\n",
    "future import": b"from __future__ import annotations\nx: undefined = 1\nprint(__annotations__)\n",
    "future division by us": b"def f(x: int): pass\nprint(f.__annotations__)\n",
    "non-ASCII traceback": "f = 'é'; raise ValueError(f + '→')\n".encode(),
    "deep nesting": b"x = " + b"(" * 300 + b")" * 300 + b"\n",
    "return outside": b"return 1\n",
    "await outside": b"await x\n",
}


CONFUSED_BY_STANDARD_INPUT = {
    "bom against cookie",
    "cookie in the second line",
    "deep nesting",
    "latin-1",
    "not UTF-8",
    "null byte",
    "unbalanced",
    "unknown encoding",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the programs, a zip file, links and compiled files."""
    place = tmp_path_factory.mktemp("run") / "programs"
    shutil.copytree(SCRIPTS, place, ignore=shutil.ignore_patterns("__pycache__"))
    (place / "empty").mkdir()
    (place / "linked").mkdir()
    (place / "linked" / "link.py").symlink_to(place / "arguments.py")
    (place / "dangling.py").symlink_to(place / "nowhere.py")
    (place / "bad.pyc").write_bytes(b"nonsense")
    with zipfile.ZipFile(place / "program.zip", "w") as archive:
        for name in ("__main__.py", "beside.py"):
            archive.write(place / "directory" / name, name)
    subprocess.run(
        [PYTHON, "-c", "import py_compile; py_compile.compile('arguments.py', 'compiled.pyc')"], cwd=place, check=True
    )
    shutil.copy(place / "compiled.pyc", place / "renamed_cache")
    for name, source in SOURCES.items():
        (place / f"source {name}.py").write_bytes(source)
    return place


def outcome(row: Row, place: Path, launcher: tuple[str, ...]) -> dict[str, object]:
    """Return what the parent of the program sees of it."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CONCAGENT_")}
    environ["PYTHONDONTWRITEBYTECODE"] = "1"
    done = subprocess.run(
        [PYTHON, *row.flags, *launcher, *row.arguments],
        cwd=place,
        env=environ,
        input=row.stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if row.one_pipe else subprocess.PIPE,
        timeout=60,
        check=False,
    )
    result: dict[str, object] = {"status": done.returncode}
    for name, data in (("stdout", done.stdout), ("stderr", done.stderr or b"")):
        text = re.sub(r"0x[0-9a-f]{6,}", "0xADDRESS", data.decode("utf-8", "backslashreplace"))
        result[name] = re.sub(row.normalise, "", text) if row.normalise else text
    return result


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in PROGRAMS])
def test_a_program_runs_as_under_plain_python(row: Row, place: Path) -> None:
    if row.since > VERSION:
        pytest.skip(f"needs Python {row.since}")

    plain = outcome(row, place, ())
    ours = outcome(row, place, AGENT)

    assert ours == plain
    if row.status is not None:
        assert plain["status"] == row.status


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_is_read_as_by_plain_python(name: str, place: Path) -> None:
    row = Row(name, (f"source {name}.py",))

    assert outcome(row, place, AGENT) == outcome(row, place, ())


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_is_read_from_standard_input_as_by_plain_python(name: str, place: Path) -> None:
    if name in CONFUSED_BY_STANDARD_INPUT:
        pytest.skip("plain Python refuses encodings there; its messages for what we refuse too differ by version")
    row = Row(name, ("-",), stdin=SOURCES[name])

    assert outcome(row, place, AGENT) == outcome(row, place, ())


def test_at_most_one_frame_of_ours_is_below_the_program(place: Path) -> None:
    row = Row(
        "depth",
        (
            "-c",
            "import sys\nframe = sys._getframe()\ndepth = 0\n"
            "while frame: frame = frame.f_back; depth += 1\nprint(depth)",
        ),
    )

    assert int(str(outcome(row, place, AGENT)["stdout"])) <= 2


def test_nothing_heavy_is_imported_before_the_program(place: Path) -> None:
    row = Row("modules", ("-c", "import sys; print(*sys.modules)"))

    plain = set(str(outcome(row, place, ())["stdout"]).split())
    ours = set(str(outcome(row, place, AGENT)["stdout"]).split())

    heavy = {"argparse", "asyncio", "click", "concurrent", "email", "multiprocessing", "networkx", "psutil"}
    heavy |= {"prometheus_client", "random", "rich", "socket", "ssl", "subprocess", "tempfile", "urllib.request"}
    if VERSION == (3, 10):
        heavy.discard("subprocess")  # platform imports it there
    assert not (ours - plain) & heavy


def test_our_options_end_where_the_program_begins(place: Path) -> None:
    row = Row(
        "options", ("--long-wait", "5", "--no-files", "--patch=locks,threads", "arguments.py", "--long-wait", "x")
    )
    plain = Row("options", ("arguments.py", "--long-wait", "x"))

    assert outcome(row, place, AGENT) == outcome(plain, place, ())


def test_a_wrong_option_is_one_line_and_status_2(place: Path) -> None:
    ours = outcome(Row("wrong", ("--long-wiat", "5", "arguments.py")), place, AGENT)

    assert ours["status"] == 2
    assert ours["stdout"] == ""
    assert ours["stderr"] == "concagent run: unknown option --long-wiat; did you mean --long-wait?\n"
