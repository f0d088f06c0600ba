"""Is a child asleep for good because nobody drains the pipe that it writes to, while we wait for its end?

A process of ``multiprocessing`` that has put things into a queue does not end before its feeder thread has written all of
them into the queue's pipe.  Who joins it first and reads the queue afterwards waits for ever: the child's main thread waits for
the feeder, the feeder for room in the pipe, and the reading end is ours, or the child's own.

Nothing of the child is asked but what the kernel says of its threads.  Each has to sleep: in a write to a pipe, or in a futex
without a time limit; and each has to have slept on for a second.  With a byte that is read the writer wakes.  Other
processes with a reading end must be asleep in a write themselves.

Assumes    Linux: ``/proc/PID/task/*/wchan``, ``syscall`` and ``status`` of our own children.  Where these cannot be read a child
           counts as alive.  The agent's own threads in the child carry the name `AGENT_THREAD`, which the C core gives them.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

from concagent import _real
from concagent.hooks.children import SETTLE_NS, Pipe, pipe_of, read_file, readers_of

AGENT_THREAD: Final = "concagent-agent"
_TIMEOUT_AT: Final = 4  # of a futex call, behind its number: where the time limit is, 0 for none


class _Sleep(NamedTuple):
    """What the threads of a process sleep in: equal twice if none of them has woken in between."""

    pipes: frozenset[int]  # inodes that they write to
    turns: tuple[str, ...]


class Undrained:
    """The children that were seen asleep, and since when."""

    def __init__(self) -> None:
        """Know of none."""
        self._asleep: dict[
            int, tuple[_Sleep, int, Pipe | None]
        ] = {}  # pid -> its sleep, since when, the pipe once it is known

    def forget_all_but(self, pids: set[int]) -> None:
        """Drop the children for which nobody waits any more."""
        for pid in self._asleep.keys() - pids:
            self._asleep.pop(pid, None)

    def pipe(self, pid: int) -> tuple[Pipe, int] | None:
        """Return the pipe of ours that a child cannot write to, and since when (ns) it sleeps; None if it does not."""
        asleep = _sleep_of(pid)
        if asleep is None or not asleep.pipes:
            self._asleep.pop(pid, None)
            return None
        now_ns = _real.monotonic_ns()
        before, since_ns, pipe = self._asleep.get(pid, (None, now_ns, None))
        if before != asleep:
            self._asleep[pid] = (asleep, now_ns, None)
            return None
        if now_ns - since_ns < SETTLE_NS:
            return None
        if pipe is None:
            pipe = next((found for inode in asleep.pipes if (found := _ours(inode, pid)) is not None), None)
            self._asleep[pid] = (asleep, since_ns, pipe)
        return None if pipe is None else (pipe, since_ns)


def _sleep_of(pid: int) -> _Sleep | None:
    """Return the sleep of a process; None if one of its threads may go on by itself."""
    pipes: set[int] = set()
    turns = []
    try:
        threads = sorted(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return None
    for thread in threads:
        folder = f"/proc/{pid}/task/{thread}/"
        if read_file(folder + "comm").strip() == AGENT_THREAD:
            continue
        where, call = read_file(folder + "wchan"), read_file(folder + "syscall").split()
        if "pipe_write" in where and len(call) > 1:
            try:
                pipes.add(os.stat(f"/proc/{pid}/fd/{int(call[1], 16)}").st_ino)
            except (OSError, ValueError):
                return None
        elif "futex" not in where or len(call) <= _TIMEOUT_AT or int(call[_TIMEOUT_AT], 16):
            return None
        lines = [line for line in read_file(folder + "status").splitlines() if line.startswith("voluntary_ctxt")]
        turns.append(f"{thread}:{''.join(lines)}")
    return _Sleep(frozenset(pipes), tuple(turns)) if turns else None


def _ours(inode: int, child: int) -> Pipe | None:
    """Return a pipe if we have its reading end and nobody else who is awake has one; else None."""
    numbers = readers_of(os.getpid(), inode)
    pipe = pipe_of("pipe", numbers[0]) if numbers else None
    if pipe is None or not pipe.filled_bytes:
        return None
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        if pid in (os.getpid(), child) or not readers_of(pid, inode):
            continue
        asleep = _sleep_of(pid)
        if asleep is None or not asleep.pipes:
            return None
    return pipe
