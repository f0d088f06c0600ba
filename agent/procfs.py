"""Which process this is, and whether it lives: what ``/proc`` says of one.

A number is given to another process some day; with the time of its start it is one process and no other.
"""

from __future__ import annotations

import errno
import os


def start_time(pid: int) -> int:
    """Return when a process was started, in clock ticks since boot; 0 if it is gone, or ended and not yet waited for."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ESRCH}:
            return 0
        raise
    try:
        text = os.read(descriptor, 4096)
    except ProcessLookupError:
        return 0
    finally:
        os.close(descriptor)
    fields = text.rpartition(b")")[2].split()
    if fields[0] in {b"Z", b"X"} and int(fields[17]) <= 1:
        return 0
    return int(fields[19])


def is_alive(pid: int, start: int) -> bool:
    """Return whether this very process lives; one that got its number later is another.  True where it cannot be told."""
    try:
        return start_time(pid) == start
    except (OSError, ValueError, IndexError):
        return True


def is_stopped(pid: int) -> bool:
    """Return whether a process does not run because of a signal or a debugger, so that it cannot answer."""
    try:
        return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[0] in {b"T", b"t"}
    except (OSError, IndexError):
        return True


def parent_of(pid: int) -> int:
    """Return the parent's number, 0 where there is none or it cannot be told."""
    try:
        with_name = _read(f"/proc/{pid}/stat")
        return int(with_name.rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def pid_space() -> int:
    """Return the identity of our PID name space."""
    return os.stat("/proc/self/ns/pid").st_ino


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)
