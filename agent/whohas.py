"""Which processes could still write into a pipe, read from it, or post a semaphore?

What processes share has no list of who shares it.  The kernel knows: an end of a pipe is a descriptor in ``/proc/PID/fd``, a
semaphore of ``multiprocessing`` is a file that is mapped, in ``/proc/PID/maps``.  Who has neither cannot end a wait, and that
holds for processes without an agent, too, and for those that were forked and keep what they never use.

An end is named by a *key*, the same in all processes:

    pipe:INODE:w    whoever can write into this pipe (``r``: read from it)
    socket:INODE    whoever has this end of a pair of sockets
    sem:DEV:INODE   whoever has this semaphore mapped; its file is gone, so it comes to others by ``fork`` alone
    child:PID:START whoever is this process: it is waited for its end
    name:DEV:INODE  the same of one that is still in the file system: any process of the program may be about to open it

A descriptor that is sent over a socket, and that nobody has received yet, is nobody's: an end without any process counts as
somebody's, since a pipe that has lost all its writers would have said so.

Assumes    Linux.  Peers of sockets come from the kernel's ``unix_diag``; without it nobody can tell who has the other end.
           Processes of other users cannot be looked into: with one of the program's own nothing is known; others have no ends of
           what the program has made.
Cost       a census reads the links of all open files of all processes: some 10 ms; it is asked when everybody seems to be asleep.
"""

from __future__ import annotations

import os
import stat
import struct
from typing import TYPE_CHECKING, Any, Final

from concagent import _real
from concagent.board import is_alive, start_time

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_SOCK_DIAG: Final = 4  # the family of netlink sockets
_BY_FAMILY: Final = 20
_PEER: Final = 2  # the attribute, and at the same time what stands for it in the question: 1 << 2
_GENERATIONS: Final = 64
_PASSES: Final = 3  # over all processes, the later ones over those that are new
_RESOURCE_TRACKER: Final = "multiprocessing.resource_tracker"
_FORK_SERVER: Final = "multiprocessing.forkserver"

Process = tuple[int, int]  # pid and start time


def other_end(descriptor: int, *, writing: bool) -> str | None:
    """Return the key of what ends a wait to read from a descriptor, or to write to it; None if that cannot be told."""
    try:
        status = os.fstat(descriptor)
        if stat.S_ISFIFO(status.st_mode):
            return f"pipe:{status.st_ino}:{'r' if writing else 'w'}"
        if stat.S_ISSOCK(status.st_mode):
            peer = _peer_of(status.st_ino)
            return f"socket:{peer}" if peer else None
    except (OSError, struct.error):
        pass
    return None


def child_key(pid: int) -> str:
    """Return the key of what ends with a process."""
    return f"child:{pid}:{start_time(pid)}"


def _peer_of(inode: int) -> int:
    """Return the inode of the socket that a UNIX socket is connected with, 0 if there is none or nobody can tell."""
    import _socket as socket  # of the program's ``socket`` leaks are noted

    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG)
    try:
        request = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, 0xFFFFFFFF, inode, 1 << _PEER, 0xFFFFFFFF, 0xFFFFFFFF)
        connection.settimeout(0.2)
        connection.send(struct.pack("=IHHII", 16 + len(request), _BY_FAMILY, 1, 1, 0) + request)
        answer = connection.recv(65536)
    finally:
        connection.close()
    length, kind = struct.unpack_from("=IH", answer)
    at = 16 + 16  # two headers; attributes follow
    while kind == _BY_FAMILY and at + 8 <= min(length, len(answer)):
        size, attribute = struct.unpack_from("=HH", answer, at)
        if attribute == _PEER:
            return int(struct.unpack_from("=I", answer, at + 4)[0])
        at += max(4, size + 3 & ~3)
    return 0


def semaphore_key(handle: int, *, named: bool) -> str | None:
    """Return the key of the semaphore at an address of this process; None if it is not mapped from a file.

    Whether it has a name cannot be seen there: the C library makes it under another one.
    """
    for low, high, identity in _mappings("self"):
        if low <= handle < high:
            return f"{'name' if named else 'sem'}:{identity}"
    return None


def _mappings(process: str) -> Iterator[tuple[int, int, str]]:
    """Yield (first address, end, device and inode) of what a process has mapped of semaphores.

    Raises:
        OSError: It cannot be looked into.
    """
    with _real.open_file(f"/proc/{process}/maps", encoding="utf-8", errors="replace") as file:
        for line in file:
            if "/sem." in line:
                where, _, _, device, inode, _ = line.split(None, 5)
                low, _, high = where.partition("-")
                yield int(low, 16), int(high, 16), f"{device}:{inode}"


def census(keys: Collection[str], root: int) -> dict[str, set[Process]] | None:
    """Return key -> the living processes that have it; None if that cannot be told.

    Args:
        keys: What is asked for.
        root: The first process of the program: of named semaphores, all that are below it count.
    """
    found: dict[str, set[Process]] = {key: set() for key in keys}
    ends = frozenset(key for key in keys if key.partition(":")[0] in {"pipe", "socket"})
    memories = {key.partition(":")[2]: key for key in keys if key.partition(":")[0] in {"sem", "name"}}
    parents: dict[int, int] = {}
    refused: set[int] = set()
    for _ in range(_PASSES):  # who was forked meanwhile has what its parent had, and that may be gone
        before, parents = parents, _parents()
        for pid in parents.keys() - before.keys():
            try:
                start = start_time(pid)
                if not start:
                    continue
                for key in _ends_of(pid, ends) if ends else ():
                    found[key].add((pid, start))
                if memories:
                    for _, _, identity in _mappings(str(pid)):
                        if identity in memories:
                            found[memories[identity]].add((pid, start))
            except (OSError, ValueError, IndexError):
                refused.add(pid)
    family = _family(parents, root)
    if any(pid in family and _is_there(pid) for pid in refused):
        return None
    for key in keys:
        kind, _, identity = key.partition(":")
        if kind == "child":
            pid, start = map(int, identity.split(":"))
            found[key].update([(pid, start)] if start and is_alive(pid, start) else [])
    named = [key for key in keys if key.startswith("name:")]
    if named and root not in family:
        return None
    for pid in family if named else ():
        start = start_time(pid)
        if start and not _is_helper(pid, parents):
            for key in named:
                found[key].add((pid, start))
    return found


def _ends_of(pid: int, keys: Collection[str]) -> set[str]:
    """Return which of these ends a process has.

    Raises:
        OSError: It cannot be looked into.
    """
    found = set()
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            link = os.readlink(f"/proc/{pid}/fd/{number}")
        except FileNotFoundError:
            continue  # closed meanwhile
        kind, _, rest = link.partition(":[")
        if kind == "socket":
            found.add(f"socket:{rest[:-1]}")
        elif kind == "pipe":
            mode = _access_mode(pid, number) if any(key.startswith(f"pipe:{rest[:-1]}:") for key in keys) else -1
            if mode in {os.O_RDONLY, os.O_RDWR}:
                found.add(f"pipe:{rest[:-1]}:r")
            if mode in {os.O_WRONLY, os.O_RDWR}:
                found.add(f"pipe:{rest[:-1]}:w")
    return found & set(keys)


def _access_mode(pid: int, number: str) -> int:
    with _real.open_file(f"/proc/{pid}/fdinfo/{number}", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("flags:"):
                return int(line.split()[1], 8) & os.O_ACCMODE
    return os.O_RDWR


def _parents() -> dict[int, int]:
    """Return pid -> parent of all processes."""
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with _real.open_file(f"/proc/{name}/stat", "rb") as file:
                found[int(name)] = int(file.read(4096).rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
    return found


def _is_there(pid: int) -> bool:
    try:
        return bool(start_time(pid))
    except (OSError, ValueError, IndexError):
        return True


def _family(parents: dict[int, int], root: int) -> set[int]:
    """Return the processes that a program consists of: the first one, and all that are below it."""
    members = set()
    for pid in parents:
        above, path = pid, []
        for _ in range(_GENERATIONS):
            path.append(above)
            if above == root:
                members.update(path)
                break
            above = parents.get(above, 0)
    return members


def _is_helper(pid: int, parents: dict[int, int]) -> bool:
    """Return whether this is a process of multiprocessing's own, which opens nothing: the tracker, the fork server itself."""
    command = _command(pid)
    if _RESOURCE_TRACKER in command:
        return True
    return _FORK_SERVER in command and _FORK_SERVER not in _command(parents.get(pid, 0))


def _command(pid: int) -> str:
    try:
        with _real.open_file(f"/proc/{pid}/cmdline", "rb") as file:
            text: Any = file.read(4096)
    except OSError:
        return ""
    return str(text, "utf-8", "replace")
