"""Who of another process has the file that a thread of this one waits for, as reports and long waits name it.

Within the process `filewaits` knows; rings over processes are `union`'s, which asks the processes themselves.  Here the kernel's
list is asked, so that a picture of one process shows whom its threads wait for.  Such a holder is an actor of which nothing
else is known, and counts as alive; one that is not of this program is only mentioned: whether another program may keep a
file for long is not for us to say.

Cost       nothing unless a thread waits for a file; then one reading of ``/proc/locks`` a picture, twice a second at most.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from concagent import _real, core, filewaits, following, kernellocks, state
from concagent.board import parent_of

if TYPE_CHECKING:
    from concagent.kernellocks import Entry

_READ_NS: Final = 500_000_000
_GENERATIONS: Final = 64


class HolderSource:
    """The holders in other processes, for snapshots (see ``state.Source``)."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._entries: list[Entry] = []
        self._read_ns = 0
        self._serials: dict[int, int] = {}

    def read(self) -> dict[int, int]:
        """Return actor's serial -> the process that has what it waits for."""
        waits = filewaits.waits()
        if not waits:
            return {}
        now_ns = _real.monotonic_ns()
        if now_ns - self._read_ns > _READ_NS:
            self._entries, self._read_ns = kernellocks.entries(), now_ns
        return {serial: pid for serial, wait in waits.items() if (pid := self._holder(wait))}

    def _holder(self, wait: filewaits.FileWait) -> int:
        """Return the process that is in the way, 0 if it cannot be told."""
        kind, inode, me = "FLOCK" if wait.span is None else "POSIX", wait.file.key[1], os.getpid()
        first, last = wait.span or (0, kernellocks.LAST)
        for entry in self._entries:
            if entry.waits or entry.kind != kind or entry.inode != inode or (entry.shared and wait.shared):
                continue
            if entry.pid not in {0, me} and entry.first <= last and first <= entry.last:
                return entry.pid
        return 0

    def add(self, builder: Any, one: dict[int, int], two: dict[int, int]) -> None:
        """Add the holders that both readings agree on, where nobody of this process is in the way."""
        if not two:
            return
        from dataclasses import replace  # with all value types; most programs never take a picture

        from concagent.model import Actor, AssignmentEdge

        held = {resource for resource, _ in builder.assignments}
        for request in list(builder.requests):
            pid = two.get(request.actor, 0)
            resource = builder.resources.get(request.resource)
            if not pid or one.get(request.actor) != pid or resource is None or resource.kind != "file-lock":
                continue
            if request.resource in held:
                continue
            name = f"{kernellocks.read(f'/proc/{pid}/comm').strip() or 'a process'} (pid {pid})"
            if _is_relative(pid):
                serial = self._serials.setdefault(pid, state.ACTOR_SERIALS + core.next_serial())
                builder.add_actor(Actor(serial, "process", pid, pid, name, False, "live"))
                builder.hold(AssignmentEdge(request.resource, serial, None, 1, None))
            else:
                builder.put_resource(replace(resource, detail=f"held by {name}"))


def _is_relative(pid: int) -> bool:
    """Return whether a process is of this program: its first process, or below that."""
    for _ in range(_GENERATIONS):
        if pid in {following.root_pid, os.getpid()}:
            return True
        if pid <= 1:
            break
        pid = parent_of(pid)
    return False
