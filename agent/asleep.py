"""What a process says of its threads that are asleep, for all processes to find out whether anybody could wake them.

It goes to the board beside what ``union`` says of locks.  Each wait is said with what can end it:

    hold   its one holder, a thread of the same process
    own    any thread of the same process: what it waits for is in that process's memory
    lock   who holds the shared lock; if the code does not show that he gives it back, whoever has its semaphore
    ends   any thread of any process that has one of these ends (see ``whohas``)
    child  the main thread of a child that is waited for

A process that is not wholly asleep has somebody who is awake: a thread that runs or waits with a time limit, one that C code
has, one that the program's signal handlers may wake, or one whose wait has a finding of its own.  He can do whatever
his process can.  So is a wait of which nothing is known not said, and its thread counts as awake.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from concagent import _real, calls, core, graph, idle, shared, stalls, state
from concagent.board import start_time

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import CodeType

    from concagent.model import Actor, AssignmentEdge, CallSite, RequestEdge, Resource, Snapshot

_SHARED_LOCKS: Final = frozenset({"mp-lock", "mp-rlock"})


class Asleep(NamedTuple):
    """What a process says of those of its threads that are asleep; see `say`."""

    awake: int  # whether somebody of the process may do whatever it can
    main: int  # serial of the main thread
    parent: int
    daemon: int  # whether it is a daemon, for multiprocessing
    interruptible: int  # whether the main thread's function handles Ctrl-C
    has_pool: int  # whether it may have a pool, of whose lost results others tell
    resources: list[Any]  # number, kind, name, created, detail, how, what
    requests: list[Any]  # actor, number of the resource, since, epoch, site


def say(picture: Snapshot, is_told: Callable[[int, int], bool]) -> list[Any]:
    """Return what to write on the board of a picture of this process, in which somebody waits for something shared."""
    cells = {cell.serial: cell for cell in shared.cells()}
    resources = {resource.serial: resource for resource in picture.resources}
    holds: dict[int, list[AssignmentEdge]] = {}
    for hold in picture.assignments:
        holds.setdefault(hold.resource, []).append(hold)
    asleep = {
        actor.serial for actor in picture.actors if actor.state == "blocked" and actor.serial < state.ACTOR_SERIALS
    }
    said: dict[int, list[Any]] = {}
    requests = []
    for edge in picture.requests:
        if edge.actor not in asleep or edge.timed or is_told(edge.actor, edge.epoch):
            continue
        resource = resources[edge.resource]
        how = _how(resource, edge, holds.get(edge.resource, []), cells)
        if how is None:
            continue
        made = _site_said(resource.created)
        said[edge.resource] = [resource.serial, resource.kind, resource.name, made, resource.detail, *how]
        requests.append([edge.actor, edge.resource, edge.since_ns, edge.epoch, _site_said(edge.site)])
    waiting = {request[0] for request in requests}
    main_ident = _real.main_ident()
    main = next((record.serial for record in core.records() if record.ident == main_ident), 0)
    handlers = stalls.has_signal_handlers()
    if handlers:
        requests = [request for request in requests if request[0] != main]
    awake = bool(handlers or picture.foreign_threads) or any(
        actor.state in {"live", "timed", "blocked"} and actor.serial not in waiting and _is_ours(actor)
        for actor in picture.actors
    )
    frame = _real.current_frames().get(main_ident or 0)
    patient = idle.expects_interrupt(frame, _is_library)
    del frame
    has_pool = "multiprocessing.pool" in sys.modules
    flags = int(awake), main, os.getppid(), int(_is_daemon()), int(patient), int(has_pool)
    return list(Asleep(*flags, list(said.values()), requests))


def read(values: Any) -> Asleep | None:
    """Return what was said, None for nothing, or something by another version."""
    return Asleep(*values) if len(values) == len(Asleep._fields) else None


def named(said: list[Any]) -> set[int]:
    """Return the serials of those of whom that speaks."""
    return {request[0] for request in Asleep(*said).requests} if said else set()


def _is_ours(actor: Actor) -> bool:
    """Return whether this is a thread or a task of this process."""
    return actor.type != "process"


def _how(
    resource: Resource, edge: RequestEdge, holds: list[AssignmentEdge], cells: Mapping[int, Any]
) -> tuple[str, Any] | None:
    """Return what can end a wait, None for somebody of whom nothing is known."""
    serial = resource.serial
    if serial in shared.awaited:
        return "ends", list(shared.awaited[serial])
    if serial in shared.ends:
        return "child", shared.ends[serial]
    if serial in cells:
        file = shared.file_of(cells[serial])
        if file is None:
            return None
        if resource.kind in _SHARED_LOCKS:
            return "lock", [f"{cells[serial].key:x}", file]
        return ("ends", [file]) if cells[serial].is_taken() else None
    if any(hold.holder >= state.ACTOR_SERIALS for hold in holds) or resource.kind in {"process", "file-lock", "pipe"}:
        return None
    if resource.has_one_holder and len(holds) == 1 and not graph.may_be_signal(edge, holds[0]):
        return "hold", holds[0].holder
    return "own", None


def _is_library(code: CodeType) -> bool:
    file = getattr(sys.modules.get("multiprocessing"), "__file__", None)
    return calls.is_library(code) or (file is not None and code.co_filename.startswith(os.path.dirname(file)))


def _is_daemon() -> bool:
    module = sys.modules.get("multiprocessing.process")
    config = getattr(getattr(module, "_current_process", None), "_config", None)
    return bool(isinstance(config, dict) and config.get("daemon"))


def words_of_the_dead() -> str | None:
    """Return which children of this process have ended, and how, as far as it can still be told."""
    module = sys.modules.get("multiprocessing.process")
    children: set[Any] = getattr(module, "_children", set())
    try:
        known = children.copy() | set(getattr(module, "_dangling", ()))
    except RuntimeError:  # a weak set that changes meanwhile
        known = children.copy()
    found = []
    for child in known:
        popen: Any = getattr(child, "_popen", None)
        pid = getattr(popen, "pid", None)
        if pid and getattr(child, "_parent_pid", None) == os.getpid():
            code = popen.returncode if popen.returncode is not None else _exit_code(pid)
            how = f", killed by {signal.Signals(-code).name}" if code and -code in signal.valid_signals() else ""
            if code is not None or not start_time(pid):  # of a fork server's child nobody else can tell how it ended
                found.append(f"{child.name} (pid {pid}{how})")
    return f"these processes have ended: {', '.join(sorted(found)[:5])}" if found else None


def _exit_code(pid: int) -> int | None:
    """Return how a child has ended, and leave it to be waited for by its parent's program; None if it has not."""
    try:
        result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (AttributeError, OSError):
        return None
    if result is None or result.si_pid != pid:
        return None
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


def _site_said(site: CallSite | None) -> list[Any] | None:
    return [site.file, site.line, site.function] if site is not None else None
