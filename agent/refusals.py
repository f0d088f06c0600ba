"""Rings of processes that the kernel refused to close: ``lockf`` that failed with ``EDEADLK``.

Linux looks for rings of POSIX locks whenever a process would have to wait for one, and gives an error to the one that would
close it.  The program gets that error as without us.  It says neither who else is in the ring nor that two programs take
their locks in opposite order; so that is told.

All evidence is gone as soon as the error is on its way: whoever gets it gives back what he has, and the others go on.  So the
kernel's list of locks (``/proc/locks``: who has one, who waits for which) is read in the thread that was refused.

The kernel counts processes.  In one with several threads another one might have unlocked; so it is proven where each
process has but one, beside ours.

Cost       nothing unless a wait was refused; then one small file, and one more for each thread of the ring's processes.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from concagent import _real, core, fileholds, filewaits, kernellocks, state

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from concagent.fileholds import Span
    from concagent.kernellocks import Entry
    from concagent.model import Finding

_LONGEST: Final = 16
_OUR_THREADS: Final = "concagent"
_EVIDENCE: Final = "the kernel refused the wait that would have closed the ring (EDEADLK): this thread got an OSError"
_DOUBT: Final = f"{_EVIDENCE}; it counts processes, and another thread of one of them might have unlocked"


class Refusal(NamedTuple):
    """What was refused: to whom, what it wanted, where; and the ring, without its first member, as far as it could be seen."""

    record: Any
    wait: filewaits.FileWait
    stack: state.RawStack
    ring: list[tuple[int, int]]  # pid and the inode of the file that it waits for
    held: fileholds.Held | None  # what the last one of the ring waits for
    lonely: bool  # whether all processes of the ring have one thread


def note(descriptor: int, frame: FrameType, shared: bool, span: Span, publish: Callable[[Finding], None]) -> None:
    """Take the evidence, on the thread that was refused; have it told on the monitor's."""
    wait = filewaits.wanted(descriptor, shared, span)
    entries = kernellocks.entries()
    ring = find_ring(entries, os.getpid(), wait.file.key[1], shared, span)
    mine = fileholds.of_inode(ring[-1][1]) if ring else []
    lonely = all(_threads(pid) == 1 for pid in [os.getpid(), *(pid for pid, _ in ring)])
    refusal = Refusal(core.current_record(), wait, state.raw_stack(frame), ring, mine[-1] if mine else None, lonely)
    if ring:
        state.post(state.CallEvent(lambda: publish(finding_of(refusal))))


def find_ring(entries: list[Entry], me: int, inode: int, shared: bool, span: Span) -> list[tuple[int, int]]:
    """Return (process, inode that it waits for) from the one that has what is wanted to the one that waits for ``me``.

    Empty where no such way can be seen: locks come and go.
    """
    posix = [entry for entry in entries if entry.kind == "POSIX"]
    locks = {entry.number: entry for entry in posix if not entry.waits}
    waits = [(entry.pid, locks[entry.number]) for entry in posix if entry.waits and entry.number in locks]
    in_way = [
        lock.pid
        for lock in locks.values()
        if lock.inode == inode
        and lock.pid != me
        and not (shared and lock.shared)
        and lock.first <= span[1]
        and span[0] <= lock.last
    ]
    ways: list[list[tuple[int, int]]] = [[(pid, 0)] for pid in in_way]
    while ways:
        way = ways.pop(0)
        at = way[-1][0]
        for pid, lock in waits:
            longer = [*way[:-1], (at, lock.inode)]
            if pid == at and lock.pid == me:
                return longer
            if pid == at and len(way) < _LONGEST and lock.pid not in {p for p, _ in way}:
                ways.append([*longer, (lock.pid, 0)])
    return []


def finding_of(refusal: Refusal) -> Finding:
    """Return the finding, on the monitor's thread."""
    from concagent import snapshots  # not on the thread that was refused
    from concagent.detectors import crossing
    from concagent.model import Actor, AssignmentEdge, RequestEdge, Resource, Snapshot

    record, wait = refusal.record, refusal.wait
    now_ns = _real.monotonic_ns()
    stack = snapshots.resolve_stack(refusal.stack)
    me = Actor(record.serial, "thread", record.pid, record.native_id, record.name, record.daemon, "blocked", stack)
    others = [
        Actor(state.ACTOR_SERIALS + at, "process", pid, pid, f"pid {pid}", False, "blocked")
        for at, (pid, _) in enumerate(refusal.ring, 1)
    ]
    actors = [me, *others]
    inodes = [wait.file.key[1], *(inode for _, inode in refusal.ring)]
    names = [wait.file.name, *(None for _ in refusal.ring)]
    held, site = refusal.held, None
    if held is not None:
        names[-1] = filewaits.file_of(held.descriptor, held.file, True).name
        site = snapshots.call_site(held.hold[1], held.hold[2])
    files = [
        Resource(at, "file-lock", name, None, detail=f"lockf, inode {inode}")
        for at, (name, inode) in enumerate(zip(names, inodes, strict=True), 1)
    ]
    where = snapshots.call_site(*refusal.stack[0])
    requests = [RequestEdge(me.serial, 1, now_ns, 0, False, where)]
    requests += [RequestEdge(other.serial, at, now_ns, 0, False, None) for at, other in enumerate(others, 2)]
    holds = [AssignmentEdge(at, other.serial, None, 1, None) for at, other in enumerate(others, 1)]
    holds.append(AssignmentEdge(len(files), me.serial, held.since_ns if held is not None else None, 1, site))
    picture = Snapshot(
        record.pid, now_ns, _real.wall_seconds(), tuple(actors), tuple(files), tuple(requests), tuple(holds)
    )
    ring = [actor.serial for actor in actors]
    finding = crossing.ring_finding(picture, ring, doubt=None if refusal.lonely else _DOUBT)
    return finding.with_changes(reason=finding.reason or _EVIDENCE)


def _threads(pid: int) -> int:
    """Return the number of a process's threads that are not ours; 0 where it cannot be told."""
    try:
        numbers = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return 0
    return sum(not kernellocks.read(f"/proc/{pid}/task/{number}/comm").startswith(_OUR_THREADS) for number in numbers)
