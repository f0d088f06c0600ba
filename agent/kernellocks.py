"""The kernel's list of all locks on files, ``/proc/locks``: which process has one, and which waits for which.

It names processes, not threads, and files by inode: the device there is not always the one that ``fstat`` says (btrfs, overlays).
So it serves to name a holder that says nothing itself, and proves nothing alone.  Processes of other PID name spaces have no
number there.

Cost       one file, as long as there are locks in the system; read when somebody waits.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from concagent import _real

LAST: Final = (1 << 63) - 1  # the last byte that a file can have
_LIMIT_BYTES: Final = 1 << 20


class Entry(NamedTuple):
    """A line: a lock, or a wait for the lock of the same number."""

    number: str
    waits: bool
    kind: str  # ``POSIX``, ``FLOCK``, ``OFDLCK`` ...
    shared: bool
    pid: int
    inode: int
    first: int
    last: int


def entries() -> list[Entry]:
    """Return the list as it is now; empty where it cannot be read."""
    return parse(read("/proc/locks"))


def parse(text: str) -> list[Entry]:
    """Return the entries of a list; lines that look otherwise are left out."""
    found = []
    for line in text.splitlines():
        # 1: POSIX  ADVISORY  WRITE 12709 fe:00:3285018 5 14       1: -> POSIX ...
        words = line.split()
        waits = words[1:2] == ["->"]
        if waits:
            del words[1]
        if len(words) == 8 and words[6].isdigit():
            last = int(words[7]) if words[7].isdigit() else LAST
            inode = words[5].rpartition(":")[2]
            pid = int(words[4]) if words[4].isdigit() else 0
            if inode.isdigit():
                found.append(
                    Entry(
                        words[0].rstrip(":"), waits, words[1], words[3] == "READ", pid, int(inode), int(words[6]), last
                    )
                )
    return found


def read(path: str) -> str:
    """Return what a small file of the kernel's says, empty where it cannot be read."""
    try:
        with _real.open_file(path, "rb", buffering=0) as file:
            text: bytes = file.read(_LIMIT_BYTES)
    except OSError:
        return ""
    return text.decode("ascii", "replace")
