"""Who holds the locks on files, and who tries again and again to get one.

``flock`` belongs to an open file, not to a thread: it is kept until it is given up through any descriptor of that opening,
or the last of them is closed.  To see the closing would cost every ``close`` of the program; so a hold is only noted when it
is taken, and *asked for* when somebody waits: Linux lists in ``/proc/self/fdinfo/N`` the locks of the opening behind
descriptor N.  What is not listed there (any more) is no hold.  A hold through a descriptor that a child may have, too, is
none that we know: the child could give it up.

Libraries do not wait, they poll: they try without waiting and sleep, so that they can give up in time.  No wait is published
then, and the thread runs.  A thread whose attempts fail is therefore noted with the frames that it tries from.  If one of
these is a function of a library that we know, and it says itself that it has no time limit, it is a wait as long as that
function runs.  Other code may do anything between two attempts, and give up; it is told as a suspicion, after
``stall_after``, and only where it still does nothing else.

The holder is the thread that took the lock, and how it took it says whether it alone gives it back: entered by ``with`` in a
function that is running.  Anything else is as a plain Lock that somebody else may release.

``lockf`` (POSIX) belongs to the process: nobody here waits for what this process holds, and the kernel itself refuses rings of
processes (EDEADLK).  Such waits are shown, and their holder is unknown.

Assumes    Linux's ``fdinfo``; where it cannot be read nobody is known to hold anything, and every wait counts as one that
           ends.
Writers    holds: the thread that locks, by descriptor, so there are no more than descriptors.  Attempts: each thread its
           own.
Limits     A hold is forgotten at a fork, through an inheritable descriptor, and when its first descriptor is closed though a
           copy lives.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from concagent import _real, core

if TYPE_CHECKING:
    from types import CodeType, FrameType

SETTLE_NS: Final = 300_000_000  # so long, and so often, has an attempt to be repeated
ATTEMPTS: Final = 3
FORGET_NS: Final = 30_000_000_000  # code that has not tried for so long does something else
_FILE_LIMIT: Final = 1024
_CHAIN: Final = 12
# Module, up to the first dot -> function that polls, its variable with the time limit, and those that let it give up earlier.
_LIBRARIES: Final[dict[str, tuple[str, str, tuple[str, ...]]]] = {
    "filelock": ("acquire", "timeout", ("cancel_check",)),
    "portalocker": ("acquire", "timeout", ()),
}


class Held(NamedTuple):
    """A lock that was taken through a descriptor: by whom and where, on which file, and whether others may share it."""

    hold: Any  # (record, code, offset, whether it was entered), as of a lock
    file: tuple[int, int]
    shared: bool


class File:
    """A file that somebody waits to lock; all who do have the same."""

    __slots__ = ("key", "name", "serial")

    def __init__(self, key: tuple[int, int], descriptor: int) -> None:
        """Name a file after its path's last part: device and inode mean nothing to people."""
        self.serial: int = core.next_serial()
        self.key = key
        self.name = _name_of(descriptor)


class FileWait:
    """A wait for a lock on a file, as a resource: what is in the way depends on how it is wanted."""

    __slots__ = ("descriptor", "file", "posix", "record", "shared")
    kind: Final = "file-lock"
    code: Final = None
    lasti: Final = 0
    foreign: Final = False

    def __init__(self, file: File, descriptor: int | None, shared: bool, posix: bool) -> None:
        """Want ``file``; ``descriptor`` is None for who opens it anew at each attempt."""
        self.file = file
        self.descriptor = descriptor
        self.shared = shared
        self.posix = posix
        self.record = core.current_record()

    @property
    def serial(self) -> int:
        """Return the file's serial."""
        return self.file.serial

    @property
    def name(self) -> str | None:
        """Return the file's name without its path."""
        return self.file.name

    def hold_seen_by(self, wait: Any) -> Any:
        """Return the hold of a thread of this process that is in the way, None if there is none."""
        hold = self.blocker()
        if hold is not None and wait.token is None:
            wait.token = (hold[0], wait.code, wait.lasti, False)
        return hold

    def blocker(self) -> Any:
        """Return a hold that is in the way, one by the thread itself if there is one: each of them is enough.

        Takes a few system calls for each hold on this file, and none if there is none.
        """
        if self.posix:
            return None
        found = None
        for descriptor, held in list(_holds.items()):
            if held.file != self.file.key or (self.shared and held.shared) or held.hold[0].ended:
                continue
            if descriptor == self.descriptor or not holds_lock(descriptor, held.file):
                continue
            if self.descriptor is not None and holds_lock(self.descriptor, held.file):
                continue  # another descriptor of the same opening, which never waits for itself
            if found is None or held.hold[0] is self.record:
                found = held.hold
        return found


class Attempts:
    """A thread's attempts at one file, from one place, so far in vain."""

    __slots__ = (
        "chain",
        "code",
        "count",
        "endless",
        "last_ns",
        "lasti",
        "library",
        "record",
        "serial",
        "since_ns",
        "wait",
    )

    def __init__(self, record: Any, wait: FileWait, frame: FrameType, now_ns: int) -> None:
        """Begin with the first one that failed."""
        self.record = record
        self.wait = wait
        self.code = frame.f_code
        self.lasti = frame.f_lasti
        self.serial: int = core.next_serial()
        self.since_ns = self.last_ns = now_ns
        self.count = 0
        self.chain: frozenset[tuple[int, CodeType]] = frozenset()
        # True: a library's function that says it never gives up.  False: one that does.  None: who knows.
        self.endless: bool | None = None
        self.library: tuple[int, CodeType] | None = None

    @property
    def epoch(self) -> int:
        """Return what no other wait of the thread has: those that the core counts are positive."""
        return -self.serial

    def is_settled(self, now_ns: int) -> bool:
        """Return whether it has been tried often, and for long."""
        return self.count >= ATTEMPTS and now_ns - self.since_ns >= SETTLE_NS


_holds: dict[int, Held] = {}
_files: dict[tuple[int, int, bool], File] = {}
_attempts: dict[Any, Attempts] = {}


# ---------------------------------------------------------------- on the program's threads


def note_hold(descriptor: int, frame: FrameType, shared: bool) -> None:
    """Remember that the calling thread has locked a file; ``frame`` called ``flock``."""
    status = os.fstat(descriptor)
    record = core.current_record()
    _attempts.pop(record, None)
    owner, entered = _owner(frame)
    hold = (record, owner.f_code, owner.f_lasti, entered)
    _holds[descriptor] = Held(hold, (status.st_dev, status.st_ino), shared)


def forget_hold(descriptor: int) -> None:
    """Forget what was locked through a descriptor."""
    _holds.pop(descriptor, None)


def note_failure(descriptor: int, frame: FrameType, shared: bool) -> None:
    """Remember that the calling thread has tried to lock a file in vain; ``frame`` called ``flock``."""
    record, now_ns = core.current_record(), _real.monotonic_ns()
    status = os.fstat(descriptor)
    key = (status.st_dev, status.st_ino)
    tried = _attempts.get(record)
    same = (
        tried is not None and tried.wait.file.key == key and (tried.code, tried.lasti) == (frame.f_code, frame.f_lasti)
    )
    if tried is None or not same:
        tried = Attempts(record, FileWait(file_of(descriptor, key, False), None, shared, False), frame, now_ns)
    tried.last_ns = now_ns
    tried.count += 1
    tried.chain, library = _chain(frame)
    place = (id(library), library.f_code) if library is not None else None
    if place != tried.library or tried.count == 1:
        tried.library = place
        tried.endless = None
    if library is not None and tried.endless is None and tried.count > 1:
        tried.endless = _is_endless(library)
    _attempts[record] = tried


def wanted(descriptor: int, shared: bool, *, posix: bool = False) -> FileWait:
    """Return what a thread that is about to wait for a lock on a file waits for."""
    status = os.fstat(descriptor)
    return FileWait(file_of(descriptor, (status.st_dev, status.st_ino), posix), descriptor, shared, posix)


def file_of(descriptor: int, key: tuple[int, int], posix: bool) -> File:
    """Return a file that is waited for, made at the first time."""
    known = _files.get((*key, posix))
    if known is None:
        if len(_files) >= _FILE_LIMIT:
            _files.clear()  # who waits keeps the old one: the same file may be shown twice
        known = _files.setdefault((*key, posix), File(key, descriptor))
    return known


def _owner(frame: FrameType) -> tuple[FrameType, bool]:
    """Return the frame that will give a lock back, and whether it has entered it with ``with``."""
    outer: FrameType | None = frame
    owner = frame
    for _ in range(_CHAIN):
        if outer is None:
            break
        if outer.f_code.co_name == "__enter__" and outer.f_back is not None:
            return outer.f_back, True
        if _module(outer) in _LIBRARIES and outer.f_back is not None:
            owner = outer.f_back
        outer = outer.f_back
    return owner, False


def _chain(frame: FrameType) -> tuple[frozenset[tuple[int, CodeType]], FrameType | None]:
    """Return the frames that an attempt was made from, and the function of a library that makes them."""
    chain: list[tuple[int, CodeType]] = []
    library = None
    outer: FrameType | None = frame
    while outer is not None and len(chain) < _CHAIN:
        chain.append((id(outer), outer.f_code))
        known = _LIBRARIES.get(_module(outer))
        if known is not None and outer.f_code.co_name == known[0]:
            library = outer
        outer = outer.f_back
    return frozenset(chain), library


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _is_endless(frame: FrameType) -> bool:
    """Return whether a function of a library says that it has no time limit: a negative number is none."""
    _, limit, others = _LIBRARIES[_module(frame)]
    values = frame.f_locals
    timeout = values.get(limit)
    return isinstance(timeout, (int, float)) and timeout < 0 and all(values.get(name) is None for name in others)


def holds_lock(descriptor: int, key: tuple[int, int]) -> bool:
    """Return whether the opening behind a descriptor has a ``flock`` on this file now, and no child can have it, too."""
    try:
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) != key or os.get_inheritable(descriptor):
            return False
        with _real.open_file(f"/proc/self/fdinfo/{descriptor}", "rb", buffering=0) as info:
            lines = info.read(4096).splitlines()
    except OSError:
        return False
    inode = b":%d" % key[1]
    return any(b" FLOCK " in line and line.startswith(b"lock:") and line.split()[-3].endswith(inode) for line in lines)


def _name_of(descriptor: int) -> str | None:
    try:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return None
    return os.path.basename(path) or None


def forked() -> None:
    """Forget all holds, after a fork in both processes: each could give up what the other has."""
    _holds.clear()
    _attempts.clear()


# ---------------------------------------------------------------- for pictures


class Poll(NamedTuple):
    """One thread's attempts as a wait, and the hold that is in their way."""

    attempts: Attempts
    hold: Any


class PollSource:
    """The threads that poll for a lock on a file, for snapshots (see ``state.Source``)."""

    def __init__(self) -> None:
        """Show only those that say themselves that they never give up."""
        self.shown: tuple[int, int] | None = (
            None  # (thread that asks, epoch): these are shown, too, though they may be given up
        )

    def is_asked(self) -> bool:
        """Return whether there are attempts at all."""
        return bool(_attempts)

    def has_work(self) -> bool:
        """Return whether anybody polls without a time limit."""
        return any(tried.endless for tried in list(_attempts.values()))

    def signature(self) -> tuple[int, ...]:
        """Return which attempts there are: their holders are asked again when these change, or after some seconds."""
        now_ns = _real.monotonic_ns()
        return tuple(tried.serial for tried in list(_attempts.values()) if tried.endless and tried.is_settled(now_ns))

    def read(self) -> dict[int, Poll]:
        """Return actor's serial -> its attempts."""
        if not _attempts:
            return {}
        now_ns = _real.monotonic_ns()
        shown = self.shown[1] if self.shown is not None and self.shown[0] == _real.get_ident() else None
        return {
            tried.record.serial: Poll(tried, tried.wait.blocker())
            for tried in going_on(now_ns)
            if tried.endless or tried.epoch == shown
        }

    def add(self, builder: Any, one: dict[int, Poll], two: dict[int, Poll]) -> None:
        """Add the attempts that both readings agree on."""
        if not two:
            return
        from dataclasses import replace

        from concagent import interruptions, snapshots  # loaded by whoever takes a picture
        from concagent.model import RequestEdge

        blocked = {edge.actor for edge in builder.requests}
        for serial, poll in two.items():
            before, actor, tried = one.get(serial), builder.actors.get(serial), poll.attempts
            if before is None or before.attempts is not tried or before.hold is not poll.hold:
                continue
            if actor is None or actor.state != "live" or serial in blocked:
                continue
            over = None
            if poll.hold is not None and poll.hold[0] is tried.record:
                frame = builder.frames.get(tried.record.ident)
                over = interruptions.over(frame, poll.hold[1], poll.hold[2], snapshots.is_own_code)
            builder.add_resource(tried.wait, None)
            if poll.hold is not None:
                builder.assign(tried.wait, poll.hold)
            builder.add_actor(replace(actor, state="blocked"))
            site = snapshots.call_site(tried.code, tried.lasti)
            builder.request(
                RequestEdge(serial, tried.wait.serial, tried.since_ns, tried.epoch, False, site, "bare", over)
            )


def attempts() -> list[Attempts]:
    """Return all attempts that are known, those of former days included."""
    return list(_attempts.values())


def going_on(now_ns: int) -> list[Attempts]:
    """Return the attempts that are going on: the thread is where it tried from, and in no call of something else."""
    frames = _real.current_frames()
    try:
        return [
            tried
            for tried in list(_attempts.values())
            if _is_there(tried, frames.get(tried.record.ident), now_ns) and tried.is_settled(now_ns)
        ]
    finally:
        frames.clear()


def _is_there(tried: Attempts, frame: FrameType | None, now_ns: int) -> bool:
    if tried.record.ended or frame is None or (not tried.endless and now_ns - tried.last_ns > FORGET_NS):
        _attempts.pop(tried.record, None)
        return False
    if tried.record.waits:
        return False
    if tried.endless:  # as long as the library's function runs, whatever it calls
        outer: FrameType | None = frame
        while outer is not None and (id(outer), outer.f_code) != tried.library:
            outer = outer.f_back
        if outer is None and _attempts.get(tried.record) is tried:
            _attempts.pop(tried.record, None)
        return outer is not None
    return (id(frame), frame.f_code) in tried.chain
