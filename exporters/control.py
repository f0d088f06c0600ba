"""Ask a running process for its picture, over a Unix socket that only its user can reach.

``concagent report PID`` needs no signal, no open port and no restart.  Whoever may ask learns paths, names and source lines of
the process, so the question is who that is: the socket is 0600 in a directory of 0700, and beyond that the kernel is asked
for the identity of the peer, which must be the same user or root.  The directory has a name that anybody can guess, so
it is used only if it is a real directory, ours, and closed to others; in ``/tmp`` a stranger may have been quicker.

A client can choose one word of a closed set and nothing else: no argument, no path, nothing that is evaluated.  The answer is
``ok LENGTH`` or ``error LENGTH``, a newline, and so many bytes; a reader that gets fewer knows that it has been cut off.

As in ``http``, the poll loop only accepts and each client is answered on a short-lived raw thread, with original locks
and the C socket type: the agent must be able to answer while the program's own locks are the ones that are stuck.

Assumes    process ids of one directory are of one pid namespace.  Containers that share ``/tmp`` break this; so a socket is
           taken for stale only if the process is absent *and* nobody accepts on it.
Invariants U1 ``handle`` does not block, but for a pause of 50 ms when the process has no descriptor left.
           U2 at most ``limit`` connection threads exist; each ends within about two times ``timeout``, unless a command
              does not return.
           U3 a socket is unlinked only by the process that bound it, or by others once it is stale.
Limits     the path of a Unix socket has 107 bytes.  Longer ones go through ``/proc/self/fd``, which only Linux has.
Sources    unix(7), "Pathname socket ownership and permissions"; proc(5).
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import stat
import sys
from typing import TYPE_CHECKING, Final

from concagent import _real
from concagent.descriptors import LOST, SETTLE_NS, Descriptor, is_low, lifted
from concagent.errors import ConcagentError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from concagent.model import Report

# How long a fork's child goes without a socket; less than until the monitor's first look there.
CHILD_NS: Final = 100_000_000
# What ``concagent report``, ``graph`` and ``top`` ask for.
COMMANDS: Final = ("report-text", "report-json", "report-dot", "report-svg", "snapshot-json")

_MAX_COMMAND_BYTES: Final = 64
_MAX_PATH_BYTES: Final = 107
_COMMAND_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz0123456789-"
_MAX_HEADER_BYTES: Final = 32
_MAX_LENGTH_DIGITS: Final = 12
_MAX_PID_DIGITS: Final = 10
_CREDENTIALS_BYTES: Final = 12  # pid, uid, gid: three ints
_SEND_FLAGS: Final[int] = getattr(_socket, "MSG_NOSIGNAL", 0)


class ControlError(ConcagentError):
    """A process could not be asked; the message is one line that says why and what to do."""


class NoProcessError(ControlError):
    """There is no such process."""


class ForeignProcessError(ControlError):
    """The process belongs to another user."""


class NoAgentError(ControlError):
    """The process runs without concagent, or with ``socket=off``, or its socket is stale."""


class NoAnswerError(ControlError):
    """The agent was reached and did not answer, or refused."""


def runtime_directory() -> str:
    """Return the directory of this user's sockets, made with mode 0700 if it is absent.

    ``$XDG_RUNTIME_DIR/concagent`` where that can be had, else ``concagent-UID`` in the directory for temporary files.

    Raises:
        ConfigError: Neither is a directory of this user that is closed to all others.
    """
    refusal: ConfigError | None = None
    for path in _directories(os.environ, os.geteuid()):
        try:
            _prepare(path)
        except ConfigError as error:
            refusal = refusal or error
            continue
        return path
    raise refusal or ConfigError("no directory for the control socket", option="socket")


def _directories(environ: Mapping[str, str], uid: int) -> Iterator[str]:
    """Yield where the sockets of a user may be, the best place first."""
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and os.path.isdir(runtime):
        yield os.path.join(runtime, "concagent")
    # As tempfile.gettempdir does; importing it would cost more than the rest of this module.
    for name in ("TMPDIR", "TEMP", "TMP"):
        temporary = environ.get(name, "")
        if os.path.isabs(temporary) and os.path.isdir(temporary):
            yield os.path.join(temporary, f"concagent-{uid}")
            break
    yield f"/tmp/concagent-{uid}"


def _prepare(path: str) -> None:
    """Make a directory, and refuse one that is not ours alone."""
    try:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        status = os.lstat(path)
    except OSError as error:
        raise _refusal(path, error.strerror or str(error)) from error
    if not stat.S_ISDIR(status.st_mode):
        raise _refusal(path, "it is a symbolic link" if stat.S_ISLNK(status.st_mode) else "it is not a directory")
    if status.st_uid != os.geteuid():
        raise _refusal(path, f"it belongs to user id {status.st_uid}")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise _refusal(path, "it is open to others; run chmod 700 on it")


def _refusal(path: str, why: str) -> ConfigError:
    return ConfigError(
        f"cannot keep the control socket in {path}: {why}",
        option="socket",
        value=repr(path),
        allowed="a directory of this user, mode 0700; or socket=off",
    )


def report_commands(make_report: Callable[[], Report]) -> dict[str, Callable[[], bytes]]:
    """Return the commands of `COMMANDS`, each made from a fresh report; the formats are imported when first asked for."""

    def text() -> bytes:
        from concagent.exporters.text import render_report

        return render_report(make_report()).encode("utf-8", "backslashreplace")

    def json() -> bytes:
        from concagent.exporters.json import report_to_json

        return report_to_json(make_report()).encode("ascii")

    def dot() -> bytes:
        from concagent.exporters.dot import snapshot_dot

        report = make_report()
        return snapshot_dot(report.snapshot, rings=report.rings).encode("utf-8", "backslashreplace")

    def svg() -> bytes:
        from concagent.exporters.svg import snapshot_svg

        report = make_report()
        return snapshot_svg(report.snapshot, rings=report.rings).encode("utf-8", "backslashreplace")

    def snapshot() -> bytes:
        from concagent.exporters.json import snapshot_to_json

        return snapshot_to_json(make_report().snapshot).encode("ascii")

    return dict(zip(COMMANDS, (text, json, dot, svg, snapshot), strict=True))


class ControlServer:
    """A listening Unix socket for a poll loop; all methods are for one thread at a time, that of the loop."""

    def __init__(
        self,
        directory: str,
        pid: int,
        commands: Mapping[str, Callable[[], bytes]],
        on_thread: Callable[[], None] | None = None,
        on_error: Callable[[Exception], None] | None = None,
        *,
        limit: int = 4,
        timeout: float = 5.0,
        late: bool = False,
    ) -> None:
        """Listen on ``DIRECTORY/PID.sock``, and remove the sockets of processes that are gone.

        Args:
            directory: As `runtime_directory` returns it.
            pid: This process.
            commands: Words, and what makes the answers.  Called on a connection thread.
            on_thread: Called first thing in each connection thread, which lets the agent know it as its own.
            on_error: Told about exceptions of commands, on the connection thread.
            limit: Clients answered at once; those in excess are refused.
            timeout: Seconds for reading the command, and again for sending the answer.
            late: Listen when `fileno` is asked first; if that fails ``on_error`` is told.

        Raises:
            ConfigError: The socket cannot be made.
        """
        for word in commands:
            if not word[:1].islower() or word.strip(_COMMAND_LETTERS) or len(word) >= _MAX_COMMAND_BYTES:
                raise ConfigError(f"{word!r} cannot be a command of the control socket", option="socket")
        self._directory = directory
        self._commands = dict(commands)
        self._on_thread = on_thread
        self._on_error = on_error
        self._limit = limit
        self._timeout = timeout
        self._lock = _real.allocate_lock()
        self._connections: set[_socket.socket] = set()
        self._listener: _socket.socket | None = None
        self._descriptor = Descriptor(-1)
        self._listen_at_ns = 0  # when to listen again; 0 if that is not the plan
        if late:
            self._pid, self._listen_at_ns = pid, 1
        else:
            self._listen(pid)

    @property
    def path(self) -> str:
        """Return the path of the socket."""
        return os.path.join(self._directory, f"{self._pid}.sock")

    def fileno(self) -> int:
        """Return the descriptor to poll for reading, -1 once closed, or for a moment after the program closed it."""
        if self._listener is not None and not self._descriptor.is_ours():
            self._drop_listener()
            self._listen_at_ns = _real.monotonic_ns() + SETTLE_NS
            self._tell(OSError(errno.EBADF, LOST, self.path))
        elif self._listen_at_ns and _real.monotonic_ns() >= self._listen_at_ns:
            self._listen_at_ns = 0
            try:
                self._listen(self._pid)
            except ConfigError as error:
                self._tell(error)
        return self._listener.fileno() if self._listener is not None else -1

    def handle(self) -> None:
        """Accept one client, if there is one, and have it answered on a thread of its own."""
        if self.fileno() < 0 or self._listener is None:
            return
        try:
            descriptor, _ = self._listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001 - of the C type
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                # The client stays in the queue and poll returns at once: without a pause the monitor would spin.
                _real.sleep(0.05)
            return
        connection = _socket.socket(fileno=descriptor)
        connection.settimeout(self._timeout)
        with self._lock:
            admitted = len(self._connections) < self._limit
            if admitted:
                self._connections.add(connection)
        if admitted:
            try:
                _real.start_agent_thread(self._serve, (connection,))
            except RuntimeError:  # no more threads
                admitted = False
                with self._lock:
                    self._connections.discard(connection)
        if not admitted:
            connection.setblocking(False)
            with contextlib.suppress(OSError):
                connection.send(_framed(b"error", b"too many clients at once; try again"), _SEND_FLAGS)
            connection.close()

    def close(self) -> None:
        """Stop listening, hang up on everybody and remove the socket."""
        if self._listener is None and not self._listen_at_ns:
            return
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        self._drop_listener()
        self._listen_at_ns = 0
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(_socket.SHUT_RDWR)

    def after_fork_in_child(self) -> None:
        """Leave the parent's socket to the parent, and listen on one of the child's own at a look after `CHILD_NS`.

        Most children have gone by then: nobody can have asked them, and they would leave their socket behind.  If it
        cannot be made the child goes without, and ``on_error`` is told.
        """
        self._lock = _real.allocate_lock()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.close()
        self._connections = set()
        if self._listener is None and not self._listen_at_ns:
            return
        self._drop_listener()
        self._pid = os.getpid()
        self._listen_at_ns = _real.monotonic_ns() + CHILD_NS

    def _drop_listener(self) -> None:
        """Close the listener; if the program did, leave the number to whom it belongs now."""
        listener, self._listener = self._listener, None
        if listener is not None:
            if not self._descriptor.is_ours():
                listener.detach()
            listener.close()

    def _listen(self, pid: int) -> None:
        self._pid = pid
        _remove_stale(self._directory, own=pid)
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            if is_low(listener.fileno()):
                listener = _socket.socket(fileno=lifted(listener.detach()))
            listener.setblocking(False)
            with _reachable(self._directory, f"{pid}.sock") as path:
                listener.bind(path)
            # Between the two calls only the mode of the directory protects it, which suffices; the umask is the program's.
            os.chmod(self.path, 0o600)
            listener.listen(16)
        except (OSError, ValueError) as error:
            listener.close()
            if getattr(error, "errno", None) == errno.EADDRINUSE:
                raise _refusal(self._directory, f"another process listens on {self.path}") from error
            raise _refusal(self._directory, str(error)) from error
        self._listener, self._descriptor = listener, Descriptor(listener.fileno())

    def _serve(self, connection: _socket.socket) -> None:
        """Answer one client; the whole life of a connection thread."""
        try:
            if self._on_thread is not None:
                self._on_thread()
            if _may_ask(connection):
                connection.sendall(self._answer(connection), _SEND_FLAGS)
            else:
                connection.sendall(_framed(b"error", b"this process belongs to another user"), _SEND_FLAGS)
        except OSError:
            pass  # the client went away or was too slow: its affair
        except Exception as error:  # noqa: BLE001 - a border: it would be printed into the program's stderr
            self._tell(error)
        finally:
            # A child that was forked meanwhile may hold a copy; the client shall see the end all the same.
            with contextlib.suppress(OSError):
                connection.shutdown(_socket.SHUT_RDWR)
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def _answer(self, connection: _socket.socket) -> bytes:
        line = b""
        while not line.endswith(b"\n") and len(line) < _MAX_COMMAND_BYTES:
            chunk = connection.recv(_MAX_COMMAND_BYTES - len(line))
            if not chunk:
                break
            line += chunk
        command = self._commands.get(line.removesuffix(b"\n").decode("ascii", "replace"))
        if command is None:
            return _framed(b"error", ("unknown command; there are: " + ", ".join(sorted(self._commands))).encode())
        try:
            return _framed(b"ok", command())
        except Exception as error:  # noqa: BLE001 - a border: whatever a report stumbles over, the client gets an answer
            self._tell(error)
            # The type and not the message: a message can contain anything.
            return _framed(b"error", f"the agent could not make it: {type(error).__name__}".encode())

    def _tell(self, error: Exception) -> None:
        if self._on_error is not None:
            with contextlib.suppress(Exception):  # a border: nobody is left to be told
                self._on_error(error)


def _framed(word: bytes, body: bytes) -> bytes:
    return b"%s %d\n%s" % (word, len(body), body)


def _peer_uid(connection: _socket.socket) -> int | None:
    """Return the user at the other end; None where the system does not say, and the directory's mode is all there is."""
    option = getattr(_socket, "SO_PEERCRED", None)
    if option is None:
        return None
    raw = connection.getsockopt(_socket.SOL_SOCKET, option, _CREDENTIALS_BYTES)
    return int.from_bytes(raw[4:8], sys.byteorder, signed=True)


def _may_ask(connection: _socket.socket) -> bool:
    uid = _peer_uid(connection)
    return uid is None or uid in {0, os.geteuid()}


@contextlib.contextmanager
def _reachable(directory: str, name: str) -> Iterator[str]:
    """Yield a path to a file in a directory that is short enough for a socket address.

    Raises:
        OSError: The directory cannot be opened.
        ValueError: The path is too long, and this system has no way round.
    """
    path = os.path.join(directory, name)
    if len(os.fsencode(path)) <= _MAX_PATH_BYTES:
        yield path
        return
    if not os.path.isdir("/proc/self/fd"):
        raise ValueError("its path is too long for a Unix socket; set XDG_RUNTIME_DIR to a shorter one")
    descriptor = os.open(directory, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


def _number(digits: str, most: int) -> int | None:
    """Return the number that so many decimal digits say, None for anything else."""
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= most else None


def _pid_of(name: str) -> int | None:
    """Return the process whose socket has this name, None for another file."""
    stem = name.removesuffix(".sock")
    return None if stem == name else _number(stem, _MAX_PID_DIGITS)


def _header_of(data: bytes) -> tuple[str, int, int] | None:
    """Return how an answer begins: ``ok`` or ``error``, where the body begins, and how long it is; None if not so."""
    line, newline, _ = data.partition(b"\n")
    kind, _, digits = line.decode("latin-1").partition(" ")
    length = _number(digits, _MAX_LENGTH_DIGITS)
    if not newline or kind not in {"ok", "error"} or length is None:
        return None
    return kind, len(line) + 1, length


def _remove_stale(directory: str, own: int | None = None) -> None:
    """Remove the sockets of processes that are gone; what cannot be read or removed stays."""
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        pid = _pid_of(name)
        if pid is None:
            continue
        if pid == own or not _exists(pid):
            with contextlib.suppress(OSError, ValueError):
                _remove_if_stale(directory, name)


def _remove_if_stale(directory: str, name: str) -> bool:
    """Remove a socket on which nobody accepts; return whether it was one."""
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        probe.setblocking(False)
        with _reachable(directory, name) as path:
            probe.connect(path)
    except ConnectionRefusedError:
        os.unlink(os.path.join(directory, name))
        return True
    except BlockingIOError:
        return False  # somebody is there, and busy
    finally:
        probe.close()
    return False


def _exists(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def request(pid: int, command: str, timeout: float = 10.0) -> bytes:
    """Return what the agent in a process answers to a command.

    Args:
        pid: A process of this user, or of anybody if we are root.
        command: One of the words that the server knows.
        timeout: Seconds for all of it.

    Raises:
        NoProcessError: There is no such process, or only its unburied rest.
        ForeignProcessError: It belongs to another user.
        NoAgentError: It runs without concagent.  A stale socket was removed.
        NoAnswerError: The agent did not answer in time, or answered that it cannot.
    """
    if not _exists(pid):
        for directory in _directories(os.environ, os.geteuid()):
            with contextlib.suppress(OSError, ValueError):
                if _remove_if_stale(directory, f"{pid}.sock"):
                    raise NoProcessError(f"no process {pid}; a stale socket of it was removed")
        raise NoProcessError(f"no process {pid}")
    owner = _owner(pid)
    if owner is not None and os.geteuid() not in {0, owner}:
        raise ForeignProcessError(f"process {pid} belongs to another user (id {owner}); ask as that user or as root")
    if _is_zombie(pid):
        raise NoProcessError(f"process {pid} has ended; its parent has not waited for it yet")
    stale = False
    for directory in _directories_of(pid, os.geteuid() if owner is None else owner):
        try:
            return _ask(directory, pid, command, timeout, owner)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except ConnectionRefusedError:
            with contextlib.suppress(OSError, ValueError):
                stale = _remove_if_stale(directory, f"{pid}.sock") or stale
        except TimeoutError:
            raise NoAnswerError(
                f"process {pid} did not answer within {timeout:g} s; is it stopped, or in C code that keeps the GIL?"
            ) from None
        except PermissionError:
            raise ForeignProcessError(f"not allowed to ask process {pid}; ask as its user or as root") from None
        except (OSError, ValueError) as error:
            raise NoAnswerError(f"process {pid} cannot be asked: {error}") from error
    if stale:
        raise NoAgentError(f"the agent in process {pid} is gone; its stale socket was removed")
    raise NoAgentError(f"process {pid} runs without concagent, or with socket=off")


def has_socket(pid: int) -> bool:
    """Return whether a process seems to listen; its socket may be stale."""
    try:
        uid = _owner(pid)
        folders = _directories_of(pid, os.geteuid() if uid is None else uid)
        return any(os.path.exists(os.path.join(folder, f"{pid}.sock")) for folder in folders)
    except (OSError, ValueError):
        return False


def listening() -> list[int]:
    """Return the processes of this user that seem to listen, where this process would."""
    found: set[int] = set()
    for directory in _directories(os.environ, os.geteuid()):
        with contextlib.suppress(OSError):
            found |= {pid for pid in map(_pid_of, os.listdir(directory)) if pid is not None}
    return sorted(pid for pid in found if _exists(pid))


def _ask(directory: str, pid: int, command: str, timeout: float, owner: int | None) -> bytes:
    """Return the answer of the agent that listens in a directory."""
    deadline = _real.monotonic_ns() + int(timeout * 1e9)
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        with _reachable(directory, f"{pid}.sock") as path:
            connection.connect(path)
        peer = _peer_uid(connection)
        if owner is not None and peer is not None and peer not in {0, owner}:
            raise NoAnswerError(f"the socket of process {pid} is held by user id {peer}; not asked")
        # A server that refuses hangs up without reading; why it does so is waiting to be read.
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(command.encode("ascii") + b"\n", _SEND_FLAGS)
        data = bytearray()
        header = None
        while header is None or len(data) < header[1] + header[2]:
            left = (deadline - _real.monotonic_ns()) / 1e9
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
            chunk = connection.recv(65536)
            if not chunk:
                raise NoAnswerError(f"process {pid} hung up in the middle of its answer")
            data += chunk
            header = header or _header_of(bytes(data[:_MAX_HEADER_BYTES]))
            if header is None and len(data) >= _MAX_HEADER_BYTES:
                raise NoAnswerError(f"what listens for process {pid} is not concagent")
        body = bytes(data[header[1] : header[1] + header[2]])
        if header[0] == "error":
            raise NoAnswerError(f"process {pid}: {body.decode('utf-8', 'replace')}")
        return body
    finally:
        connection.close()


def _owner(pid: int) -> int | None:
    """Return the user id of a process; None where the system has no /proc."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def _is_zombie(pid: int) -> bool:
    try:
        with _real.open_file(f"/proc/{pid}/stat", "rb") as file:
            # The name in parentheses can contain anything, a parenthesis too.
            return file.read().rpartition(b")")[2].split()[:1] == [b"Z"]
    except OSError:
        return False


def _directories_of(pid: int, uid: int) -> list[str]:
    """Return where the socket of a process may be: as its environment says, ours, and the usual places of its user."""
    environments: list[Mapping[str, str]] = []
    try:
        with _real.open_file(f"/proc/{pid}/environ", "rb") as file:
            pairs = (entry.partition(b"=") for entry in file.read().split(b"\0"))
            environments.append({os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs})
    except OSError:
        pass  # another system, or not allowed: the usual places are left
    environments += [os.environ, {"XDG_RUNTIME_DIR": f"/run/user/{uid}"}]
    found: list[str] = []
    for environ in environments:
        found += [path for path in _directories(environ, uid) if path not in found]
    return found
