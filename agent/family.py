"""The processes of one program: who they are, what each says of itself, and what can be said of those that do not answer.

A program is a tree of processes: the topmost one with an agent, and whatever it started, directly or through shells.  Each with
an agent is asked over its control socket, all at once, and within one time limit.  A process that is stopped, or in C
code that keeps the GIL, does not answer; of it are shown what the kernel says, for each of its threads, and the waits that
it wrote on the board when it still could.  Nobody needs to be asked for that.

Used by the process that got the signal (option ``report_tree``), by ``concagent report PID --tree``, which is a process without
an agent, and for the figures of children in a scrape.

Limits     Linux's ``/proc``; elsewhere a family is the one process.  A process that became a child of ``init`` (a daemon) is a
           program of its own.  The picture of each process is of another moment.
Cost       one look at all processes of the system; per member a request, answered by a thread there.
"""

from __future__ import annotations

import json
import os
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from concagent import _real
from concagent.board import Board, folders, parent_of, path_in, start_time
from concagent.exporters import control

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ASKED_AT_ONCE: Final = 16
ANSWER_SECONDS: Final = 3.0
_GENERATIONS: Final = 64
_LONGEST_COMMAND: Final = 200
_STATES: Final = {
    "R": "running",
    "S": "asleep",
    "D": "in an uninterruptible sleep",
    "T": "stopped",
    "t": "stopped by a debugger",
    "Z": "ended, not waited for",
    "I": "idle",
}


class Process(NamedTuple):
    """A member: its parent, how deep it is in the tree, the kernel's letter for its state, its command line."""

    pid: int
    parent: int
    depth: int
    state: str
    command: str
    has_agent: bool


# ---------------------------------------------------------------- who they are


def members(pid: int) -> list[Process]:
    """Return the program that a process belongs to: each parent before its children, the root first."""
    parents = _parents()
    root, above = pid, pid
    for _ in range(_GENERATIONS):
        above = parents.get(above, (0, ""))[0]
        if above <= 1:
            break
        if control.has_socket(above):
            root = above
    children: dict[int, list[int]] = {}
    for one, (parent, _) in parents.items():
        children.setdefault(parent, []).append(one)
    found: list[Process] = []
    todo = [(root, 0)]
    while todo:
        one, depth = todo.pop()
        parent, state = parents.get(one, (0, "?"))
        found.append(Process(one, parent, depth, state, _command(one), control.has_socket(one)))
        todo += [(child, depth + 1) for child in sorted(children.get(one, ()), reverse=True)]
    return found


def descendants(pid: int) -> list[int]:
    """Return the processes below this one that have a control socket."""
    found = []
    for one in control.listening():
        above = one
        for _ in range(_GENERATIONS):
            above = parent_of(above)
            if above <= 1 or above == pid:
                break
        if above == pid:
            found.append(one)
    return sorted(found)


def _parents() -> dict[int, tuple[int, str]]:
    """Return pid -> (parent, state) of all processes; empty where there is no /proc."""
    found = {}
    try:
        names = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return {}
    for name in names:
        fields = _read(f"/proc/{name}/stat").rpartition(")")[2].split()
        if len(fields) > 1:
            found[int(name)] = int(fields[1]), fields[0]
    return found


def _command(pid: int) -> str:
    text = _read(f"/proc/{pid}/cmdline").rstrip("\0").replace("\0", " ") or f"[{_read(f'/proc/{pid}/comm').strip()}]"
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_COMMAND else text[: _LONGEST_COMMAND - 3] + "..."


def _read(path: str) -> str:
    try:
        with _real.open_file(path, "rb") as file:
            return file.read(65536).decode("utf-8", "replace")
    except OSError:
        return ""


# ---------------------------------------------------------------- what they say


def ask(
    pids: Iterable[int], command: str, timeout: float = ANSWER_SECONDS, on_thread: Callable[[], None] = lambda: None
) -> dict[int, bytes]:
    """Return what processes answer to a command; those that do not answer in time, or cannot be asked, are missing.

    Args:
        pids: Processes with a control socket.
        command: A word of the control socket.
        timeout: Seconds for all of them.
        on_thread: Called first thing in each thread that asks.
    """
    todo = deque(pids)
    answers: dict[int, bytes] = {}
    until_ns = _real.monotonic_ns() + int(timeout * 1e9)

    def work(done: Any) -> None:
        try:
            on_thread()
            while todo:
                pid = todo.popleft()
                left = (until_ns - _real.monotonic_ns()) / 1e9
                if left <= 0:
                    break
                try:
                    answers[pid] = control.request(pid, command, left)
                except control.ControlError:
                    continue
        except IndexError:  # another thread took the last one
            pass
        finally:
            done.release()

    ends = []
    for _ in range(min(ASKED_AT_ONCE, len(todo))):
        done = _real.allocate_lock()
        done.acquire()
        try:
            _real.start_agent_thread(work, (done,))
        except RuntimeError:  # no more threads
            break
        ends.append(done)
    for done in ends:
        left = (until_ns - _real.monotonic_ns()) / 1e9
        done.acquire(True, max(0.0, left) + 0.2)
    return dict(answers)


# ---------------------------------------------------------------- reports


def report_text(
    pid: int,
    timeout: float = ANSWER_SECONDS,
    own: Callable[[], str] | None = None,
    on_thread: Callable[[], None] = lambda: None,
) -> str:
    """Return the reports of all processes of the program that this one belongs to, behind the tree.

    Args:
        pid: Any of them.
        timeout: Seconds for all answers.
        own: Makes the report of ``pid`` if that is this process, which is not asked then.
        on_thread: As for `ask`.
    """
    family = members(pid)
    answers = _answers(family, "report-text", pid if own is not None else 0, timeout, on_thread)
    if own is not None:
        answers[pid] = own().encode("utf-8", "backslashreplace")
    lines = [f"== concagent: {len(family)} processes of one program =="]
    lines += [f"{'  ' * one.depth}{one.pid} {_standing(one, one.pid in answers)}  {one.command}" for one in family]
    for one in family:
        if one.pid in answers:
            text = answers[one.pid].decode("utf-8", "replace").rstrip("\n")
            lines += ["", f"== process {one.pid} ==", text]
        elif one.has_agent:
            lines += ["", f"== process {one.pid}, which did not answer ==", *_seen_from_outside(one)]
    return "\n".join(lines) + "\n"


def report_json(pid: int, timeout: float = ANSWER_SECONDS) -> str:
    """Return the same as one line of JSON: processes with ``report``, which is null where there is no answer."""
    family = members(pid)
    answers = _answers(family, "report-json", 0, timeout, lambda: None)
    processes = []
    for one in family:
        report = json.loads(answers[one.pid]) if one.pid in answers else None
        silent = one.has_agent and report is None
        outside = {"threads": [list(t) for t in _threads(one.pid)], "waits": _waits_on_board(one)} if silent else None
        processes.append({**one._asdict(), "report": report, "seen_from_outside": outside})
    return json.dumps({"processes": processes}) + "\n"


def _answers(
    family: list[Process], command: str, but: int, timeout: float, on_thread: Callable[[], None]
) -> dict[int, bytes]:
    stopped = {"T", "t", "Z"}
    pids = [one.pid for one in family if one.has_agent and one.pid != but and one.state not in stopped]
    return ask(pids, command, timeout, on_thread)


def _standing(one: Process, answered: bool) -> str:
    if answered:
        return "answered"
    word = _STATES.get(one.state, one.state)
    return f"{word}, did not answer" if one.has_agent else f"{word}, without concagent"


def _seen_from_outside(one: Process) -> list[str]:
    """Return lines about a process that does not answer: its threads as the kernel sees them, its waits on the board."""
    lines = [f"{_STATES.get(one.state, one.state)}; its threads, as the kernel sees them:"]
    for number, name, state, where in _threads(one.pid):
        lines.append(f"  {number} {name}: {_STATES.get(state, state)}{f', in {where}' if where else ''}")
    waits = _waits_on_board(one)
    lines.append("its waits, as it last wrote them on the board:" if waits else "nothing of it is on the board")
    return [*lines, *(f"  {wait}" for wait in waits)]


def _threads(pid: int) -> list[tuple[int, str, str, str]]:
    """Return (native id, name, state, kernel function that it sleeps in) of each thread of a process."""
    found = []
    try:
        numbers = sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return []
    for number in numbers:
        folder = f"/proc/{pid}/task/{number}"
        state = (_read(f"{folder}/stat").rpartition(")")[2].split() or ["?"])[0]
        where = _read(f"{folder}/wchan").strip("\0\n ")
        found.append((number, _read(f"{folder}/comm").strip(), state, "" if where == "0" else where))
    return found


def _waits_on_board(one: Process) -> list[str]:
    """Return a sentence for each wait that the process published."""
    from concagent.asleep import read
    from concagent.union import decode

    board = _board_of(one.pid)
    start = start_time(one.pid)
    for slot in board.slots() if board is not None else ():
        said = decode(slot.payload, (slot.pid, slot.start)) if (slot.pid, slot.start) == (one.pid, start) else None
        if said is not None:
            asleep = read(said.asleep)
            names = {actor[0]: actor[2] for actor in said.actors}
            resources = {resource[0]: resource for resource in (*(asleep.resources if asleep else ()), *said.resources)}
            waits = {r[0]: r for r in (*(asleep.requests if asleep else ()), *said.requests)}
            return [_sentence(names.get(r[0], "a thread"), resources[r[1]], r[2], r[4]) for r in waits.values()]
    return []


def _sentence(actor: str, resource: Any, since_ns: int, site: Any) -> str:
    serial, kind, name, *_ = resource
    seconds = (_real.monotonic_ns() - since_ns) / 1e9
    where = f" at {site[0]}:{site[1]} in {site[2]}" if site else ""
    return f"{actor} has waited {seconds:.1f} s for {kind} {name or serial}{where}"


def _board_of(pid: int) -> Board | None:
    """Return the board of the program that a process belongs to: it is called after the process or an ancestor."""
    for _ in range(_GENERATIONS):
        if pid <= 1:
            break
        for folder in folders():
            board = Board.open(path_in(folder, pid, start_time(pid)))
            if board is not None:
                return board
        pid = parent_of(pid)
    return None
