"""Shows threads that wait for child processes, and finds those that wait for ever: the child writes to a pipe that nobody drains.

``Popen.wait()``, and what is made of it, sleeps in ``waitpid``, which is plain to see on the thread's stack; nothing is replaced.
The child counts as alive, so its waiter is never stuck, with one exception: the child is asleep in a write to one of its
own standard streams, a pipe that is full and whose reading end only this process has.  Then it waits for
whoever reads, and the first who should is asleep until it ends.

A slow reader must not be taken for none.  So the pipe's fill, the child's sleep and the number of times that it was put to sleep
have to be the same a second later: with each byte that is read the child wakes.  After that, too, another live thread of
ours could begin to read; that is for the detectors to weigh, as with a semaphore's permit.

A shell that waits for its children is as stuck as all of them are.

Assumes    Linux: ``/proc/PID/wchan``, ``syscall``, ``status`` and ``children`` of our own children.  Where these cannot be read a
           child counts as alive, as it does if its main thread is not the one that writes.
Cost       with ``subprocess`` loaded, one look at the innermost frame of each thread a second; with a child that is waited
           for and has pipes, some small files; once for each pipe that seems stuck, the links of all open files.
"""

from __future__ import annotations

import io
import os
import stat
import sys
from typing import TYPE_CHECKING, Any, Final

from concagent import _real, core, state
from concagent.hooks.patching import PatchSet, Switch
from concagent.tuples import NamedTuple

if TYPE_CHECKING:
    from types import CodeType, FrameType

    from concagent.model import Actor, CallSite

SETTLE_NS: Final = 990_000_000  # a second, less what one tick may come early after another
_DEPTH: Final = 8  # generations of shells
_STREAMS: Final = (io.BufferedReader, io.FileIO, io.TextIOWrapper)
_F_GETPIPE_SZ: Final = 1032


class Pipe(NamedTuple):
    """One of our pipes: which stream it is, its identity, and how full it is."""

    stream: str
    inode: int
    filled_bytes: int
    size_bytes: int


class Child(NamedTuple):
    """A child that a thread waits for, and the pipe that it cannot write to."""

    process: Any
    epoch: int
    stuck: Pipe | None


class _Sleep(NamedTuple):
    """A child's sleep in a write: equal twice if it has not been woken in between."""

    pipe: Pipe
    sleeps: tuple[str, ...]


class ChildSource:
    """The waits for children, for snapshots (see ``state.Source``)."""

    def __init__(self) -> None:
        """Know of no child yet."""
        self._serials: dict[int, tuple[int, int, int]] = {}  # pid -> serials of the actor, of its end, of its pipe
        self._since: dict[int, int] = {}  # actor's serial -> since when it was seen to wait for a child
        self._asleep: dict[int, tuple[_Sleep, int, bool]] = {}  # pid -> its sleep, since when, whether others read

    def has_work(self) -> bool:
        """Return whether a thread waits for a child."""
        code = _waiting_code()
        return code is not None and any(frame.f_code is code for frame in _real.current_frames().values())

    def read(self) -> dict[int, Child]:
        """Return actor's serial -> the child that it waits for."""
        code = _waiting_code()
        if code is None:
            return {}
        try:
            return self._read(code)
        except Exception as error:  # noqa: BLE001 - border: processes come and go, and programs have streams of their own
            state.count_error("hook", error)
            return {}

    def _read(self, code: CodeType) -> dict[int, Child]:
        found = {}
        frames = _real.current_frames()
        try:
            for ident, frame in frames.items():
                if frame.f_code is not code:
                    continue
                record = core.record_of_ident(ident)
                values = frame.f_locals
                process: Any = values.get("self")
                if record is None or record.agent or record.waits or values.get("wait_flags") != 0:
                    continue
                if process.returncode is None:
                    found[record.serial] = Child(process, record.epoch, self._stuck_pipe(process))
        finally:
            frames.clear()  # our own frame is among them
        pids = {child.process.pid for child in found.values()}
        for pid in [pid for pid in self._asleep if pid not in pids]:
            self._asleep.pop(pid, None)
        return found

    def _stuck_pipe(self, process: Any) -> Pipe | None:
        """Return the pipe that the child has been asleep on for a second without being woken."""
        pipes = {pipe.inode: pipe for pipe in _pipes_of(process) if pipe.filled_bytes}
        asleep = _asleep_in_write(process.pid, pipes) if pipes else None
        if asleep is None:
            self._asleep.pop(process.pid, None)
            return None
        now_ns = _real.monotonic_ns()
        before = self._asleep.get(process.pid)
        if before is None or before[0] != asleep:
            self._asleep[process.pid] = (asleep, now_ns, False)
            return None
        _, since_ns, read_by_others = before
        if now_ns - since_ns < SETTLE_NS:
            return None
        if not read_by_others:
            read_by_others = has_other_readers(asleep.pipe.inode)
            self._asleep[process.pid] = (asleep, since_ns, read_by_others)
        return None if read_by_others else asleep.pipe

    def add(self, builder: Any, one: dict[int, Child], two: dict[int, Child]) -> None:
        """Add the waits that both readings agree on, with the children as actors."""
        shared = sys.modules.get("concagent.shared")  # once processes see each other
        blocked = {edge.actor for edge in builder.requests}
        since: dict[int, int] = {}
        for serial, child in two.items():
            actor = builder.actors.get(serial)
            before = one.get(serial)
            if before is None or before.process is not child.process or before.epoch != child.epoch:
                continue
            if actor is None or actor.state != "live" or serial in blocked:
                continue
            since[serial] = self._since.get(serial, 0) or _real.monotonic_ns()
            stuck = child.stuck if before.stuck == child.stuck else None
            self._add_child(builder, actor, child, since[serial], stuck)
            if shared is not None:
                shared.ends[self._serials[child.process.pid][1]] = child.process.pid
        self._since = since
        pids = {child.process.pid for child in two.values()}
        for pid in [pid for pid in self._serials if pid not in pids]:
            _, end, _ = self._serials.pop(pid)
            if shared is not None:
                shared.ends.pop(end, None)

    def _add_child(self, builder: Any, actor: Actor, child: Child, since_ns: int, stuck: Pipe | None) -> None:
        from dataclasses import replace  # with all value types; most programs never take a picture

        from concagent.model import Actor, AssignmentEdge, RequestEdge, Resource

        pid = child.process.pid
        process, end, pipe = self._serials.setdefault(pid, _new_serials())
        name = _name_of(child.process)
        builder.add_actor(Actor(process, "process", pid, pid, name, False, "blocked" if stuck else "live"))
        builder.add_actor(replace(actor, state="blocked"))
        builder.put_resource(Resource(end, "process", name, None))
        builder.hold(AssignmentEdge(end, process, None, 1, None))
        site = _site(builder.frames.get(_ident_of(actor.serial)))
        builder.request(RequestEdge(actor.serial, end, since_ns, child.epoch, False, site))
        if stuck is not None:
            asleep_ns = self._asleep.get(pid, (None, since_ns, False))[1]
            full = f"full, {stuck.filled_bytes} of {stuck.size_bytes} bytes"
            builder.put_resource(Resource(pipe, "pipe", stuck.stream, None, detail=full))
            builder.hold(AssignmentEdge(pipe, actor.serial, None, 1, site))
            builder.request(RequestEdge(process, pipe, asleep_ns, asleep_ns, False, None))


def _waiting_code() -> CodeType | None:
    """Return the code in which a thread waits for a child; None without ``subprocess``, or where it is not POSIX."""
    popen = getattr(sys.modules.get("subprocess"), "Popen", None)
    return getattr(getattr(popen, "_try_wait", None), "__code__", None)


def _new_serials() -> tuple[int, int, int]:
    return state.ACTOR_SERIALS + core.next_serial(), core.next_serial(), core.next_serial()


def _ident_of(serial: int) -> int:
    return next((record.ident for record in core.records() if record.serial == serial), 0)


def _name_of(process: Any) -> str:
    """Return the command's last part of a path and the pid; its arguments may be secret."""
    words = process.args
    if isinstance(words, (str, bytes, os.PathLike)):
        words = os.fsdecode(words).split()
    word = os.fsdecode(next(iter(words), ""))
    return f"{os.path.basename(word) or 'child'} (pid {process.pid})"


def _site(frame: FrameType | None) -> CallSite | None:
    """Return the program's line that waits."""
    from concagent.model import CallSite

    while frame is not None and frame.f_globals.get("__name__") == "subprocess":
        frame = frame.f_back
    if frame is None:
        return None
    code = frame.f_code
    return CallSite(code.co_filename, frame.f_lineno or 0, getattr(code, "co_qualname", code.co_name))


# ---------------------------------------------------------------- pipes


def _pipes_of(process: Any) -> list[Pipe]:
    """Return the pipes that the child writes its output to and that we have the reading ends of."""
    pipes = []
    for name in ("stdout", "stderr"):
        stream: Any = getattr(process, name, None)
        if type(stream) in _STREAMS and not stream.closed:
            pipe = pipe_of(name, stream.fileno())
            if pipe is not None:
                pipes.append(pipe)
    return pipes


def pipe_of(stream: str, descriptor: int) -> Pipe | None:
    """Return how full a pipe is; None for what is no pipe, or where that cannot be asked."""
    try:
        import fcntl
        import termios

        status = os.fstat(descriptor)
        if not stat.S_ISFIFO(status.st_mode):
            return None
        size = fcntl.fcntl(descriptor, getattr(fcntl, "F_GETPIPE_SZ", _F_GETPIPE_SZ))
        filled = fcntl.ioctl(descriptor, termios.FIONREAD, b"\0" * 8)
    except (ImportError, OSError):
        return None
    return Pipe(stream, status.st_ino, int.from_bytes(filled[:4], sys.byteorder), size)


def _asleep_in_write(pid: int, pipes: dict[int, Pipe], depth: int = 0) -> _Sleep | None:
    """Return the sleep of a process in a write to one of these pipes, or of its children if it waits for them."""
    where = read_file(f"/proc/{pid}/wchan")
    sleeps = _sleeps(pid)
    if sleeps is None:
        return None
    if "pipe_write" in where:
        words = read_file(f"/proc/{pid}/syscall").split()
        try:
            inode = os.stat(f"/proc/{pid}/fd/{int(words[1], 16)}").st_ino
        except (OSError, ValueError, IndexError):
            return None
        return _Sleep(pipes[inode], (sleeps,)) if inode in pipes else None
    if where != "do_wait" or depth == _DEPTH:
        return None
    below = [_asleep_in_write(int(c), pipes, depth + 1) for c in read_file(f"/proc/{pid}/task/{pid}/children").split()]
    stuck = [one for one in below if one is not None]
    if not stuck or len(stuck) < len(below):
        return None
    return _Sleep(stuck[0].pipe, (sleeps, *(text for one in stuck for text in one.sleeps)))


def _sleeps(pid: int) -> str | None:
    """Return which process this is, and how often it has gone to sleep; None if it is gone."""
    lines = [line for line in read_file(f"/proc/{pid}/status").splitlines() if line.startswith("voluntary_ctxt")]
    fields = read_file(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return f"{pid}@{fields[19]}:{lines[0].split()[1]}" if lines and len(fields) > 19 else None


def read_file(path: str) -> str:
    """Return the beginning of a small file of the kernel's, empty where it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(descriptor, 65536).decode("ascii", "replace")
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def has_other_readers(inode: int) -> bool:
    """Return whether another process has a reading end of the pipe: one that was forked and kept ours."""
    others = (int(pid) for pid in os.listdir("/proc") if pid.isdigit() and int(pid) != os.getpid())
    return any(readers_of(pid, inode) for pid in others)


def readers_of(pid: int, inode: int) -> list[int]:
    """Return the descriptors of a process that are reading ends of the pipe; none where that cannot be seen."""
    found = []
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return []
    for number in numbers:
        try:
            here = os.readlink(f"/proc/{pid}/fd/{number}") == f"pipe:[{inode}]"
        except OSError:
            continue
        if here and not _writes_only(str(pid), number):
            found.append(int(number))
    return found


def _writes_only(pid: str, number: str) -> bool:
    for line in read_file(f"/proc/{pid}/fdinfo/{number}").splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8) & os.O_ACCMODE == os.O_WRONLY
    return False


def add_patches(patches: PatchSet) -> ChildSource:
    """Append the step that makes snapshots know of children, and return their source; nothing is replaced."""
    source = ChildSource()
    patches.add(Switch("children", lambda: state.add_source(source), lambda: state.remove_source(source)))
    return source
