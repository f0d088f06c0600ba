"""Locks on files in the picture of all processes: what each process says of them, and who is in whose way.

The kernel knows who has locked a file, and cannot be asked by a waiter: ``/proc/locks`` names a process, not a thread, and not
what that one waits for.  So nothing is written anywhere when a file is locked.  A process with a thread that waits long for
something shared says on the board, beside its waits, which locks on files *its waiting threads* have and the kernel confirms
at this moment (``fileholds``), and how its waiters want theirs.  That is all that a ring can be made of: whoever holds and does
not wait is in none.  A holder that dies says nothing any more, and the kernel has taken its locks back: no orphans.

A file is its device and inode; ``flock`` and ``lockf`` do not know of each other, so each file is two resources.  Several may be
in the way of one waiter, and *each* of them is enough to keep him; so of several that one stands for all that leads back to
him (`choose`).

Whether a hold can end without its holder is the question of `doubt_of`.  An opening may be had by other processes: forked
children, or whoever it was passed to; they are found by their descriptors, and all of them have to be stuck themselves.  Of
a POSIX lock only the threads of its own process can dispose.

Assumes    Linux; processes of one PID name space, whose ``/proc`` may be read: those of other users are not asked.
Cost       saying: some system calls for each lock that a waiting thread has.  Proof of a ring: the links of all open files of
           all processes, once.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from concagent import _real, core, fileholds, filewaits, graph, snapshots, stalls, state

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from concagent.fileholds import Lock
    from concagent.model import Snapshot

Process = tuple[int, int]  # pid and start time

FILE: Final = "file"  # first word of a file's key
_MOST_SAID: Final = 32  # holds of one process: there is not much room on the board
_UNLOCK_DOUBT: Final = "a thread that does not wait could unlock or close the locked file, though none has so far"
POLL_DOUBT: Final = (
    "a thread of the ring tries again and again, and could give up at any time, though it has not so far"
)
_SHARED_DOUBT: Final = "the opening that has the lock is shared with pid {}, which could unlock it"


# ---------------------------------------------------------------- what a process says of itself


def key_of(file: filewaits.File) -> list[Any]:
    """Return the identity of a file in all processes, for each of the two kinds of locks."""
    return [FILE, *file.key, int(file.posix)]


def identity_of(key: list[Any]) -> str | None:
    """Return what a report says of a file beyond its name; None if it is none."""
    if key[0] != FILE:
        return None
    _, device, inode, posix = key
    kind = "lockf" if posix else "flock"
    return f"{kind}, device {os.major(device)}:{os.minor(device)}, inode {inode}"


def said(picture: Snapshot, waiting: Collection[int]) -> dict[str, Any]:
    """Return how these actors want locks on files, and which ones they have; see `_Joiner` for the shape.

    ``live`` is the number of threads here that could do something: who does not wait, or gives up by itself, may be
    interrupted by a signal handler, or is none that Python knows.
    """
    waits = {serial: wait for serial, wait in filewaits.waits().items() if serial in waiting}
    polls = filewaits.doubtful() & waits.keys()
    wants = []
    for serial, wait in waits.items():
        local = [held.serial for held in wait.blockers()]
        wants.append([serial, key_of(wait.file), wait.shared, wait.span, local, serial in polls])
    records = {record for record in core.records() if record.serial in waiting}
    frames = _real.current_frames()
    try:
        latest = fileholds.by(records)[-_MOST_SAID:]
        holds = [_hold_said(held, frames.get(held.hold[0].ident)) for held in latest]
    finally:
        frames.clear()
    awake = [a for a in picture.actors if a.type == "thread" and a.state not in {"ended", "agent"}]
    live = sum(actor.serial not in waiting or actor.serial in polls for actor in awake) + picture.foreign_threads
    return {"wants": wants, "holds": holds, "live": live + stalls.has_signal_handlers()}


def _hold_said(held: fileholds.Held, frame: Any) -> list[Any]:
    record, code, lasti, _ = held.hold
    habit = state.hold_discipline(held, held.hold)
    habit = state.unless_running(habit, held, held.hold, running=state.is_running(frame, held.hold))
    habit = "bare" if fileholds.others_have(held) else habit
    site = snapshots.call_site(code, lasti)
    where = [site.file, site.line, site.function] if site is not None else None
    key = [FILE, *held.file, int(held.span is not None)]
    return [held.serial, key, record.serial, held.since_ns, where, habit, held.shared, held.span, held.descriptor]


# ---------------------------------------------------------------- all together


class FileHold(NamedTuple):
    """A hold in the picture of all processes; ``file`` and ``holder`` are numbers there, ``serial`` is its own process's."""

    process: Process
    serial: int
    file: int
    holder: int
    since_ns: int
    site: list[Any] | None
    habit: str
    shared: bool
    span: list[int] | None
    descriptor: int

    @property
    def identity(self) -> tuple[Process, int]:
        """Return what no other hold has."""
        return self.process, self.serial

    def is_in_way_of(self, want: Want) -> bool:
        """Return whether a wait lasts as long as this hold does."""
        if self.process == want.process:
            return self.serial in want.local
        if self.file != want.file or (self.shared and want.shared):
            return False
        if self.span is None or want.span is None:
            return True
        return self.span[0] <= want.span[1] and want.span[0] <= self.span[1]


class Want(NamedTuple):
    """How a lock on a file is wanted.

    ``local`` are the holds of the same process that are in its way; ``polls`` says that it is tried again and again, and may be
    given up.
    """

    process: Process
    actor: int
    file: int
    shared: bool
    span: list[int] | None
    local: list[int]
    polls: bool = False


def choose(wants: Iterable[Want], holds: Iterable[FileHold], following: Mapping[int, int]) -> dict[int, FileHold]:
    """Return file -> the hold that is in the way there, if there is any: one that leads back to a waiter where there is one.

    Args:
        wants: All waits for locks on files.
        holds: All holds that are known.
        following: Waiter -> holder, for what is waited for beside files.
    """
    in_way: dict[int, list[FileHold]] = {}
    every = list(holds)
    for want in wants:
        in_way[want.actor] = [hold for hold in every if hold.is_in_way_of(want)]
    chosen: dict[int, FileHold] = {}
    for actor, blockers in in_way.items():
        for hold in _way_back(actor, blockers, in_way, following):
            chosen.setdefault(hold.file, hold)
    for blockers in in_way.values():
        for hold in blockers[:1]:
            chosen.setdefault(hold.file, hold)
    return chosen


def _way_back(
    actor: int, blockers: list[FileHold], in_way: Mapping[int, list[FileHold]], following: Mapping[int, int]
) -> list[FileHold]:
    """Return the holds on a way from an actor over those it waits for to itself; none if there is no such way."""
    came: dict[int, tuple[int, FileHold | None]] = {}
    todo: list[tuple[int, int, FileHold | None]] = [(actor, hold.holder, hold) for hold in blockers]
    while todo and actor not in came:
        before, at, hold = todo.pop()
        if at in came:
            continue
        came[at] = before, hold
        todo += [(at, each.holder, each) for each in in_way.get(at, ())]
        if at in following:
            todo.append((at, following[at], None))
    way = []
    at = actor
    while at in came:
        at, hold = came.pop(at)
        if hold is not None:
            way.append(hold)
    return way if at == actor and way else []


# ---------------------------------------------------------------- what a ring through files proves


def doubt_of(
    picture: Snapshot,
    ring: Collection[int],
    holds: Collection[FileHold],
    process_of: Mapping[int, Process],
    live: Mapping[Process, int],
) -> str | None:
    """Return why a ring of which all other edges are certain may yet be broken; None if it cannot.

    Args:
        picture: Of all processes.
        ring: Its members.
        holds: Those of the ring's files.
        process_of: Actor -> process.
        live: Process -> the number of its threads that could do something.
    """
    stuck = _stuck(picture, ring, process_of, live)
    for hold in holds:
        if hold.process not in stuck and hold.habit in {"bare", "lent", "try"}:
            return _UNLOCK_DOUBT
    pids = {process[0] for process in stuck}
    for hold in holds:
        others = sharers(hold.process[0], hold.descriptor) - pids if hold.span is None else set()
        if others:
            return _SHARED_DOUBT.format(min(others))
    return None


def _stuck(
    picture: Snapshot, ring: Collection[int], process_of: Mapping[int, Process], live: Mapping[Process, int]
) -> set[Process]:
    """Return the processes of which every thread is in the ring or waits for it."""
    members = {*ring, *graph.behind(picture, ring)}
    others = {process_of[edge.actor] for edge in picture.requests if edge.actor not in members}
    return {process for process in {process_of[serial] for serial in members} - others if not live.get(process, 1)}


def sharers(pid: int, descriptor: int) -> set[int]:
    """Return the other processes that have the same opening of a file that is locked by ``flock``: each could unlock it.

    The same opening has the same path and the same lock.  An opening of their own, with a shared lock of their own, has a lock
    that another process took.
    """
    mine = _locks_of(pid, descriptor)
    try:
        path = os.readlink(f"/proc/{pid}/fd/{descriptor}")
        others = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != pid]
    except OSError:
        return set()
    return {other for other in others if _has_opening(other, path, mine)}


def _has_opening(pid: int, path: str, locks: set[Lock]) -> bool:
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for number in numbers:
        try:
            same = os.readlink(f"/proc/{pid}/fd/{number}") == path
        except OSError:
            continue
        if same and not locks.isdisjoint(_locks_of(pid, int(number))):
            return True
    return False


def _locks_of(pid: int, descriptor: int) -> set[Lock]:
    return {lock for lock in fileholds.locks_in(f"/proc/{pid}/fdinfo/{descriptor}") if lock.kind == "FLOCK"}
