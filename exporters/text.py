"""The report for people: a finding, or the whole live picture, in words.

It is read at three in the morning by somebody who has never heard of this tool, in a log or a terminal, next to the
source.  So it answers in the order of the questions: what is it and how sure are you; who waits for whom; where did
each take what it holds, and where does it stand now; who else is stuck; why should I believe it; what do I do; how do I
silence it.  It says names before numbers and quotes the source lines, since a line number of another release misleads.
Layout is plain ASCII and every ``file:line`` of a stack is whole, so that logs keep it and editors can follow it.

A report of a thousand threads is one of few different stacks.  Equal stacks are shown once with the names of their
threads; what a thread holds or waits for is never folded away, because that is the evidence.

Limits     source lines are read from disk when the report is made: if the file has changed since it was imported, the
           line number is right and the quoted text may not be.
Cost       O(text); 1,000 threads of 20 frames in well under 100 ms.  Reads source files, takes no lock of the program.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from concagent import _real
from concagent.exporters._scene import (
    LIVING_KINDS,
    Scene,
    clean,
    duration,
    enumerate_words,
    full_site,
    scene_of_finding,
    scene_of_snapshot,
    short_site,
    timestamp,
)
from concagent.model import (
    CallSite,
    ClassStatistics,
    Finding,
    FindingActor,
    FindingResource,
    Report,
    StackFrame,
)

SourceLine = Callable[[str, int], str]

_CONFIDENCE_WORDS: Final = {
    "proven": "proven",
    "suspected": "suspected, not proven",
    "potential": "potential: it did not happen in this run, but it can",
    "hint": "a hint, no more",
}
_PROOFS: Final = {
    "deadlock": (
        "None of these waits has a time limit, and each thing waited for can be released only by "
        "somebody who is waiting here too. All of these waits were seen at the same moment."
    ),
    "stall": "None of these waits has a time limit, and nobody who could end them is left.",
    "orphaned-lock": "The holder has ended without releasing it, so nobody will.",
    "leak": "It was garbage collected, or the program ended, without having been closed.",
}
_MAKING_WORDS: Final = {
    "file": "opened",
    "socket": "opened",
    "connection": "opened",
    "thread": "started",
    "process": "started",
    "memory": "allocated",
}
_SEMAPHORES: Final = frozenset({"semaphore", "bounded-semaphore", "mp-semaphore", "asyncio-semaphore"})
_SIGNALS: Final = frozenset({"event", "condition", "mp-event", "mp-condition", "asyncio-event", "asyncio-condition"})
_QUEUES: Final = frozenset({"queue", "mp-queue", "asyncio-queue"})
_LOCKS: Final = frozenset(
    {"lock", "rlock", "import-lock", "file-lock", "mp-lock", "mp-rlock", "asyncio-lock", "resource"}
)

_RESET: Final = "\x1b[0m"
_BOLD: Final = "\x1b[1m"
_RED: Final = "\x1b[1;31m"
_YELLOW: Final = "\x1b[1;33m"
_CYAN: Final = "\x1b[36m"

_SOURCE_BYTES: Final = 4_000_000
_TABLE_ROWS: Final = 10
_HELD_ROWS: Final = 100
_NAMES_SHOWN: Final = 20


def render_finding(
    finding: Finding,
    *,
    color: bool = False,
    width: int = 100,
    python: str | None = None,
    source_line: SourceLine | None = None,
) -> str:
    """Return the report of one finding, for a person, with a newline at its end.

    Args:
        finding: Of any kind, known here or not; missing names, sites and stacks leave gaps, never errors.
        color: Whether to use ANSI colours; nothing is said by colour alone.
        width: Column at which prose is wrapped; paths and source lines are never broken.
        python: Version to be named; None names ours if the finding was made in this process, else none.
        source_line: Gives the source text of a file and line; None reads the files.
    """
    writer = _Writer(color, width, source_line or read_source_line)
    scene = scene_of_finding(finding)
    behind = [a.id for a in finding.actors if a.role == "behind"]
    beside = [a.id for a in finding.actors if a.role == "bystander"]
    core = [a.id for a in finding.actors if a.role not in ("behind", "bystander")]
    if not core:
        core, behind, beside = behind + beside, [], []

    label = finding.kind.upper().replace("-", " ")
    if finding.detail:
        label += f" ({clean(finding.detail)})"
    confidence = _CONFIDENCE_WORDS.get(finding.confidence, clean(finding.confidence))
    writer.headline(f"{label}, {confidence}" if confidence else label, proven=finding.confidence == "proven")
    writer.prose(clean(finding.title))

    ring = scene.ring_from(core[0]) if core else ()
    if ring:
        _ring_in_words(writer, scene, ring)
        rest = [actor for actor in core if actor not in ring]
    else:
        rest = core
    sentences = [_sentence(scene, actor, finding.kind) for actor in rest]
    if sentences:
        writer.section("Also part of it" if ring else "What happens")
        for sentence in sentences:
            writer.prose(sentence, hanging=True)

    if core:
        writer.section("Who, and where in the source")
        victims = {a.id for a in finding.actors if a.role == "victim"}
        for actor in (a for a in (*ring, *rest) if a in scene.actors):
            _actor_block(writer, scene, actor, victim=actor in victims)
    if finding.resources:
        writer.section("What leaked" if finding.kind == "leak" else "What it is about")
        for resource in finding.resources:
            _resource_block(writer, scene, resource)
    if behind:
        writer.section(f"Stuck behind it: {len(behind)} more")
        _behind(writer, scene, behind, finding.kind)
    if beside:
        writer.section(f"Also involved: {len(beside)} more")
        _behind(writer, scene, beside, finding.kind)
    if finding.order:
        what = "use" if finding.kind == "context-hazard" else "order"
        writer.section(f"The {what}s that were seen")
        for number, entry in enumerate(finding.order, 1):
            writer.line(f"  {what} {number}")
            _any_value(writer, entry, 4)
    _verdict(writer, finding)
    _footer(writer, finding, python)
    return writer.text()


def render_report(
    report: Report,
    *,
    color: bool = False,
    width: int = 100,
    source_line: SourceLine | None = None,
) -> str:
    """Return the whole live picture of a process, for a person, with a newline at its end.

    Args:
        report: The picture; every thread of its snapshot is named in the answer.
        color: Whether to use ANSI colours.
        width: Column at which prose is wrapped.
        source_line: Gives the source text of a file and line; None reads the files.
    """
    writer = _Writer(color, width, source_line or read_source_line)
    scene = scene_of_snapshot(report.snapshot)
    actor_ids = {actor.serial: actor.id for actor in report.snapshot.actors}
    rings = [tuple(actor_ids.get(s, f"{report.snapshot.pid}/t{s}") for s in ring) for ring in report.rings]
    _header(writer, report, scene)
    for number, ring in enumerate(rings, 1):
        _ring_in_words(writer, scene, ring, f"Deadlock {number} of {len(rings)}, in force right now")
    _open_findings(writer, report)
    _oldest_waits(writer, scene)
    _contended(writer, report.stats.classes)
    _held(writer, scene)
    in_ring = frozenset(actor for ring in rings for actor in ring)
    tasks = [actor for actor, found in scene.actors.items() if found.type == "task"]
    threads = [actor for actor, found in scene.actors.items() if found.type != "task"]
    _actors(writer, scene, in_ring, "thread", threads)
    if tasks:
        _actors(writer, scene, in_ring, "task", tasks)
    _health(writer, report)
    return writer.text()


def read_source_line(file: str, line: int) -> str:
    """Return the stripped text of a source line, empty where it cannot be read.

    What ``linecache`` already knows is taken from there, since only it knows the sources of notebooks and doctests; but
    it is not asked to read: it would do so with the program's ``open``, which we watch.
    """
    # Every source that is executed as a string has that name; since 3.13 `python -c` puts its own there.
    if line < 1 or file == "<string>":
        return ""
    linecache: Any = sys.modules.get("linecache")  # which knows nothing unless somebody has used it
    known: Any = linecache.cache.get(file) if linecache is not None else None
    if known is not None and len(known) == 4:
        lines = known[2]
    else:
        try:
            status = os.stat(file)
            # A code object may name anything as its file; opening a pipe would wait for a writer.
            if not stat.S_ISREG(status.st_mode) or status.st_size > _SOURCE_BYTES:
                return ""
            with _real.open_file(file, encoding="utf-8", errors="replace") as stream:
                lines = stream.readlines()
        except (OSError, ValueError):
            return ""
    return str(lines[line - 1]).strip() if line <= len(lines) else ""


class _Writer:
    """Collects lines; the only place that knows of width, colour and quoting of source."""

    def __init__(self, color: bool, width: int, source_line: SourceLine) -> None:
        self.color = color
        self.width = max(40, width)
        self._source_line = source_line
        self._sources: dict[tuple[str, int], str] = {}
        self._lines: list[str] = []

    def line(self, text: str = "") -> None:
        self._lines.append(text)

    def paint(self, text: str, code: str) -> str:
        return f"{code}{text}{_RESET}" if self.color else text

    def headline(self, text: str, *, proven: bool) -> None:
        self.line("== concagent ".ljust(self.width, "="))
        self.line(self.paint(text, _RED if proven else _YELLOW))

    def section(self, title: str) -> None:
        self.line()
        self.line(self.paint(title, _BOLD))

    def prose(self, text: str, *, indent: int = 2, hanging: bool = False) -> None:
        import textwrap  # compiles its patterns; only a report needs it

        for paragraph in text.splitlines() or [""]:
            self._lines.extend(
                textwrap.wrap(
                    paragraph,
                    self.width,
                    initial_indent=" " * indent,
                    subsequent_indent=" " * (indent + 4 if hanging else indent),
                    break_long_words=False,
                    break_on_hyphens=False,
                )
            )

    def source(self, file: str, line: int, known: str = "") -> str:
        """Return the source of a line: as recorded with a stack, else as read, else nothing."""
        key = (file, line)
        if known:
            self._sources[key] = known
        elif key not in self._sources:
            self._sources[key] = self._source_line(file, line)
        return clean(self._sources[key])

    def place(self, label: str, site: CallSite, indent: int) -> None:
        """Write where something is, with its source line quoted below."""
        self.line(f"{' ' * indent}{label}{full_site(site)}")
        text = self.source(site.file, site.line)
        if text:
            self.line(f"{' ' * (indent + len(label) + 4)}{text}")

    def stack(self, frames: Iterable[StackFrame], notes: dict[int, str], indent: int) -> None:
        """Write a stack; frames with a note are marked."""
        for index, frame in enumerate(frames):
            note = notes.get(index)
            if frame.interrupts:
                self.line(f"{' ' * indent}  -- interrupted here by {clean(frame.interrupts)} --")
            text = f"{' ' * indent}{'>' if note else ' '} {full_site(frame)}"
            if note:
                text = self.paint(f"{text}    <- {note}", _CYAN)
            self.line(text)
            quoted = self.source(frame.file, frame.line, frame.source)
            if quoted:
                self.line(f"{' ' * (indent + 6)}{quoted}")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
        for row in (header, *rows):
            cells = (cell.ljust(size) for cell, size in zip(row, widths, strict=True))
            self.line(f"  {'  '.join(cells)}".rstrip())

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _wants(scene: Scene, actor: str, finding_kind: str = "", *, described: bool = True) -> str:
    """Return what the actor waits for, in words: ``waits for lock "a" (created ...), held by b``."""
    resource = scene.waits[actor]
    kind = scene.kind(resource)
    what = _described(scene, resource) if described else scene.resource_name[resource]
    names = ["itself" if h == actor else scene.actor_name[h] for h in scene.holders.get(resource, ())]
    who = enumerate_words(names)
    timed = " (with a time limit)" if _is_timed(scene, actor) else ""
    if kind in LIVING_KINDS:
        return f"waits{timed} for {what} to end"
    if not names:
        return f"waits{timed} for {what}" + (", whose holder is not known" if kind in _LOCKS else "")
    if finding_kind == "orphaned-lock":
        relation = f"which {who} left held"
    elif kind in _SEMAPHORES:
        relation = f"whose permits are held by {who}"
    elif kind in _SIGNALS:
        relation = f"which {who} would have to signal"
    elif kind in _QUEUES:
        relation = f"which {who} would have to serve"
    elif kind == "future":
        relation = f"which {who} would have to complete"
    elif kind == "barrier":
        relation = f"which {who} has not reached"
    else:
        relation = f"held by {who}"
    return f"waits{timed} for {what}, {relation}"


def _described(scene: Scene, resource: str) -> str:
    name = scene.resource_name[resource]
    found = scene.resources.get(resource)
    notes = [clean(found.detail)] if found is not None and found.detail else []
    if found is not None and found.created is not None:
        notes.append(f"{_MAKING_WORDS.get(found.kind, 'created')} {short_site(found.created)}")
    return f"{name} ({'; '.join(notes)})" if notes else name


def _is_timed(scene: Scene, actor: str) -> bool:
    found = scene.actors.get(actor)
    return found is not None and found.timed


def _identity(actor: FindingActor | None, *, own_id: bool = False) -> str:
    """Return what tells an actor from others of its name, in brackets."""
    if actor is None:
        return ""
    parts = [clean(actor.type), f"pid {actor.pid}"]
    if actor.native_id is not None:
        parts.append(f"native {actor.native_id}")
    if own_id:
        parts += ["daemon"] if actor.daemon else []
        parts.append(clean(actor.id))
    return f" ({', '.join(parts)})"


def _ring_in_words(writer: _Writer, scene: Scene, ring: tuple[str, ...], title: str = "The ring") -> None:
    writer.section(title)
    for position, actor in enumerate(ring):
        before = scene.waits.get(ring[position - 1])
        parts = []
        if before is not None and scene.kind(before) not in LIVING_KINDS:
            parts.append(f"holds {_described(scene, before)}")
        wants = _wants(scene, actor) if actor in scene.waits else "waits"
        if parts and len(ring) == 1:
            wants = "waits for the same, which only it can release"
        if position == len(ring) - 1 and len(ring) > 1:
            wants += ": the ring is closed"
        parts.append(wants)
        who = scene.actor_name.get(actor, actor)
        writer.prose(f"{who}{_identity(scene.actors.get(actor))} {' and '.join(parts)}.", hanging=True)
    drawn = []
    for actor in ring:
        drawn.append(scene.actor_name.get(actor, actor))
        if actor in scene.waits and scene.kind(scene.waits[actor]) not in LIVING_KINDS:
            drawn.append(f"[{scene.resource_name[scene.waits[actor]]}]")
    drawn.append(scene.actor_name.get(ring[0], ring[0]))
    writer.line()
    writer.prose(" -> ".join(drawn), hanging=True)


def _sentence(scene: Scene, actor: str, kind: str) -> str:
    """Return what an actor outside a ring does, as one sentence."""
    found = scene.actors.get(actor)
    head = f"{scene.actor_name[actor]}{_identity(found)}"
    clauses = []
    misused = kind == "misuse"
    things = [r for r in scene.holds.get(actor, ()) if scene.kind(r) not in LIVING_KINDS]
    if things:
        held = enumerate_words(_described(scene, r) for r in things)
        if kind == "orphaned-lock" and actor not in scene.waits:
            clauses.append(f"took {held} and has ended without releasing it")
        else:
            clauses.append(f"{'held' if misused else 'holds'} {held}")
    if actor in scene.waits:
        clauses.append(_wants(scene, actor, kind))
    site = scene.wait_sites.get(actor)
    if misused and site is not None and found is not None and found.role == "member":
        clauses.append(f"did this at {short_site(site)}")
    elif not clauses:
        clauses.append(f"was at {short_site(site)}" if site else "was there")
    return f"{head} {' and '.join(clauses)}."


def _actor_block(writer: _Writer, scene: Scene, actor: str, *, victim: bool) -> None:
    found = scene.actors[actor]
    writer.line()
    chosen = ", chosen as victim to break the ring" if victim else ""
    writer.line(f"  {scene.actor_name[actor]}{_identity(found, own_id=True)}{chosen}")
    notes = _notes(scene, actor, found.stack)
    if actor in scene.waits:
        waited = scene.waited(actor)
        length = f"{duration(waited)} for " if waited is not None else "for "
        limit = " (with a time limit)" if found.timed else ""
        writer.line(f"    waits   {length}{scene.resource_name[scene.waits[actor]]}{limit}")
        site = scene.wait_sites.get(actor)
        if site is not None:
            writer.place("at       ", site, 12)
    for resource in scene.holds.get(actor, ()):
        if scene.kind(resource) in LIVING_KINDS:
            continue
        holding = scene.holding(resource, actor)
        since = ""
        if holding is not None and holding.since is not None:
            since = f" for {duration(scene.now - holding.since)}"
        writer.line(f"    holds   {scene.resource_name[resource]}{since}")
        if holding is not None and holding.acquired is not None:
            writer.place("taken at ", holding.acquired, 12)
    if found.stack:
        marked = ", > marks the places named above" if notes else ""
        writer.line(f"    stack   outermost call first{marked}")
        writer.stack(found.stack, notes, 6)
    else:
        writer.line("    stack   not known")


def _notes(scene: Scene, actor: str, stack: tuple[StackFrame, ...]) -> dict[int, str]:
    """Return what happened in which frame of a stack: where it waits, where it took what it holds."""
    notes: dict[int, list[str]] = {}
    for resource in scene.holds.get(actor, ()):
        holding = scene.holding(resource, actor)
        if holding is None or holding.acquired is None:
            continue
        at = _frame_of(stack, holding.acquired)
        if at is not None:
            line = "" if stack[at].line == holding.acquired.line else f" in line {holding.acquired.line}"
            notes.setdefault(at, []).append(f"took {scene.resource_name[resource]}{line}")
    if actor in scene.waits:
        site = scene.wait_sites.get(actor)
        at = _frame_of(stack, site) if site is not None else None
        if at is not None:
            notes.setdefault(at, []).append(f"waits for {scene.resource_name[scene.waits[actor]]}")
    return {index: ", ".join(words) for index, words in notes.items()}


def _frame_of(stack: tuple[StackFrame, ...], site: CallSite) -> int | None:
    """Return the index of the frame in which a site is: the same line, else the same function further on."""
    same_function = None
    for index in range(len(stack) - 1, -1, -1):
        frame = stack[index]
        if frame.file == site.file and frame.function == site.function:
            if frame.line == site.line:
                return index
            if same_function is None:
                same_function = index
    return same_function


def _resource_block(writer: _Writer, scene: Scene, resource: FindingResource) -> None:
    name = scene.resource_name[resource.id]
    count = len(scene.waiters.get(resource.id, ()))
    waiting = f", {count} waiting" if count else ""
    writer.line(f"  {name} ({clean(resource.id)}{waiting})")
    if resource.detail:
        writer.line(f"    now {clean(resource.detail)}")
    making = _MAKING_WORDS.get(resource.kind, "created")
    if resource.created is not None:
        writer.place(f"{making} at ", resource.created, 4)
    else:
        writer.line(f"    {making} at a place that is not known")


def _behind(writer: _Writer, scene: Scene, actors: Sequence[str], kind: str) -> None:
    """Write those that are not the cause, each in one sentence with its stack, equal ones folded."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for actor in actors:
        key = (scene.waits.get(actor), scene.actors[actor].stack, scene.holds.get(actor))
        groups.setdefault(key, []).append(actor)
    for members in groups.values():
        first = members[0]
        writer.line()
        if len(members) == 1:
            writer.prose(_sentence(scene, first, kind), hanging=True)
        else:
            names = enumerate_words((scene.actor_name[a] for a in members), _NAMES_SHOWN)
            does = _wants(scene, first, kind) if first in scene.waits else "is at the place below"
            writer.prose(f"{len(members)} alike ({names}): each {does}.", hanging=True)
        times = [w for a in members if (w := scene.waited(a)) is not None]
        if times:
            longest = "the longest " if len(members) > 1 else ""
            writer.line(f"    waits   {longest}{duration(max(times))} so far")
        stack = scene.actors[first].stack
        if stack:
            notes = _notes(scene, first, stack)
            writer.line("    stack   outermost call first")
            writer.stack(stack, notes, 6)


def _any_value(writer: _Writer, value: object, indent: int) -> None:
    """Write a value of an open-ended part of a finding, sites and stacks in their usual form."""
    pad = " " * indent
    if not isinstance(value, dict):
        writer.line(f"{pad}{clean(str(value))}")
        return
    for key, item in value.items():
        label = clean(str(key)).replace("_", " ")
        site = _as_site(item)
        if site is not None:
            writer.place(f"{label}: ", site, indent)
        elif isinstance(item, dict):
            writer.line(f"{pad}{label}:")
            _any_value(writer, item, indent + 2)
        elif isinstance(item, list | tuple) and any(isinstance(part, dict) for part in item):
            writer.line(f"{pad}{label}:")
            for part in item:
                frame = _as_site(part)
                if frame is not None:
                    writer.place("", frame, indent + 2)
                else:
                    _any_value(writer, part, indent + 2)
        elif isinstance(item, list | tuple):
            writer.line(f"{pad}{label}: {', '.join(clean(str(part)) for part in item)}")
        else:
            writer.line(f"{pad}{label}: {clean(str(item))}")


def _as_site(value: object) -> CallSite | None:
    if isinstance(value, dict) and {"file", "line", "function"} <= value.keys():
        line = value["line"] if isinstance(value["line"], int) else 0
        return CallSite(str(value["file"]), line, str(value["function"]))
    return None


def _verdict(writer: _Writer, finding: Finding) -> None:
    reason = finding.reason
    if finding.confidence == "proven":
        reason = reason or _PROOFS.get(finding.kind)
        title = "Why this is certain"
    elif finding.confidence == "suspected":
        reason = reason or "The evidence does not exclude that somebody outside could still help."
        title = "Why this is only suspected"
    else:
        title = "Why you see this"
    if reason:
        writer.section(title)
        writer.prose(reason)
    if finding.advice:
        writer.section("What to do")
        writer.prose(finding.advice)
    if finding.suppress:
        writer.section("If this is known and accepted, add this line to the suppressions file")
        writer.line(f"  {clean(finding.suppress)}")


def _footer(writer: _Writer, finding: Finding, python: str | None) -> None:
    if python is None and finding.pid == os.getpid():
        python = sys.version.split(maxsplit=1)[0]
    times = "once" if finding.count == 1 else f"{finding.count} times"
    parts = [f"seen {times}", timestamp(finding.time), f"pid {finding.pid}"]
    if python:
        parts.append(f"python {python}")
    writer.line()
    writer.line(f"fingerprint {clean(finding.fingerprint)}, {', '.join(parts)}")
    writer.line("=" * writer.width)


def _header(writer: _Writer, report: Report, scene: Scene) -> None:
    snapshot = report.snapshot
    states = [scene.states[a] for a in scene.states if scene.actors[a].type != "task"]
    tasks = len(scene.states) - len(states)
    waits = [w for a in scene.waits if (w := scene.waited(a)) is not None]
    writer.headline("CONCAGENT REPORT: who holds what and who waits for what", proven=bool(report.rings))
    process = f"pid {snapshot.pid}"
    if snapshot.process_name:
        process += f", {clean(snapshot.process_name)}"
    rows = [
        ("time", f"{timestamp(snapshot.wall_seconds)}, asked for by {clean(report.trigger)}"),
        ("process", process),
        ("command", clean(report.command)),
        ("python", clean(report.python)),
        ("agent", f"concagent {clean(report.version)}, {report.stats.core} core"),
    ]
    for label, text in rows:
        if text:
            writer.line(f"  {label:<9}{text}")
    threads = sum(state != "agent" for state in states)
    counts = (f"{states.count(s)} {s}" for s in ("blocked", "timed", "live", "ended"))
    shown = ", ".join(text for text in counts if not text.startswith("0 "))
    summary = f"{_plural(threads, 'thread')}: {shown}" if threads else "no threads"
    if tasks:
        summary += f"; {_plural(tasks, 'task')}"
    if waits:
        summary += f"; longest wait {duration(max(waits))}"
    rings = f"{_plural(len(report.rings), 'deadlock')} right now" if report.rings else "no deadlock"
    writer.line()
    writer.prose(f"{summary}; {rings}; {_plural(len(report.findings), 'finding')} so far.")


def _open_findings(writer: _Writer, report: Report) -> None:
    writer.section("Findings of this process so far")
    if not report.findings:
        writer.line("  none")
    for finding in report.findings:
        times = "" if finding.count == 1 else f", {finding.count} times"
        detail = f" ({clean(finding.detail)})" if finding.detail else ""
        writer.prose(
            f"{timestamp(finding.time)}  {finding.kind}{detail}, {finding.confidence}: "
            f"{clean(finding.title)} [{clean(finding.fingerprint)}{times}]",
            hanging=True,
        )


def _oldest_waits(writer: _Writer, scene: Scene) -> None:
    aged = sorted(((scene.waited(actor) or 0.0, actor) for actor in scene.waits), key=lambda pair: -pair[0])
    if not aged:
        return
    writer.section("Oldest waits")
    rows = []
    for waited, actor in aged[:_TABLE_ROWS]:
        resource = scene.waits[actor]
        holders = [scene.actor_name[h] for h in scene.holders.get(resource, ())]
        limit = " (timed)" if _is_timed(scene, actor) else ""
        rows.append(
            (
                duration(waited),
                scene.actor_name[actor],
                f"{scene.resource_name[resource]}{limit}",
                enumerate_words(holders, 3) or "-",
                short_site(scene.wait_sites.get(actor)),
            )
        )
    writer.table(("waited", "who", "for", "held by", "at"), rows)
    if len(aged) > _TABLE_ROWS:
        writer.line(f"  and {len(aged) - _TABLE_ROWS} more")


def _contended(writer: _Writer, classes: Iterable[ClassStatistics]) -> None:
    worst = sorted((c for c in classes if c.contentions), key=lambda c: (-c.wait_seconds, -c.contentions))
    if not worst:
        return
    writer.section("Most contended locks, by the time spent waiting for them")
    rows = [
        (
            clean(c.lock_class),
            c.kind,
            str(c.acquisitions),
            str(c.contentions),
            f"{100 * c.contentions / max(1, c.acquisitions):.1f} %",
            duration(c.wait_seconds),
            duration(c.hold_seconds / c.hold_samples) if c.hold_samples else "-",
        )
        for c in worst[:_TABLE_ROWS]
    ]
    header = ("lock", "kind", "acquired", "contended", "share", "waited in all", "mean hold")
    writer.table(header, rows)


def _held(writer: _Writer, scene: Scene) -> None:
    pairs = [
        (resource, holder)
        for resource, holders in scene.holders.items()
        if scene.kind(resource) not in LIVING_KINDS
        for holder in holders
    ]
    if not pairs:
        return
    # What others wait for comes first; sorting is stable, so the rest keeps the order of serials.
    pairs.sort(key=lambda pair: -len(scene.waiters.get(pair[0], ())))
    writer.section("What is held")
    rows = []
    for resource, holder in pairs[:_HELD_ROWS]:
        holding = scene.holding(resource, holder)
        since = holding.since if holding is not None else None
        rows.append(
            (
                scene.resource_name[resource],
                scene.actor_name[holder],
                duration(scene.now - since) if since is not None else "-",
                str(len(scene.waiters.get(resource, ()))),
                short_site(holding.acquired if holding is not None else None),
            )
        )
    writer.table(("what", "by", "for", "waiting", "taken at"), rows)
    if len(pairs) > _HELD_ROWS:
        writer.line(f"  and {len(pairs) - _HELD_ROWS} more")


def _actors(writer: _Writer, scene: Scene, in_ring: frozenset[str], word: str, actors: Iterable[str]) -> None:
    groups: dict[tuple[str, tuple[StackFrame, ...]], list[str]] = {}
    for actor in actors:
        groups.setdefault((scene.states[actor], scene.actors[actor].stack), []).append(actor)
    order = {"blocked": 0, "timed": 1, "live": 2, "ended": 3}
    writer.section(f"{word.capitalize()}s")
    if not groups:
        writer.line("  none")
    for (state, stack), members in sorted(groups.items(), key=lambda group: order.get(group[0][0], 4)):
        writer.line()
        if len(members) > 1:
            alike = "with this stack" if stack else "whose stack is not known"
            writer.line(f"  {len(members)} {word}s {alike} ({state})")
        quiet = []
        for actor in members:
            telling = actor in scene.waits or scene.holds.get(actor)
            if len(members) == 1 or telling:
                mark = " [in a deadlock]" if actor in in_ring else ""
                text = f"{_thread_line(scene, actor)}{mark}"
                writer.prose(text, indent=2 if len(members) == 1 else 4, hanging=True)
            else:
                quiet.append(scene.actor_name[actor])
        if quiet:
            writer.prose(enumerate_words(quiet, len(quiet)), indent=4)
        notes = _notes(scene, members[0], stack) if len(members) == 1 else {}
        writer.stack(stack, notes, 6)


def _thread_line(scene: Scene, actor: str) -> str:
    found = scene.actors[actor]
    text = f"{scene.actor_name[actor]}{_identity(found, own_id=True)} {scene.states[actor]}"
    held = [r for r in scene.holds.get(actor, ()) if scene.kind(r) not in LIVING_KINDS]
    if held:
        text += f"; holds {enumerate_words((scene.resource_name[r] for r in held), 10)}"
    if actor in scene.waits:
        text += f"; {_wants(scene, actor, described=False)}"
        text += f", for {duration(scene.waited(actor) or 0.0)}"
    return text


def _health(writer: _Writer, report: Report) -> None:
    stats = report.stats
    snapshot = report.snapshot
    writer.section("How well the agent sees this process")
    untracked = max(snapshot.untracked_locks, stats.untracked_locks)
    facts = [
        f"{_plural(stats.locks_alive, 'lock')} alive of {stats.locks_created} created",
        f"{_plural(untracked, 'known lock')} not tracked",
        f"{_plural(snapshot.foreign_threads, 'native thread')} not started by Python",
        f"{stats.agent_cpu_seconds:.2f} s of CPU used by the agent",
    ]
    for fact in facts:
        writer.line(f"  {fact}")
    for label, counts in (
        ("internal errors", stats.agent_errors),
        ("events dropped", stats.dropped_events),
    ):
        told = ", ".join(f"{clean(name)} {count}" for name, count in counts if count)
        writer.line(f"  {label}: {told or 'none'}")
    writer.line("=" * writer.width)
