"""The nouns: frozen value types that every other module speaks in.

A picture of a running program (``Snapshot``) and a statement about it (``Finding``) travel between threads, into files
and over HTTP, and outlive the threads and locks that they speak of.  So these types hold only strings, numbers and
tuples of each other: never a live thread, a frame, a lock or a code object.  Identity is a serial, given once and never
reused, because ``id()`` and the operating system's thread ids are.

Invariants P1 edges name only actors and resources listed in the same snapshot.
           P2 an actor has at most one request edge.
           P3 tuples are sorted by serial, so that equal pictures are equal values.
Units      ``*_ns`` is monotonic nanoseconds inside; ``to_dict`` writes wall-clock seconds, as DESIGN's wire format says.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from concagent.words import CONFIDENCES as CONFIDENCES
from concagent.words import ENDED_BY as ENDED_BY
from concagent.words import KINDS as KINDS
from concagent.words import SCHEMA as SCHEMA
from concagent.words import SINGLE_HOLDER_KINDS as SINGLE_HOLDER_KINDS

if TYPE_CHECKING:
    from collections.abc import Collection


@dataclass(frozen=True, slots=True)
class CallSite:
    """A place in source code; ``line`` counts from 1, 0 where unknown."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        """Return ``file:line in function``, the form of all reports."""
        return f"{self.file}:{self.line} in {self.function}"

    def to_dict(self) -> dict[str, Any]:
        """Return the site as a JSON object."""
        return {"file": self.file, "line": self.line, "function": self.function}


@dataclass(frozen=True, slots=True)
class StackFrame:
    """One line of a stack; ``source`` is the stripped source line, empty where it cannot be read.

    ``interrupts`` says what this frame is if the interpreter called it and not the function below: a finalizer, a handler.
    """

    file: str
    line: int
    function: str
    source: str = ""
    interrupts: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the frame as a JSON object."""
        frame = {"file": self.file, "line": self.line, "function": self.function, "source": self.source}
        return {**frame, "interrupts": self.interrupts} if self.interrupts else frame


@dataclass(frozen=True, slots=True)
class Actor:
    """Whoever can hold and wait.

    ``state`` is one of ``blocked`` (in an untimed wait that we see), ``timed`` (in a wait that gives up by itself),
    ``live`` (running, in I/O, in foreign code: can release what it holds), ``ended``, ``agent`` (one of our threads).
    ``stack`` runs from the outermost frame to the innermost, our own frames left out.  ``calls`` are the names, of those in
    `words.SIGNALLING`, that the functions on the stack use: what the actor might do once it goes on.
    """

    serial: int
    type: str
    pid: int
    native_id: int | None
    name: str
    daemon: bool
    state: str
    stack: tuple[StackFrame, ...] = ()
    calls: tuple[str, ...] = ()

    SPACE: ClassVar[int] = (
        1 << 40
    )  # in a picture of several processes, those of each have serials in a space of their own

    @property
    def id(self) -> str:
        """Return the actor's name in findings, ``PID/tSERIAL``, of an asyncio task ``PID/aSERIAL``."""
        return f"{self.pid}/{'a' if self.type == 'task' else 't'}{self.serial % self.SPACE}"


def serial_of(actor_id: str) -> int:
    """Return the serial in an actor's id."""
    return int(actor_id.rpartition("/")[2][1:])


@dataclass(frozen=True, slots=True)
class Resource:
    """Anything that can be waited for.

    ``name`` is the given or found name, ``created`` the site that made it (None: before us).  ``signal_mode`` says that
    whoever waits for it may be released by somebody who does not hold it.  ``permits`` is the number of free units of a
    semaphore, the number of missing parties of a barrier, None elsewhere.  ``ended_by`` overrides what `words.ENDED_BY`
    says of the kind: a future that a worker runs ends by its holder, one that nobody runs by a signal.  ``detail`` is what
    a report should say of it beyond its name: "full, 10 of 10", "3 of 4 tasks not done".
    """

    serial: int
    kind: str
    name: str | None
    created: CallSite | None
    signal_mode: bool = False
    permits: int | None = None
    ended_by: str | None = None
    detail: str | None = None

    @property
    def ends(self) -> str:
        """Return what ends a wait for it, one of the values of `words.ENDED_BY`, ``signal`` for kinds that are not there."""
        return self.ended_by or ENDED_BY.get(self.kind, "signal")

    @property
    def has_one_holder(self) -> bool:
        """Return whether its one holder alone can end a wait for it."""
        return self.ends == "holder" and not self.signal_mode

    @property
    def id(self) -> str:
        """Return the resource's name in findings, ``rSERIAL``."""
        return f"r{self.serial}"

    @property
    def lock_class(self) -> str:
        """Return the class by which locks are counted: the name, else the creation site."""
        if self.name:
            return self.name
        return f"{self.created.file}:{self.created.line}" if self.created else "unknown"


@dataclass(frozen=True, slots=True)
class RequestEdge:
    """An actor waits for a resource: since when, in which epoch, whether it gives up by itself, and where.

    ``discipline`` is told, as for an assignment, where an actor waits for what it holds itself; ``bare`` elsewhere.
    ``interruption`` says what runs above the function that holds it: "`__del__` of Cache ran inside put()".  Only when
    that is over can the function go on and release.
    """

    actor: int
    resource: int
    since_ns: int
    epoch: int
    timed: bool
    site: CallSite | None
    discipline: str = "bare"
    interruption: str | None = None


@dataclass(frozen=True, slots=True)
class AssignmentEdge:
    """A resource is held by an actor.

    ``depth`` counts re-entries or permits.  ``discipline`` says what is known of who will release: ``owned``, only the holder
    (always for an RLock and a thread; for a plain Lock in a ``with`` whose function is running); ``finally``, the running
    function releases it in the handler of the ``try`` that follows; ``later``, it releases the same expression further
    down; ``lent``, it was entered, but by a function that is not running: a suspended generator or an ``__enter__``, whose
    exit may come from another thread; ``try``, taken without waiting and not released there, as a flag; ``bare``, nothing
    is known.
    """

    resource: int
    holder: int
    since_ns: int | None
    depth: int
    site: CallSite | None
    discipline: str = "owned"


@dataclass(frozen=True, slots=True)
class SignalEdge:
    """An actor has ended waits for a resource before (``times``), by notifying, setting, putting, taking or releasing."""

    resource: int
    actor: int
    times: int = 1


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One immutable, consistent picture of who holds what and who waits for what.

    ``monotonic_ns`` and ``wall_seconds`` were read together and convert one clock into the other.
    """

    pid: int
    monotonic_ns: int
    wall_seconds: float
    actors: tuple[Actor, ...] = ()
    resources: tuple[Resource, ...] = ()
    requests: tuple[RequestEdge, ...] = ()
    assignments: tuple[AssignmentEdge, ...] = ()
    untracked_locks: int = 0
    foreign_threads: int = 0
    process_name: str = ""
    signals: tuple[SignalEdge, ...] = ()

    def wall(self, monotonic_ns: int) -> float:
        """Return the wall-clock seconds of a monotonic reading."""
        return self.wall_seconds + (monotonic_ns - self.monotonic_ns) / 1e9

    def with_alive(self, serials: Collection[int]) -> Snapshot:
        """Return a copy in which these actors can go on."""
        if not serials:
            return self
        actors = tuple(
            dataclasses.replace(actor, state="live") if actor.serial in serials else actor for actor in self.actors
        )
        return dataclasses.replace(self, actors=actors)

    def waits_of(self, serials: Collection[int]) -> frozenset[tuple[int, int]]:
        """Return (actor, epoch) of the waits of these actors: the same pair at two moments is the same wait."""
        return frozenset((edge.actor, edge.epoch) for edge in self.requests if edge.actor in serials)

    def actor(self, serial: int) -> Actor:
        """Return the actor with this serial; KeyError where there is none."""
        for actor in self.actors:
            if actor.serial == serial:
                return actor
        raise KeyError(serial)

    def resource(self, serial: int) -> Resource:
        """Return the resource with this serial; KeyError where there is none."""
        for resource in self.resources:
            if resource.serial == serial:
                return resource
        raise KeyError(serial)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a resource of a finding, where it was acquired, and since when (wall-clock seconds)."""

    actor: str
    acquired: CallSite | None
    since: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the holder as a JSON object."""
        acquired = self.acquired.to_dict() if self.acquired else None
        return {"actor": self.actor, "acquired": acquired, "since": self.since}


@dataclass(frozen=True, slots=True)
class FindingActor:
    """An actor of a finding; ``role`` is ``member``, ``behind``, ``victim`` or ``bystander``."""

    id: str
    type: str
    pid: int
    native_id: int | None
    name: str
    daemon: bool
    waits_for: str | None = None
    waiting_since: float | None = None
    timed: bool = False
    holds: tuple[str, ...] = ()
    role: str = "member"
    stack: tuple[StackFrame, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the actor as a JSON object of DESIGN's wire format."""
        return {
            "id": self.id,
            "type": self.type,
            "pid": self.pid,
            "native_id": self.native_id,
            "name": self.name,
            "daemon": self.daemon,
            "waits_for": self.waits_for,
            "waiting_since": self.waiting_since,
            "timed": self.timed,
            "holds": list(self.holds),
            "role": self.role,
            "stack": [frame.to_dict() for frame in self.stack],
        }


@dataclass(frozen=True, slots=True)
class FindingResource:
    """A resource of a finding, with the site that created it, its present holders, and `Resource.detail`."""

    id: str
    kind: str
    name: str | None = None
    created: CallSite | None = None
    holders: tuple[Holder, ...] = ()
    detail: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the resource as a JSON object of DESIGN's wire format."""
        return {
            "id": self.id,
            "kind": self.kind,
            "name": self.name,
            "created": self.created.to_dict() if self.created else None,
            "holders": [holder.to_dict() for holder in self.holders],
            "detail": self.detail,
        }


@dataclass(frozen=True, slots=True)
class Finding:
    """An immutable statement of a defect, with its evidence.

    ``detail`` names the sub-kind of a misuse or leak, ``reason`` says why a suspicion is not a proof.  ``time`` and all
    ``since`` are wall-clock seconds.  ``count`` is the number of times this fingerprint was seen in the process.
    """

    kind: str
    resource_kind: str
    confidence: str
    id: str
    fingerprint: str
    time: float
    pid: int
    title: str
    actors: tuple[FindingActor, ...] = ()
    resources: tuple[FindingResource, ...] = ()
    edges: tuple[tuple[str, str, str], ...] = ()
    order: tuple[dict[str, Any], ...] = ()
    detail: str | None = None
    reason: str | None = None
    count: int = 1
    advice: str = ""
    suppress: str = ""
    suppressed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as a JSON object of DESIGN's wire format, schema 1."""
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "resource_kind": self.resource_kind,
            "confidence": self.confidence,
            "id": self.id,
            "fingerprint": self.fingerprint,
            "time": self.time,
            "pid": self.pid,
            "title": self.title,
            "detail": self.detail,
            "reason": self.reason,
            "actors": [actor.to_dict() for actor in self.actors],
            "resources": [resource.to_dict() for resource in self.resources],
            "edges": [list(edge) for edge in self.edges],
            "order": list(self.order),
            "count": self.count,
            "advice": self.advice,
            "suppress": self.suppress,
        }

    def with_changes(self, **changes: Any) -> Finding:
        """Return a copy in which the given fields are replaced."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, slots=True)
class ClassStatistics:
    """Counters of one lock class; histograms are counts per bucket of ``WAIT_BUCKETS_SECONDS``, the last one open."""

    lock_class: str
    kind: str
    acquisitions: int = 0
    contentions: int = 0
    wait_seconds: float = 0.0
    wait_buckets: tuple[int, ...] = ()
    hold_seconds: float = 0.0
    hold_samples: int = 0
    hold_buckets: tuple[int, ...] = ()


WAIT_BUCKETS_SECONDS: Final = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 60.0)


@dataclass(frozen=True, slots=True)
class AgentStats:
    """What the agent counts: frozen at the moment of the call, for exporters and for ``snapshot()``.

    ``findings`` and ``open_resources``, ``leaked_resources`` map label values to counts; ``findings`` is keyed by
    ``(kind, resource_kind, confidence)``, ``agent_errors`` by the border where the error was caught.
    """

    core: str = "python"
    locks_created: int = 0
    locks_alive: int = 0
    threads_seen: int = 0
    blocked_threads: int = 0
    deadlocked_threads: int = 0
    deadlocks_open: int = 0
    longest_wait_seconds: float = 0.0
    findings: tuple[tuple[tuple[str, str, str], int], ...] = ()
    open_findings: int = 0
    suppressed_findings: int = 0
    classes: tuple[ClassStatistics, ...] = ()
    open_resources: tuple[tuple[str, int], ...] = ()
    leaked_resources: tuple[tuple[str, int], ...] = ()
    order_edges: int = 0
    agent_errors: tuple[tuple[str, int], ...] = ()
    dropped_events: tuple[tuple[str, int], ...] = ()
    agent_cpu_seconds: float = 0.0
    untracked_locks: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """The full live picture, as SIGUSR1, ``concagent report PID`` and ``/report`` show it.

    ``snapshot`` lists every actor with its stack; ``rings`` are the open deadlocks as tuples of actor serials, found anew
    from this snapshot; ``findings`` are those of this process so far; ``trigger`` says who asked.
    """

    snapshot: Snapshot
    rings: tuple[tuple[int, ...], ...]
    findings: tuple[Finding, ...]
    stats: AgentStats
    trigger: str = "request"
    python: str = ""
    command: str = ""
    version: str = ""
