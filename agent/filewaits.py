"""Who waits for a lock on a file, and who tries again and again to get one.

What is in the way of a wait is asked of `fileholds` and of the kernel.  Within the process that is a ``flock`` through another
opening; nobody here waits for what ``lockf`` (POSIX) gave this process.  What other processes have is seen where all of
them are: see ``fileunion``.

Libraries do not wait, they poll: they try without waiting and sleep, so that they can give up in time.  No wait is published
then, and the thread runs.  A thread whose attempts fail is therefore noted with the frames that it tries from.  If one of
these is a function of a library that we know, and it says itself that it has no time limit, it is a wait as long as that
function runs.  Other code may do anything between two attempts, and give up; it is told as a suspicion, after
``stall_after``, and only where it still does nothing else.

Writers    Attempts: each thread its own.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from concagent import _real, core, fileholds
from concagent.tuples import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType

    from concagent.fileholds import FileKey, Held, Span

SETTLE_NS: Final = 300_000_000  # so long, and so often, has an attempt to be repeated
ATTEMPTS: Final = 3
FORGET_NS: Final = 30_000_000_000  # code that has not tried for so long does something else
_FILE_LIMIT: Final = 1024
_CHAIN: Final = 12


class _Library(NamedTuple):
    """How a library polls: its function, the variable with the time limit, and those that let it give up earlier."""

    function: str
    limit: str
    others: tuple[str, ...]
    none_is_endless: bool  # whether it is None that means no limit; else a negative number does


_LIBRARIES: Final[dict[str, _Library]] = {  # by module, up to the first dot
    "filelock": _Library("acquire", "timeout", ("cancel_check",), False),
    "portalocker": _Library("acquire", "timeout", (), False),
    "fasteners": _Library("acquire", "timeout", (), True),
}


class File:
    """A file that somebody waits to lock; all who do have the same, for each of the two kinds of locks."""

    __slots__ = ("key", "name", "posix", "serial")

    def __init__(self, key: FileKey, descriptor: int, posix: bool) -> None:
        """Name a file after its path's last part: device and inode mean nothing to people."""
        self.serial: int = core.next_serial()
        self.key = key
        self.posix = posix
        self.name = _name_of(descriptor)


class FileWait:
    """A wait for a lock on a file, as a resource: what is in the way depends on how it is wanted."""

    __slots__ = ("descriptor", "file", "record", "shared", "span")
    kind: Final = "file-lock"
    code: Final = None
    lasti: Final = 0
    foreign: Final = False

    def __init__(self, file: File, descriptor: int | None, shared: bool, span: Span | None) -> None:
        """Want ``file``, or these bytes; ``descriptor`` is None for who opens it anew at each attempt."""
        self.file = file
        self.descriptor = descriptor
        self.shared = shared
        self.span = span
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
        found = None
        for held in self.blockers():
            if held.inherited:  # by children, who could give it up
                continue
            if found is None or held.hold[0] is self.record:
                found = held.hold
        return found

    def blockers(self) -> Iterator[Held]:
        """Yield the holds of this process that are in the way, those that children have, too, included."""
        if self.span is not None:
            return  # the process waits for no other than others
        for held in fileholds.of_file(self.file.key):
            if not held.is_in_way_of(self.shared, None) or held.descriptor == self.descriptor:
                continue
            if not fileholds.is_in_force(held):
                continue
            if self.descriptor is None or not fileholds.holds_lock(self.descriptor, held.file):
                yield held  # else it is another descriptor of the same opening, which never waits for itself


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

    def may_be_endless(self, now_ns: int) -> bool:
        """Return whether it is still tried as often as ever, and nobody says that there is a time limit."""
        usual_ns = (now_ns - self.since_ns) // self.count
        return self.endless is None and now_ns - self.last_ns < max(2_000_000_000, 3 * usual_ns)

    def is_settled(self, now_ns: int) -> bool:
        """Return whether it has been tried often, and for long."""
        return self.count >= ATTEMPTS and now_ns - self.since_ns >= SETTLE_NS


_files: dict[tuple[int, int, bool], File] = {}
_attempts: dict[Any, Attempts] = {}
on_refused: Callable[..., None] = lambda *_: None  # noqa: E731 - told of a wait that would have closed a ring (EDEADLK)
_all_shown_to = 0  # thread whose pictures show those who may give up, too
_asked = False  # whether anybody has ever had to wait here


# ---------------------------------------------------------------- on the program's threads


def note_hold(descriptor: int, frame: FrameType, shared: bool, span: Span | None = None) -> None:
    """Remember that the calling thread has locked a file; ``frame`` called ``flock`` or ``lockf``."""
    _attempts.pop(core.current_record(), None)
    fileholds.note(descriptor, frame, shared, span, _LIBRARIES.__contains__)


def note_failure(descriptor: int, frame: FrameType, shared: bool, span: Span | None = None) -> None:
    """Remember that the calling thread has tried to lock a file in vain; ``frame`` called ``flock`` or ``lockf``."""
    global _asked
    record, now_ns = core.current_record(), _real.monotonic_ns()
    status = os.fstat(descriptor)
    key, posix = (status.st_dev, status.st_ino), span is not None
    tried = _attempts.get(record)
    same = (
        tried is not None
        and (tried.wait.file.key, tried.wait.span) == (key, span)
        and (tried.code, tried.lasti) == (frame.f_code, frame.f_lasti)
    )
    if tried is None or not same:
        tried = Attempts(record, FileWait(file_of(descriptor, key, posix), None, shared, span), frame, now_ns)
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
    _asked = True


def wanted(descriptor: int, shared: bool, span: Span | None = None) -> FileWait:
    """Return what a thread that is about to wait for a lock on a file waits for."""
    global _asked
    _asked = True
    status = os.fstat(descriptor)
    file = file_of(descriptor, (status.st_dev, status.st_ino), span is not None)
    return FileWait(file, descriptor, shared, span)


def file_of(descriptor: int, key: FileKey, posix: bool) -> File:
    """Return a file that is waited for, made at the first time."""
    known = _files.get((*key, posix))
    if known is None:
        if len(_files) >= _FILE_LIMIT:
            _files.clear()  # who waits keeps the old one: the same file may be shown twice
        known = _files.setdefault((*key, posix), File(key, descriptor, posix))
    return known


def _chain(frame: FrameType) -> tuple[frozenset[tuple[int, CodeType]], FrameType | None]:
    """Return the frames that an attempt was made from, and the function of a library that makes them."""
    chain: list[tuple[int, CodeType]] = []
    library = None
    outer: FrameType | None = frame
    while outer is not None and len(chain) < _CHAIN:
        chain.append((id(outer), outer.f_code))
        known = _LIBRARIES.get(fileholds.module_of(outer))
        if known is not None and outer.f_code.co_name == known.function:
            library = outer
        outer = outer.f_back
    return frozenset(chain), library


def _is_endless(frame: FrameType) -> bool:
    """Return whether a function of a library says that it has no time limit."""
    library = _LIBRARIES[fileholds.module_of(frame)]
    values = frame.f_locals
    timeout = values.get(library.limit, 0)
    endless = timeout is None if library.none_is_endless else isinstance(timeout, (int, float)) and timeout < 0
    return endless and values.get("blocking") is not False and all(values.get(name) is None for name in library.others)


def _name_of(descriptor: int) -> str | None:
    try:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return None
    return os.path.basename(path) or None


def forked(*, child: bool) -> None:
    """Forget, in a child, what its parent's threads do; and see `fileholds.forked`."""
    fileholds.forked(child=child)
    if child:
        _attempts.clear()


# ---------------------------------------------------------------- for pictures


class Poll(NamedTuple):
    """One thread's attempts as a wait, and the hold that is in their way."""

    attempts: Attempts
    hold: Any


class PollSource:
    """The threads that poll for a lock on a file, for snapshots (see ``state.Source``).

    These show only those that say themselves that they never give up, but for `all_shown`.
    """

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
        everything = _all_shown_to == _real.get_ident()
        return {
            tried.record.serial: Poll(tried, tried.wait.blocker())
            for tried in going_on(now_ns)
            if tried.endless or (everything and tried.may_be_endless(now_ns))
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


# ---------------------------------------------------------------- asked for other processes


def waits() -> dict[int, FileWait]:
    """Return actor's serial -> the lock on a file that it waits for, attempts that have no known time limit included."""
    if not _asked:
        return {}
    found = {tried.record.serial: tried.wait for tried in attempts() if tried.endless is not False}
    for record in core.records():
        wait = record.waiting()
        if wait is not None and type(wait.resource) is FileWait:
            found[record.serial] = wait.resource
    return found


@contextmanager
def all_shown() -> Iterator[None]:
    """Have the pictures of the calling thread show those who poll and may give up, too; for one thread at a time."""
    global _all_shown_to
    _all_shown_to = _real.get_ident()
    try:
        yield
    finally:
        _all_shown_to = 0


def doubtful() -> set[int]:
    """Return the serials of those who poll and may give up at any time."""
    return {tried.record.serial for tried in attempts() if not tried.endless}


def has_long_waits(now_ns: int) -> bool:
    """Return whether a thread has waited for `SETTLE_NS`, with no known time limit: the question before a picture is taken."""
    if not _asked:
        return False
    if any(tried.is_settled(now_ns) and (tried.endless or tried.may_be_endless(now_ns)) for tried in attempts()):
        return True
    waiting = (record.waiting() for record in core.records())
    return any(
        wait is not None and type(wait.resource) is FileWait and not wait.timed and now_ns - wait.since_ns >= SETTLE_NS
        for wait in waiting
    )
