"""Findings as lines in a file: append-only, at once, by several processes.

A finding may be the last thing that a process says, and its children write to the same file.  So a line is one
``write`` on a descriptor opened with ``O_APPEND``: the kernel places it whole behind what others wrote, nothing waits in
a buffer, and a forked child goes on with the inherited descriptor.

A program may close descriptors that it did not open (daemons close all of them), and the number then belongs to another
file of the program.  We would write JSON into its database.  So before each line the descriptor must still be the file
that we opened; if not, the path is opened again.

Invariants F1 a line begins at the start of a line: after a torn write (disk full) the next one begins with a newline.
Limits     on network file systems ``O_APPEND`` is not atomic between machines; a reader skips lines that do not parse.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from concagent.descriptors import lifted
from concagent.errors import ConfigError

if TYPE_CHECKING:
    from concagent.model import Finding

# Names of streams that are symbolic links themselves; everywhere else a link could lead us into somebody's file.
_STREAMS: Final = frozenset({"/dev/stdout", "/dev/stderr"})
# A pipe without a reader must neither stop install nor, when full, the agent: both become an OSError.
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


class FindingsFile:
    """Appends findings to a file; used by one thread of a process at a time."""

    def __init__(self, path: str | os.PathLike[str], *, late: bool = False) -> None:
        """Open or create the file, readable by its user only; with ``late`` at the first finding.

        Raises:
            ConfigError: It cannot be opened for appending, or is a symbolic link.
        """
        self.path = os.fspath(path)
        self._descriptor = -1
        self._identity = (0, 0)
        self._torn = False
        self._closed = False
        if late:
            return
        try:
            self._open()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            if getattr(error, "errno", None) == errno.ELOOP:
                why = "it is a symbolic link; give the path it leads to"
            raise ConfigError(
                f"cannot append findings to {self.path!r}: {why}",
                option="findings",
                value=repr(self.path),
                allowed="the path of a file that this user can append to",
            ) from error

    def write(self, finding: Finding) -> None:
        """Append the finding as one line; it is with the kernel on return.

        Raises:
            OSError: The file is full, gone bad or closed.
        """
        from concagent.exporters.json import finding_line  # with all value types; most programs find nothing

        if self._closed:
            raise OSError(errno.EBADF, "the findings file is closed", self.path)
        if not self._is_ours():
            self._open()
        rest = memoryview(f"{finding_line(finding)}\n".encode("ascii"))
        if self._torn:
            rest = memoryview(b"\n" + rest)
        while rest:
            written = os.write(self._descriptor, rest)
            rest = rest[written:]
            # If the next round fails, this line stays unfinished.
            self._torn = bool(rest)

    def close(self) -> None:
        """Close the file; safe to repeat, and never closes a descriptor that is no longer ours."""
        if self._descriptor >= 0 and self._is_ours():
            os.close(self._descriptor)
        self._descriptor = -1
        self._closed = True

    def _open(self) -> None:
        nofollow = 0 if self.path in _STREAMS else getattr(os, "O_NOFOLLOW", 0)
        self._descriptor = lifted(os.open(self.path, _FLAGS | nofollow, stat.S_IRUSR | stat.S_IWUSR))
        status = os.fstat(self._descriptor)
        self._identity = (status.st_dev, status.st_ino)
        self._torn = False

    def _is_ours(self) -> bool:
        try:
            status = os.fstat(self._descriptor)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity
