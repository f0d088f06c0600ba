"""The control socket: who may ask, what is answered, and what is said when nobody is there to answer."""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from concagent.errors import ConfigError
from concagent.exporters import control

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

# Two threads that wait for each other for ever, and a main thread stuck behind them.
DEADLOCK = """
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


threads = [threading.Thread(target=work, name=work.__name__) for work in (transfer, review)]
for thread in threads:
    thread.start()
print("ready", flush=True)
threads[0].join()
"""

# A process with a control socket and nothing else of the agent.
SERVER = """
import os, select, sys
from concagent.exporters.control import ControlServer, runtime_directory
server = ControlServer(runtime_directory(), os.getpid(), {"report-text": lambda: b"a picture\\n"})
print("ready", flush=True)
while True:
    select.select([server], [], [])
    server.handle()
"""


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test directories of its own."""
    directory = tmp_path / "runtime"
    directory.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return directory


@contextlib.contextmanager
def serving(server: control.ControlServer) -> Iterator[None]:
    """Poll a server as the monitor does."""
    stop, stopped = os.pipe()

    def loop() -> None:
        while True:
            ready, _, _ = select.select([server, stop], [], [])
            if stop in ready:
                return
            server.handle()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        os.write(stopped, b"x")
        thread.join()
        server.close()
        os.close(stop)
        os.close(stopped)


@contextlib.contextmanager
def process(program: str = SERVER, **options: object) -> Iterator[subprocess.Popen[str]]:
    """Run a program that says ``ready``."""
    running = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True, **options
    )  # type: ignore[call-overload]
    try:
        assert running.stdout.readline() == "ready\n"
        yield running
    finally:
        running.kill()
        running.wait()
        running.stdout.close()


def server_of(commands: dict[str, object] | None = None, **options: object) -> control.ControlServer:
    return control.ControlServer(
        control.runtime_directory(),
        os.getpid(),
        commands or {"report-text": lambda: b"ok\n"},
        **options,  # type: ignore[arg-type]
    )


def test_the_answer_arrives_whole_however_long() -> None:
    answer = os.urandom(3_000_000)
    server = server_of({"report-text": lambda: answer})

    with serving(server):
        assert control.request(os.getpid(), "report-text") == answer


def test_the_socket_and_its_directory_are_for_the_user_only(runtime: Path) -> None:
    server = server_of()

    with serving(server):
        assert server.path == str(runtime / "concagent" / f"{os.getpid()}.sock")
        assert stat.S_IMODE(os.stat(server.path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(runtime / "concagent").st_mode) == 0o700
    assert not os.path.exists(server.path)
    assert server.fileno() == -1


def test_an_unknown_command_is_refused_with_those_that_exist() -> None:
    with serving(server_of()), pytest.raises(control.NoAnswerError, match=r"unknown command; there are: report-text"):
        control.request(os.getpid(), "rm-rf")


def test_a_command_that_fails_is_told_and_answered_without_its_message() -> None:
    errors: list[Exception] = []

    def broken() -> bytes:
        raise ValueError("a secret")

    server = server_of({"report-text": broken}, on_error=errors.append)
    with serving(server), pytest.raises(control.NoAnswerError) as caught:
        control.request(os.getpid(), "report-text")

    assert "ValueError" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert [str(error) for error in errors] == ["a secret"]


def test_each_connection_thread_is_made_known() -> None:
    known: list[int] = []

    with serving(server_of(on_thread=lambda: known.append(threading.get_ident()))):
        control.request(os.getpid(), "report-text")
        control.request(os.getpid(), "report-text")

    assert len(known) == 2
    assert threading.get_ident() not in known


def test_a_silent_client_is_dropped_and_others_are_answered_meanwhile() -> None:
    server = server_of(timeout=0.2)

    with serving(server), socket.socket(socket.AF_UNIX) as silent:
        silent.connect(server.path)
        assert control.request(os.getpid(), "report-text") == b"ok\n"
        silent.settimeout(10)
        while silent.recv(100):
            pass


def test_clients_in_excess_are_refused_at_once() -> None:
    server = server_of(limit=2, timeout=30.0)

    with serving(server), contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(server.path)
        with pytest.raises(control.NoAnswerError, match=r"too many clients"):
            control.request(os.getpid(), "report-text")


def test_a_path_too_long_for_a_socket_address_is_reached_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))

    with serving(server_of()) as _:
        assert control.request(os.getpid(), "report-text") == b"ok\n"
        assert [p.name for p in (deep / "concagent").iterdir()] == [f"{os.getpid()}.sock"]


@pytest.mark.parametrize("flaw", ["symlink", "file", "open", pytest.param("foreign", marks=needs_root)])
def test_a_directory_that_is_not_ours_alone_is_not_used(flaw: str, runtime: Path, tmp_path: Path) -> None:
    place = runtime / "concagent"
    if flaw == "symlink":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "elsewhere")
    elif flaw == "file":
        place.touch()
    else:
        place.mkdir(mode=0o700)
        if flaw == "open":
            place.chmod(0o750)
        else:
            os.chown(place, 4711, 4711)

    assert control.runtime_directory() == str(tmp_path / f"concagent-{os.geteuid()}")


def test_without_any_safe_directory_the_error_says_why(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (runtime / "concagent").touch()
    monkeypatch.setattr(control, "_directories", lambda *_: iter([str(runtime / "concagent")]))

    with pytest.raises(ConfigError, match=r"cannot keep the control socket in .*: it is not a directory"):
        control.runtime_directory()


def test_another_process_is_asked_by_its_number() -> None:
    with process() as running:
        assert control.request(running.pid, "report-text") == b"a picture\n"


def test_a_process_with_other_directories_than_ours_is_found(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path / "theirs")}

    with process(env=environ) as running:
        assert control.request(running.pid, "report-text") == b"a picture\n"


def test_no_such_process_is_said() -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()

    with pytest.raises(control.NoProcessError, match=rf"^no process {done.pid}$"):
        control.request(done.pid, "report-text")


def test_a_process_that_its_parent_has_not_buried_is_said() -> None:
    done = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    done.stdout.read()
    deadline = time.monotonic() + 10
    while b") Z" not in Path(f"/proc/{done.pid}/stat").read_bytes() and time.monotonic() < deadline:
        time.sleep(0.01)

    with pytest.raises(control.NoProcessError, match="has ended"):
        control.request(done.pid, "report-text")
    done.wait()
    done.stdout.close()


def test_a_process_without_the_agent_is_said() -> None:
    with (
        process("import time\nprint('ready', flush=True)\ntime.sleep(60)") as running,
        pytest.raises(control.NoAgentError, match=r"runs without concagent, or with socket=off"),
    ):
        control.request(running.pid, "report-text")


def test_a_stale_socket_of_a_dead_process_is_removed_and_said(runtime: Path) -> None:
    with process() as running:
        pass
    path = runtime / "concagent" / f"{running.pid}.sock"
    assert path.exists()

    with pytest.raises(control.NoProcessError, match="stale socket of it was removed"):
        control.request(running.pid, "report-text")

    assert not path.exists()


def test_a_stale_socket_of_a_living_process_is_removed_and_said(runtime: Path) -> None:
    with process("import time\nprint('ready', flush=True)\ntime.sleep(60)") as running:
        (runtime / "concagent").mkdir(mode=0o700)
        with socket.socket(socket.AF_UNIX) as abandoned:
            abandoned.bind(str(runtime / "concagent" / f"{running.pid}.sock"))

        with pytest.raises(control.NoAgentError, match="its stale socket was removed"):
            control.request(running.pid, "report-text")

        assert list((runtime / "concagent").iterdir()) == []


def test_a_server_removes_what_dead_processes_left_and_nothing_else(runtime: Path) -> None:
    with process() as dead:
        pass
    with process() as alive:
        (runtime / "concagent" / "notes.txt").touch()
        server = server_of()
        server.close()

        names = {path.name for path in (runtime / "concagent").iterdir()}

    assert names == {f"{alive.pid}.sock", "notes.txt"}
    assert f"{dead.pid}.sock" not in names


def test_a_stopped_process_does_not_answer_in_time() -> None:
    with process("import signal, os, threading\n" + SERVER) as running:
        os.kill(running.pid, 19)
        with pytest.raises(control.NoAnswerError, match=r"did not answer within 0.3 s"):
            control.request(running.pid, "report-text", timeout=0.3)


@needs_root
def test_a_process_of_another_user_is_said() -> None:
    program = """
        import os, sys
        from concagent.exporters import control
        os.setuid(4711)
        try:
            control.request(int(sys.argv[1]), "report-text")
        except control.ForeignProcessError as error:
            print(error)
        """
    with process() as running:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), str(running.pid)],
            capture_output=True,
            text=True,
            check=False,
        )

    assert done.stdout == f"process {running.pid} belongs to another user (id 0); ask as that user or as root\n"


@needs_root
def test_the_peer_is_checked_even_where_the_directory_lets_it_in(runtime: Path) -> None:
    program = """
        import os, socket, sys
        os.chdir(sys.argv[1])
        os.setuid(4711)
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(sys.argv[2])
        try:
            connection.sendall(b"report-text\\n")
        except BrokenPipeError:
            pass
        print(connection.recv(1000))
        """
    server = server_of()

    with serving(server):
        os.chmod(runtime / "concagent", 0o755)
        os.chmod(server.path, 0o666)
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), str(runtime / "concagent"), os.path.basename(server.path)],
            capture_output=True,
            text=True,
            check=False,
        )

    assert "this process belongs to another user" in done.stdout, done.stderr


def test_a_forked_child_listens_on_its_own_socket_and_leaves_the_parents_alone(runtime: Path) -> None:
    server = server_of()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            server.after_fork_in_child()
            while server.fileno() < 0:
                pass
            mine = os.path.exists(runtime / "concagent" / f"{os.getpid()}.sock")
            server.close()
            gone = not os.path.exists(runtime / "concagent" / f"{os.getpid()}.sock")
            os.write(write_end, repr((mine, gone)).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)

    with serving(server):
        assert os.read(read_end, 100) == b"(True, True)"
        assert control.request(os.getpid(), "report-text") == b"ok\n"
    os.close(read_end)
    os.close(write_end)


def test_a_forked_child_that_ends_at_once_leaves_no_socket_behind(runtime: Path) -> None:
    server = server_of()
    children = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            server.after_fork_in_child()
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)

    with serving(server):
        assert os.listdir(runtime / "concagent") == [f"{os.getpid()}.sock"]


def test_a_second_server_of_the_same_process_is_refused() -> None:
    server = server_of()

    with serving(server), pytest.raises(ConfigError, match="another process listens"):
        server_of()


def test_a_word_that_is_no_command_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be a command"):
        server_of({"Rm -rf": lambda: b""})


@contextlib.contextmanager
def deadlocked(place: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a program that deadlocks under the agent, with findings in ``findings.jsonl``, until they are there."""
    findings = place / "findings.jsonl"
    (place / "app.py").write_text(DEADLOCK)
    launcher = [sys.executable, "-m", "concagent", "run", "--no-log", "--findings", str(findings)]
    running = subprocess.Popen(
        [*launcher, str(place / "app.py")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 30
        while not (findings.exists() and findings.read_text().endswith("\n")) and time.monotonic() < deadline:
            time.sleep(0.01)
        yield running
    finally:
        running.kill()
        running.wait()
        running.stdout.close()


def concagent(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run one of our commands."""
    command = [sys.executable, "-m", "concagent", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_real_deadlock_is_reported_drawn_watched_and_checked(tmp_path: Path) -> None:
    with deadlocked(tmp_path) as running:
        report = concagent("report", running.pid)
        picture = concagent("graph", running.pid)
        dot = concagent("graph", running.pid, "--format", "dot")
        watched = concagent("top", running.pid, "--once")
        checked = concagent("check", tmp_path / "findings.jsonl")
        saved = concagent("report", running.pid, "--format", "json")
    (tmp_path / "report.json").write_text(saved.stdout)
    redrawn = concagent("graph", tmp_path / "report.json", "--format", "dot")

    assert (report.returncode, report.stderr) == (0, "")
    assert "1 deadlock right now" in report.stdout
    assert "transfer" in report.stdout
    assert picture.stdout.startswith("<svg")
    assert dot.stdout.startswith("digraph")
    assert watched.stdout.splitlines()[3].split()[2] == "deadlock"
    assert (checked.returncode, checked.stderr) == (1, "")
    assert checked.stdout.splitlines()[1].startswith("deadlock")
    assert redrawn.stdout.count("->") == dot.stdout.count("->")


def test_a_process_without_its_socket_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONCAGENT_SOCKET", "off")

    with deadlocked(tmp_path) as running:
        done = concagent("report", running.pid)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"concagent: process {running.pid} runs without concagent, or with socket=off\n"


def test_the_demo_shows_a_deadlock_and_ends_by_itself(tmp_path: Path) -> None:
    code = (
        "import os, sys; from concagent import cli; os.path.isfile = lambda path: False; sys.exit(cli.main(['demo']))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )

    assert done.returncode == 0
    assert "DEADLOCK, proven" in done.stderr
    assert "with audit:" in done.stderr


@pytest.mark.parametrize(
    "name",
    [
        "1.sock",
        "1234567890.sock",
        "12345678901.sock",
        ".sock",
        "x.sock",
        "1.sock.sock",
        "1sock",
        "\u0661.sock",
        "-1.sock",
    ],
)
def test_sockets_are_told_from_other_files_by_their_names(name: str) -> None:
    match = re.fullmatch(r"([0-9]{1,10})\.sock", name)

    assert control._pid_of(name) == (None if match is None else int(match[1]))


@pytest.mark.parametrize(
    "data",
    [
        *(
            b"ok 5\nhello",
            b"error 12\n",
            b"ok 5",
            b"ok  5\n",
            b"ok -5\n",
            b"okay 5\n",
            b"ok 1234567890123\n",
            b"\n",
            b"",
        ),
        *(b"ok \xb2\n", b"ok 5 \n", b" ok 5\n", b"ok 123456789012\nx"),
    ],
)
def test_the_head_of_an_answer_is_read_as_it_is_meant(data: bytes) -> None:
    match = re.match(rb"(ok|error) ([0-9]{1,12})\n", data)
    meant = None if match is None else (match[1].decode(), match.end(), int(match[2]))

    assert control._header_of(data) == meant


@pytest.mark.parametrize("word", ["", "A", "1a", "a_b", "a b", "\u00e9", "a\u00e9", "a" * 64, "-a"])
def test_words_that_cannot_be_commands_are_refused(tmp_path: Path, word: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a command"):
        control.ControlServer(str(tmp_path), os.getpid(), {word: lambda: b""})
