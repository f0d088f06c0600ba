"""Who has locked files: by which thread, through which descriptor, and whether the kernel says so still.

``flock`` belongs to an open file, not to a thread: it is kept until it is given up through any descriptor of that opening,
or the last of them is closed.  ``lockf`` (POSIX) belongs to the process: it is gone as soon as the process closes *any*
descriptor of the file.  To see the closing would cost every ``close`` of the program; so a hold is only noted when it
is taken, and *asked for* when somebody waits: Linux lists in ``/proc/self/fdinfo/N`` the locks that were taken through
descriptor N.  What is not listed there (any more) is no hold.

A hold through a descriptor that an executed child may have, too, is none that we know: the child could give it up.  One that
was taken before a fork is the children's as well; it says nothing within this process any more, and is asked about, with all
who have the opening, where all processes are seen (``fileunion``).  Of a POSIX lock a child has nothing.

The holder is the thread that took the lock, and how it took it says whether it alone gives it back: entered by ``with`` in a
function that is running.  Anything else is as a plain Lock that somebody else may release.

Assumes    Linux's ``fdinfo``; where it cannot be read nobody is known to hold anything, and every wait counts as one that
           ends.
Writers    the thread that locks; the oldest notes go when there are `HOLD_LIMIT`.
Limits     A hold is forgotten when its first descriptor is closed though a copy lives, and is not known if it was taken by
           ``fcntl(F_SETLK)``.
Cost       a lock that is taken: one ``fstat`` and a look at its caller.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from concagent import _real, core
from concagent.tuples import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

LAST: Final = (1 << 63) - 1  # the last byte that a file can have
HOLD_LIMIT: Final = 4096
_CHAIN: Final = 12

FileKey = tuple[int, int]  # device and inode
Span = tuple[int, int]  # first and last byte


class Held(NamedTuple):
    """A lock that was taken through a descriptor: by whom and where, on which file, and whether others may share it.

    ``span`` is None for ``flock``, which has all of the file; ``serial`` is of this very hold; ``inherited`` says that children
    were forked meanwhile, ``contested`` that another thread has locked the same before and may unlock it for both.
    """

    hold: Any  # (record, code, offset, whether it was entered), as of a lock
    file: FileKey
    descriptor: int
    shared: bool
    span: Span | None
    since_ns: int
    serial: int
    inherited: bool = False
    contested: bool = False

    @property
    def kind(self) -> str:
        """Return what it is called as a resource."""
        return "file-lock"

    def is_in_way_of(self, shared: bool, span: Span | None) -> bool:
        """Return whether a lock that another owner wants cannot be had with this one: the two kinds do not know each other."""
        if (self.span is None) != (span is None) or (shared and self.shared):
            return False
        return self.span is None or span is None or (self.span[0] <= span[1] and span[0] <= self.span[1])


_holds: dict[tuple[int, Span | None], Held] = {}  # by descriptor and bytes


# ---------------------------------------------------------------- on the program's threads


def note(descriptor: int, frame: FrameType, shared: bool, span: Span | None, is_library: Callable[[str], bool]) -> None:
    """Remember that the calling thread has locked a file; ``frame`` called ``flock`` or ``lockf``."""
    status = os.fstat(descriptor)
    record = core.current_record()
    owner, entered = _owner(frame, is_library)
    file = (status.st_dev, status.st_ino)
    if len(_holds) >= HOLD_LIMIT:
        for oldest in list(_holds)[: HOLD_LIMIT // 4]:
            _holds.pop(oldest, None)
    key = (descriptor, span)
    before = _holds.pop(key, None)
    contested = before is not None and before.hold[0] is not record and not before.hold[0].ended
    hold = (record, owner.f_code, owner.f_lasti, entered and not contested)
    now_ns, serial = _real.monotonic_ns(), core.next_serial()
    _holds[key] = Held(hold, file, descriptor, shared, span, now_ns, serial, False, contested)


def forget(descriptor: int, span: Span | None = None) -> None:
    """Forget what was locked through a descriptor; of POSIX locks just these bytes, of others the kernel knows."""
    _holds.pop((descriptor, span), None)


def _owner(frame: FrameType, is_library: Callable[[str], bool]) -> tuple[FrameType, bool]:
    """Return the frame that will give a lock back, and whether it has entered it with ``with``."""
    outer: FrameType | None = frame
    owner = frame
    for _ in range(_CHAIN):
        if outer is None:
            break
        if outer.f_code.co_name == "__enter__" and outer.f_back is not None:
            return outer.f_back, True
        if is_library(module_of(outer)) and outer.f_back is not None:
            owner = outer.f_back
        outer = outer.f_back
    return owner, False


def module_of(frame: FrameType) -> str:
    """Return the module that a frame's code is of, up to the first dot."""
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def forked(*, child: bool) -> None:
    """Note that a process was forked: an opening is both processes' from now on, a POSIX lock is the parent's."""
    if child:
        _holds.clear()
        return
    for key, held in list(_holds.items()):
        if held.span is None and not held.inherited:
            _holds[key] = held._replace(inherited=True)


# ---------------------------------------------------------------- asked when somebody waits


def are_any() -> bool:
    """Return whether a lock was ever noted and not given back."""
    return bool(_holds)


def of_file(file: FileKey) -> list[Held]:
    """Return the holds that are known of a file, those that are over included."""
    return [held for held in list(_holds.values()) if held.file == file]


def of_inode(inode: int) -> list[Held]:
    """Return the POSIX locks that this process has on a file, of whatever device."""
    return [held for held in list(_holds.values()) if held.span and held.file[1] == inode and is_in_force(held)]


def by(records: set[Any]) -> list[Held]:
    """Return the holds of these threads that are in force, and forget those that are not."""
    found = []
    for key, held in list(_holds.items()):
        if held.hold[0] not in records:
            continue
        if is_in_force(held):
            found.append(held)
        elif _holds.get(key) is held:
            _holds.pop(key, None)
    return found


def others_have(held: Held) -> bool:
    """Return whether another thread of this process has locked some of the same: an unlock of either is one of both.

    The kernel makes one lock of such two, and lists it at the first descriptor only.
    """
    return held.contested or any(
        other.hold[0] is not held.hold[0]
        and other.is_in_way_of(False, held.span)
        and _has_file(other.descriptor, held.file)
        for other in of_file(held.file)
        if held.span is not None
    )


def _has_file(descriptor: int, file: FileKey) -> bool:
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == file


def is_in_force(held: Held) -> bool:
    """Return whether the kernel has this lock still, and no executed child can have it, too."""
    if held.hold[0].ended:
        return False
    if held.span is None:
        return holds_lock(held.descriptor, held.file, shared=held.shared)
    first, last = held.span
    me = os.getpid()
    return any(
        lock.kind == "POSIX"
        and lock.pid == me
        and lock.first <= first
        and last <= lock.last
        and lock.shared == held.shared
        for lock in _locks(held.descriptor, held.file)
    )


def holds_lock(descriptor: int, file: FileKey, *, shared: bool | None = None) -> bool:
    """Return whether the opening behind a descriptor has a ``flock`` on this file now, and no executed child can have it.

    Args:
        descriptor: Any number.
        file: Device and inode that it has to be of.
        shared: Of which mode; None for either.
    """
    try:
        if os.get_inheritable(descriptor):
            return False
    except OSError:
        return False
    return any(lock.kind == "FLOCK" and (shared is None or lock.shared == shared) for lock in _locks(descriptor, file))


class Lock(NamedTuple):
    """A lock as the kernel lists it: its kind, whether it is shared, by which process it was taken, which bytes."""

    kind: str
    shared: bool
    pid: int
    first: int
    last: int


def _locks(descriptor: int, file: FileKey) -> list[Lock]:
    """Return the locks that were taken through a descriptor of ours; none if it is not of this file."""
    return locks_in(f"/proc/self/fdinfo/{descriptor}") if _has_file(descriptor, file) else []


def locks_in(path: str) -> list[Lock]:
    """Return the locks that a file of ``/proc/PID/fdinfo`` lists; none where it cannot be read."""
    try:
        with _real.open_file(path, "rb", buffering=0) as info:
            lines = info.read(16384).decode("ascii", "replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        # lock:  1: POSIX  ADVISORY  WRITE 12709 fe:00:3285018 5 14
        words = line.split()
        if len(words) == 9 and words[0] == "lock:" and words[7].isdigit():
            last = int(words[8]) if words[8].isdigit() else LAST
            found.append(Lock(words[2], words[4] == "READ", _number(words[5]), int(words[7]), last))
    return found


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0
