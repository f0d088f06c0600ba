"""Descriptors of the agent in a process whose program closes descriptors that it did not open.

Daemons close all of them.  A number that we keep then belongs to the program's next file: we would write into its
database, read what was meant for it, or close it.  So each number is kept with the identity of the file behind it, and
used only while the two go together.

New descriptors keep off 0 to 2: a daemon that closes these opens them again, and counts on getting the same numbers.

Invariants X1 a number that is not ours any more is never closed.
Limits     between the look and the use another thread of the program may close and open; nobody can exclude that.
Cost       a look is one ``fstat``, about a microsecond.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# How long after a loss we open descriptors again: whoever closes all of them is not done yet.
SETTLE_NS: Final = 250_000_000
LOST: Final = "the program closed a descriptor of the agent"

_first_number = 3


class Descriptor:
    """A number and the file that it had when it was ours."""

    __slots__ = ("_identity", "number")

    def __init__(self, number: int) -> None:
        """Take over a number that was opened just now."""
        self.number = number
        self._identity = _identity(number)

    def is_ours(self) -> bool:
        """Return whether the number still has our file; False once closed."""
        return self.has_file(self.number)

    def has_file(self, number: int) -> bool:
        """Return whether another number, a duplicate of this one, has our file."""
        return self._identity is not None and number >= 0 and _identity(number) == self._identity

    def close(self) -> None:
        """Close it if it is ours; safe to repeat."""
        if self.is_ours():
            try:
                os.close(self.number)
            except OSError:
                pass
        self.number = -1


class Pipe:
    """Both ends of a pipe that neither blocks nor is inherited."""

    __slots__ = ("read", "write")

    def __init__(self, *, opened: bool = True) -> None:
        """Open it; one that is not opened has no descriptors, and is not ours.

        Raises:
            OSError: No descriptor is left.
        """
        if not opened:
            self.read, self.write = Descriptor(-1), Descriptor(-1)
            return
        read, write = os.pipe()  # made non-inheritable (PEP 446) by the system call itself
        self.read, self.write = Descriptor(lifted(read)), Descriptor(lifted(write))
        os.set_blocking(self.read.number, False)
        os.set_blocking(self.write.number, False)

    def is_ours(self) -> bool:
        """Return whether both ends are."""
        return self.read.is_ours() and self.write.is_ours()

    def close(self) -> None:
        """Close what is ours of it; safe to repeat."""
        self.read.close()
        self.write.close()


def begin_at(number: int) -> None:
    """Keep descriptors opened from now on at this number or higher: for a child whose program expects the lowest to be free."""
    global _first_number
    _first_number = max(3, number)


def is_low(number: int) -> bool:
    """Return whether a descriptor has a number that is the program's."""
    return number < _first_number


def lifted(number: int) -> int:
    """Return the descriptor, moved if it has a number that is the program's, a standard stream's for one."""
    if not is_low(number) or os.name != "posix":
        return number
    import fcntl

    try:
        moved = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _first_number)
    except OSError:
        if number > 2:  # the limit is lower by now, or there are none left: any will do
            return number
        moved = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(number)
    return moved


def _identity(number: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(number)
    except OSError:
        return None
    return status.st_dev, status.st_ino
