"""Deadlocks and orphans over all processes of a program.

Each process whose threads wait long for something shared says on the board who waits here, untimed, for what only its holder can
end, local locks and threads included.  Joined with the holders of the shared locks that gives one picture of all processes, in
which rings are found as in any other.

What a process says is a past picture; so a ring counts if it is in two joined pictures, with the same waits (epochs) and the
same holds (generations), and if each member has spoken again *after* the first was read.  Each of its edges then lasted from
before that moment until after it, so at that moment the ring was whole.  Who finds one asks the others to speak again.

A lock whose holder's process has ended, by number and start time, is an orphan; a number that was given to another process
meanwhile does not hide it.

All members find the same; the one with the smallest (pid, start) that is not stopped tells it, for the whole program.

Invariants U1 everything here runs on the monitor's thread.
           U2 rings within one process are left to `judge`.
Not proof  a lock of which the code does not show that its holder gives it back, and locks used as signals.
Cost       nothing while nobody waits long for something shared; else one picture of this process a second, later every five,
           and a reading of the others' slots: some 9 ms with 100 processes, then no more often than `SHARE` allows.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from concagent import _real, calls, core, fileholds, fileunion, filewaits, graph, shared, snapshots, state
from concagent.board import PAYLOAD_LIMIT, Holder, is_alive, is_stopped, start_time
from concagent.detectors import crossing, deadlock
from concagent.fileunion import FileHold, Want
from concagent.model import Actor, AssignmentEdge, CallSite, RequestEdge, Resource, Snapshot, StackFrame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from concagent.board import Board
    from concagent.config import Config
    from concagent.model import Finding
    from concagent.standstill import Standstill

AGAIN_NS: Final = 60_000_000  # between two looks while something is being confirmed
LOOKS: Final = 25  # such looks before the usual rhythm
QUIET_NS: Final = 4_900_000_000
SHARE: Final = (
    1000  # who has waited for long spends a thousandth of a processor on looks, however many processes there are
)
LONGEST_NS: Final = 60_000_000_000
HAND_OVER_NS: Final = 900_000_000  # for a lock that may have been meant for somebody else to give back, as in ``judge``
_STACK_LIMIT: Final = 12
_LOCK_KINDS: Final = frozenset({"mp-lock", "mp-rlock"})

Process = tuple[int, int]  # pid and start time


class Said(NamedTuple):
    """What one process said: when (monotonic ns), its name, and its part of the picture as it is numbered there."""

    process: Process
    at_ns: int
    name: str
    main: int
    actors: list[Any]
    resources: list[Any]
    requests: list[Any]
    holds: list[Any]
    files: Any = None  # of locks on files, see `fileunion.said`; None where there are none
    asleep: Any = ()  # see ``asleep.say``


class _Joined(NamedTuple):
    """The picture of all processes, and what the confirmation compares."""

    picture: Snapshot
    process_of: dict[int, Process]
    spoken_ns: dict[Process, int]
    holders: dict[int, Holder]  # resource -> holder on the board
    cells: dict[int, int]  # resource -> its cell on the board
    keys: dict[int, int]  # resource -> its key
    unsigned: frozenset[int]  # of them the locks whose holder was killed before it could sign, or after it signed off
    files: dict[int, FileHold]  # file -> the hold that is in the way
    wants: dict[int, Want]  # actor -> how it wants a file
    live: dict[Process, int]  # threads that could do something, where locks on files are used
    said: dict[Process, tuple[int, Any]]  # when each spoke, and who is asleep there
    number: Callable[[Process, int], int]  # of an actor


def _may_be_handed_over(waiting: set[int]) -> bool:
    """Return whether a thread of ours but these runs a function that looks as if it releases what others have taken."""
    not_asked = {record.ident for record in core.records() if record.agent or record.serial in waiting}
    return any(calls.may_hand_over(frame) for ident, frame in _real.current_frames().items() if ident not in not_asked)


def _file_edges(joined: _Joined, requests: Iterable[RequestEdge]) -> list[tuple[FileHold, Want]] | None:
    """Return the waits for files with the holds in their way; None if a hold is only in that of another one's waiter."""
    edges = []
    for request in requests:
        hold, want = joined.files.get(request.resource), joined.wants.get(request.actor)
        if hold is None:
            continue
        if want is None or want.file != request.resource or not hold.is_in_way_of(want):
            return None
        edges.append((hold, want))
    return edges


class Union:
    """What one process finds out of all."""

    def __init__(
        self,
        config: Config,
        publish: Callable[[Finding], None],
        look_later: Callable[[int, Any], None],
        is_told: Callable[[int, int], bool],
    ) -> None:
        """Keep what is needed to speak and to come back, and who knows what was told here; see `judge.Judge`."""
        self._config = config
        self._publish = publish
        self._look_later = look_later
        self._is_told = is_told
        self._reset()

    def _reset(self) -> None:
        self._spoke = False  # whether our slot has anything in it
        self._asked = 0
        self._next_ns = 0
        self._pause_ns = 0
        self._waits = self._looked = frozenset[Any]()  # at the last tick, at the last look
        self._looks = 0
        self._candidates: dict[Any, int] = {}
        self._told: set[Any] = set()
        self._serials: dict[Any, int] = {}
        self._standstill: Standstill | None = None

    def after_fork_in_child(self) -> None:
        """Start over."""
        self._reset()
        shared.after_fork_in_child()

    def tick(self, now_ns: int) -> None:
        """Look if somebody waits here for something shared, or another process asks; once a second."""
        waits = shared.waits()
        lasting = bool(waits) and waits == self._waits and waits != self._looked
        self._waits = waits
        board = shared.board()
        if board is None and waits:  # without any shared lock: who only waits for children makes none
            is_more = lasting and any(kind != shared.CHILD for kind, *_ in waits)
            board = shared.get_board() if is_more else shared.find_board()
        if board is None:
            return
        asked = board.asked()
        if asked != self._asked or now_ns >= self._next_ns or lasting:
            self._asked, self._looked = asked, waits
            if lasting:
                self._pause_ns = 0
            self._pause_ns = min(QUIET_NS, max(900_000_000, self._pause_ns * 2))
            began_ns = _real.thread_time_ns()
            self._look(board)
            spent_ns = _real.thread_time_ns() - began_ns
            least_ns = min(LONGEST_NS, SHARE * spent_ns) if self._pause_ns == QUIET_NS else 0
            self._next_ns = now_ns + max(self._pause_ns, least_ns)

    def begin(self) -> None:
        """Look now: a wait for something shared has become long."""
        board = shared.board()
        if board is not None:
            self._pause_ns = self._next_ns = 0
            self._look(board)

    def _again(self) -> None:
        board = shared.board()
        if board is not None:
            self._look(board)

    def _look(self, board: Board) -> None:
        own = self._own()
        if own is None:
            if self._spoke:
                board.publish(*shared.me(), _encode(Said(shared.me(), 0, shared.process_name(), 0, [], [], [], [])))
                self._spoke = False
            self._candidates.clear()
            self._looks = 0
            return
        self._spoke = board.publish(*shared.me(), _encode(own))
        joined = self._join(board, own)
        began_ns = _real.monotonic_ns()
        known, self._candidates = self._candidates, {}
        for ring in graph.find_rings(joined.picture):
            self._judge_ring(joined, ring, known, began_ns)
        self._judge_orphans(board, joined, known, began_ns)
        self._judge_standstill(board, joined, known, began_ns)
        if self._candidates and self._looks < LOOKS:
            if not self._looks:
                board.ask()
                self._asked = board.asked()
            self._looks += 1
            self._look_later(began_ns + AGAIN_NS, state.CallEvent(self._again))
        elif not self._candidates:
            self._looks = 0

    # ------------------------------------------------------------ judging

    def _judge_ring(self, joined: _Joined, ring: tuple[int, ...], known: dict[Any, int], now_ns: int) -> None:
        processes = {joined.process_of[serial] for serial in ring}
        if len(processes) < 2 or not deadlock.ring_is_closed(joined.picture, ring):
            return
        requests = {edge.actor: edge for edge in joined.picture.requests}
        files = _file_edges(joined, [requests[serial] for serial in ring])
        if files is None:
            return
        key = frozenset(
            (
                joined.process_of[serial],
                serial,
                requests[serial].epoch,
                requests[serial].resource,
                joined.holders.get(requests[serial].resource),
            )
            for serial in ring
        ) | {(hold.identity, want.actor, want.shared, str(want.span)) for hold, want in files}
        if key in self._told:
            return
        first_ns = self._candidates[key] = known.get(key, now_ns)
        if any(joined.spoken_ns[process] <= first_ns for process in processes):
            return
        del self._candidates[key]
        holds = [hold for hold, _ in files]
        doubt = fileunion.doubt_of(joined.picture, ring, holds, joined.process_of, joined.live) if holds else None
        doubt = fileunion.POLL_DOUBT if any(want.polls for _, want in files) else doubt
        if doubt and now_ns - max(requests[serial].since_ns for serial in ring) < self._config.stall_after * 1e9:
            return
        self._told.add(key)
        if self._speaks_for(processes):
            self._publish(crossing.ring_finding(joined.picture, ring, doubt=doubt))

    def _judge_orphans(self, board: Board, joined: _Joined, known: dict[Any, int], now_ns: int) -> None:
        actors = {actor.serial: actor for actor in joined.picture.actors}
        for resource, holder in joined.holders.items():
            waits = [e for e in joined.picture.requests if e.resource == resource and not e.timed]
            mine = [edge for edge in waits if joined.process_of[edge.actor] == shared.me()]
            if not mine or is_alive(holder.pid, holder.start):
                continue
            key = (joined.cells[resource], holder)
            if key in self._told:
                continue
            signed = resource not in joined.unsigned
            if not signed and not shared.is_taken(joined.keys[resource]):
                continue
            kind = next(r for r in joined.picture.resources if r.serial == resource).kind
            habit = shared.site_of(holder.site)[0]
            waited_ns = now_ns - min(edge.since_ns for edge in waits)
            firm = signed and (kind == "mp-rlock" or shared.is_firm(habit))
            if signed and habit == "bare" and waited_ns >= HAND_OVER_NS:
                firm = firm or not _may_be_handed_over({edge.actor for edge in mine})
            young = waited_ns < self._config.stall_after * 1e9
            if not firm and young:
                continue
            first_ns = self._candidates[key] = known.get(key, now_ns)
            if first_ns == now_ns:
                continue
            waiting = {joined.process_of[edge.actor] for edge in waits}
            cell = joined.cells[resource]
            if not board.was_told(cell):
                if not self._speaks_for(waiting) or not board.may_tell(cell, *shared.me()):
                    continue  # who is to tell may be killed before he does
                members = [edge.actor for edge in waits if edge.actor in actors]
                self._publish(
                    crossing.orphan_finding(joined.picture, resource, members, holder.start, firm=firm, signed=signed)
                )
                board.told(cell, *shared.me())
            del self._candidates[key]
            self._told.add(key)

    def _judge_standstill(self, board: Board, joined: _Joined, known: dict[Any, int], now_ns: int) -> None:
        """Leave to ``standstill`` those who are in no ring and wait for nobody who is dead."""
        if self._standstill is None:
            from concagent.standstill import Standstill  # what a program that only loads multiprocessing does not need

            self._standstill = Standstill(self._publish)
        picture = joined.picture
        rings = [ring for ring in graph.find_rings(picture) if deadlock.ring_is_closed(picture, ring)]
        dead = {at for at, holder in joined.holders.items() if not is_alive(holder.pid, holder.start)}
        alive = {one for ring in rings for one in ring} | {e.actor for e in picture.requests if e.resource in dead}
        found = self._standstill.look(
            board, joined.said, joined.number, picture.actors, alive, known, now_ns, self._speaks_for
        )
        self._candidates.update(found)

    def _speaks_for(self, processes: Iterable[Process]) -> bool:
        """Return whether it is this process that tells; one that is stopped cannot."""
        able = [process for process in processes if process == shared.me() or not is_stopped(process[0])]
        return min(able) == shared.me()

    # ------------------------------------------------------------ what this process says

    def _own(self) -> Said | None:
        """Return this process's part, None if nobody here waits for something shared."""
        if not shared.has_waits() and not shared.has_file_waits():
            return None
        with filewaits.all_shown():
            return self._say()

    def _say(self) -> Said | None:
        from concagent import asleep

        at_ns = _real.monotonic_ns()  # all that is said was seen later
        picture = snapshots.take(named=False)
        cells = {cell.serial: cell for cell in shared.cells()}
        files = {wait.serial: wait.file for wait in filewaits.waits().values()}
        ours = cells.keys() | shared.ends.keys() | files.keys()
        if not any(edge.resource in ours or edge.resource in shared.awaited for edge in picture.requests):
            return None
        waiting = frozenset(edge.actor for edge in picture.requests)
        picture = snapshots.take(stacks=waiting, stack_limit=_STACK_LIMIT)
        resources = {resource.serial: resource for resource in picture.resources}
        states = {actor.serial: actor for actor in picture.actors}
        requests = []
        for edge in picture.requests:
            resource = resources[edge.resource]
            lasting = resource.has_one_holder or resource.kind in _LOCK_KINDS
            if (
                lasting
                and not edge.timed
                and states[edge.actor].state == "blocked"
                and edge.actor < state.ACTOR_SERIALS
            ):
                requests.append(edge)
        awaited = {edge.resource for edge in requests}
        holds = [h for h in picture.assignments if h.resource in awaited and h.resource not in ours]
        holds = [h for h in holds if h.holder < state.ACTOR_SERIALS]
        waiting = frozenset(edge.actor for edge in requests)
        said = asleep.say(picture, self._is_told)
        named = {edge.actor for edge in requests} | {hold.holder for hold in holds} | asleep.named(said)
        main = _real.main_ident()
        main_serial = next((r.serial for r in core.records() if r.ident == main), 0)
        return Said(
            shared.me(),
            at_ns,
            shared.process_name(),
            main_serial,
            [_actor_said(states[serial]) for serial in sorted(named)],
            [_resource_said(resources[serial], cells, files) for serial in sorted(awaited)],
            [[e.actor, e.resource, e.since_ns, e.epoch, _site_said(e.site), e.discipline] for e in requests],
            [[h.resource, h.holder, h.since_ns, h.depth, _site_said(h.site), h.discipline] for h in holds],
            fileunion.said(picture, waiting) if files or fileholds.are_any() else None,
            said,
        )

    # ------------------------------------------------------------ all together

    def _join(self, board: Board, own: Said) -> _Joined:
        said = {own.process: own}
        names = {}
        for slot in board.slots():
            process = (slot.pid, slot.start)
            one = decode(slot.payload, process)
            if one is None:
                continue
            names[process] = one.name
            if process != own.process and (one.requests or one.asleep) and is_alive(*process):
                said[process] = one
        joiner = _Joiner(board, self._serials, names)
        for process in sorted(said):
            joiner.add(said[process])
        return joiner.joined()


class _Joiner:
    """Makes one picture of what the processes say, with serials of its own; `serials` keeps them from look to look."""

    def __init__(self, board: Board, serials: dict[Any, int], names: dict[Process, str]) -> None:
        self.board = board
        self.serials = serials
        self.names = names
        self.actors: dict[int, Actor] = {}
        self.resources: dict[int, Resource] = {}
        self.requests: list[RequestEdge] = []
        self.holds: dict[int, AssignmentEdge] = {}
        self.process_of: dict[int, Process] = {}
        self.spoken_ns: dict[Process, int] = {}
        self.mains: dict[int, tuple[Process, int]] = {}  # pid -> process, serial of its main thread
        self.keys: dict[int, Any] = {}  # resource -> key
        self.holders: dict[int, Holder] = {}
        self.cells: dict[int, int] = {}
        self.unsigned: set[int] = set()
        self.wants: list[Want] = []
        self.file_holds: list[FileHold] = []
        self.live: dict[Process, int] = {}
        self.said: dict[Process, tuple[int, Any]] = {}

    def add(self, said: Said) -> None:
        process = said.process
        self.said[process] = said.at_ns, said.asleep
        self.spoken_ns[process] = said.at_ns
        self.mains[process[0]] = (process, said.main)
        for serial, native_id, name, daemon, stack in said.actors:
            label = f"{said.name} (pid {process[0]})"
            label = label if name == "MainThread" else f"{name} of {label}"
            frames = tuple(StackFrame(*frame) for frame in stack)
            number = self._actor(process, serial)
            self.actors[number] = Actor(number, "thread", process[0], native_id, label, daemon, "live", frames)
        numbers = {}
        for serial, kind, name, created, key in said.resources:
            number = numbers[serial] = self._number(key if key is not None else [*process, serial])
            if key is not None:
                self.keys[number] = key
            known = self.resources.get(number)
            if known is None or not known.name:
                made = created or (_site_said(known.created) if known is not None else None)
                detail = fileunion.identity_of(key) if isinstance(key, list) else None
                self.resources[number] = Resource(number, kind, name, CallSite(*made) if made else None, detail=detail)
        for actor, resource, since_ns, epoch, site, habit in said.requests:
            number = self._actor(process, actor)
            where = CallSite(*site) if site else None
            self.requests.append(RequestEdge(number, numbers[resource], since_ns, epoch, False, where, habit))
            self.actors[number] = replace(self.actors[number], state="blocked")
        for resource, holder, since_ns, depth, site, habit in said.holds:
            where, number = CallSite(*site) if site else None, numbers[resource]
            self.holds[number] = AssignmentEdge(number, self._actor(process, holder), since_ns, depth, where, habit)
        self._add_files(process, said.files or {})

    def _add_files(self, process: Process, files: dict[str, Any]) -> None:
        self.live[process] = files.get("live", 1)
        for actor, key, *rest in files.get("wants", ()):
            self.wants.append(Want(process, self._actor(process, actor), self._number(key), *rest))
        for serial, key, holder, *rest in files.get("holds", ()):
            self.file_holds.append(FileHold(process, serial, self._number(key), self._actor(process, holder), *rest))

    def _choose_files(self) -> dict[int, FileHold]:
        """Say who holds the files; whether he alone gives them back is asked when there is a ring."""
        following = {e.actor: self.holds[e.resource].holder for e in self.requests if e.resource in self.holds}
        chosen = fileunion.choose(self.wants, self.file_holds, following)
        for number, hold in chosen.items():
            self._hold(number, hold.holder, hold.since_ns, CallSite(*hold.site) if hold.site else None, "owned")
        return chosen

    def joined(self) -> _Joined:
        for number, key in self.keys.items():
            if isinstance(key, str):
                self._hold_lock(number, int(key, 16))
            elif key[0] in self.mains:  # the end of a process: its main thread has to come to its end
                process, main = self.mains[key[0]]
                self._hold(number, self._holder_actor(process, main, 0), None, None, "owned")
        files = self._choose_files()
        now_ns, wall = _real.monotonic_ns(), _real.wall_seconds()
        picture = Snapshot(
            pid=shared.me()[0],
            monotonic_ns=now_ns,
            wall_seconds=wall,
            actors=tuple(sorted(self.actors.values(), key=lambda a: a.serial)),
            resources=tuple(sorted(self.resources.values(), key=lambda r: r.serial)),
            requests=tuple(sorted(self.requests, key=lambda e: e.actor)),
            assignments=tuple(sorted(self.holds.values(), key=lambda e: (e.resource, e.holder))),
        )
        keys = {number: int(key, 16) for number, key in self.keys.items() if isinstance(key, str)}
        unsigned = frozenset(self.unsigned)
        maps = self.process_of, self.spoken_ns, self.holders, self.cells, keys, unsigned, files
        wants = {want.actor: want for want in self.wants}
        return _Joined(picture, *maps, wants, self.live, self.said, self._actor)

    def _hold_lock(self, number: int, key: int) -> None:
        cell = self.board.find_lock(key)
        if not cell or self.board.is_signal(cell):
            return
        holder = self.board.holder(cell)
        if holder is None:
            holder = self._unsigned_holder(cell)
            if holder is None:
                return
            self.unsigned.add(number)
        self.holders[number], self.cells[number] = holder, cell
        habit, site = shared.site_of(holder.site)
        process = (holder.pid, holder.start)
        habit = "owned" if self.resources[number].kind == "mp-rlock" else habit
        self._hold(number, self._holder_actor(process, holder.serial, holder.native_id), holder.since_ns, site, habit)

    def _unsigned_holder(self, cell: int) -> Holder | None:
        """Return the dead process that took a lock, if it is taken, and did not come to sign.

        It tried or waited, it is dead, and nobody else can have it: whoever lives and says so, too, would have signed long
        since, unless he is stopped.  A lock that nobody ever signed may be held by a process without an agent; there, to have
        waited says nothing.
        """
        wanting = self.board.wanting(cell) if self.board.was_signed(cell) else []
        trying = self.board.trying(cell)
        if trying and trying not in {pid for pid, _ in wanting}:
            wanting.append((trying, start_time(trying) or self._start_of(trying)))
        dead = [process for process in wanting if not is_alive(*process)]
        if not dead or any(is_stopped(process[0]) for process in wanting if process not in dead):
            return None
        pid, start = dead[-1]
        return Holder(pid, start, 0, 0, 0, 0, 0)

    def _start_of(self, pid: int) -> int:
        """Return when a process that is gone was started; 1 where nobody knows."""
        return next((process[1] for process in self.names if process[0] == pid), 1)

    def _hold(self, number: int, holder: int, since_ns: int | None, site: CallSite | None, habit: str) -> None:
        self.holds[number] = AssignmentEdge(number, holder, since_ns, 1, site, habit)

    def _holder_actor(self, process: Process, serial: int, native_id: int) -> int:
        number = self._actor(process, serial)
        if number not in self.actors:
            alive = is_alive(*process)
            name = f"{self.names.get(process, 'a process')} (pid {process[0]})"
            kind = "thread" if alive else "process"
            made = Actor(number, kind, process[0], native_id or None, name, False, "live" if alive else "ended")
            self.actors[number] = made
        return number

    def _actor(self, process: Process, serial: int) -> int:
        """Return the number of an actor here; its id keeps the serial that it has in its own process."""
        space = self.serials.setdefault(process, len(self.serials) + 1)
        number = space * Actor.SPACE + serial
        self.process_of[number] = process
        return number

    def _number(self, key: Any) -> int:
        key = json.dumps(key)
        return self.serials.setdefault(("resource", key), len(self.serials) + 1)


# ---------------------------------------------------------------- in the slots


def _encode(said: Said) -> bytes:
    """Return what fits into a slot: without stacks if it must be, then without those who matter least."""
    for asleep in (said.asleep, ()) if said.asleep else ((),):
        for limit in (_STACK_LIMIT, 3, 0):
            actors = [[*actor[:-1], actor[-1][len(actor[-1]) - limit :] if limit else []] for actor in said.actors]
            text = json.dumps(said._replace(actors=actors, asleep=asleep)[1:], separators=(",", ":")).encode()
            if len(text) <= PAYLOAD_LIMIT:
                return text
    return json.dumps(said._replace(actors=[], resources=[], requests=[], holds=[], files=None, asleep=())[1:]).encode()


def decode(payload: bytes, process: Process) -> Said | None:
    """Return what a slot says, None if it says nothing that can be read."""
    try:
        values = json.loads(payload)
        return Said(process, *values) if values else None
    except (ValueError, TypeError):
        return None


def _actor_said(actor: Actor) -> list[Any]:
    stack = [[f.file, f.line, f.function, f.source] for f in actor.stack]
    return [actor.serial, actor.native_id, actor.name, actor.daemon, stack]


def _resource_said(resource: Resource, cells: dict[int, Any], files: dict[int, Any]) -> list[Any]:
    key: Any = None
    if resource.serial in cells:
        key = f"{cells[resource.serial].key:x}"
    elif resource.serial in shared.ends:
        key = [shared.ends[resource.serial], "end"]
    elif resource.serial in files:
        key = fileunion.key_of(files[resource.serial])
    return [resource.serial, resource.kind, resource.name, _site_said(resource.created), key]


def _site_said(site: CallSite | None) -> list[Any] | None:
    return [site.file, site.line, site.function] if site is not None else None
