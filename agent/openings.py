"""What was opened and not closed, counted by the line that opened it.

A leak is repaired where the resource was opened, so the table is keyed by creation site: code object and instruction
offset of the caller, read from its frame without a stack; file, line and function are made only for reports.  Code that
merely passes an opening on (``pathlib``, ``gzip``, ``logging``: the standard library) is not where the repair goes; a
site there is marked once, and from then on the search goes on in the caller of that frame.

The table is written from everywhere, finalizers included, and a finalizer may run in the middle of any other write, in
the same thread: a lock here would deadlock the program against itself.  So there is none.  Each write is one operation
that the interpreter does not divide (``dict.setdefault``, ``dict.pop``, ``next`` of a counter), and no write depends on
an earlier one.  What is open is not a number that goes up and down but the set of *openings* themselves, so nothing can
drift; each opening is asked whether it is still open when somebody wants to know.

A temporary that the statement itself consumes (``open(p).read()``) is destroyed unclosed, too, and yet no leak.  Whether it
was one is read from bytecode (`temporaries`), which is no work for a finalizer: that only counts, by the instruction at
which the resource died, and the reader judges.  Such resources are as good as closed, and are in the figures as closed.

A code object is kept as a key by identity.  By value it would be hashed over its whole bytecode at each opening, and two
equal functions of two files would be one site.  A record keeps its code object alive, so the identity is not reused.

Invariants O1 opened = open + closed + collected unclosed, for each site and at each reading.
           O2 an opening never refers strongly to its resource: nothing here keeps a file open.
           O3 there are at most ``max_sites`` sites of a kind; what comes after is counted under `OTHER`.
           O4 after a fork, the child counts what it opened itself, and nothing of the parent.
Limits     readings while others write are of slightly different moments; they never undercount what is open for long.
Cost       opening: two dict operations, one ``next``.  A reading: O(what is open).
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from concagent import _real
from concagent.tuples import NamedTuple

# Sites that are none: file and function are called so, the line is 0.
OTHER: Final = "other"
UNKNOWN: Final = "unknown"
MAX_SITES: Final = 4096

# Bound here: at the very end the interpreter empties modules, and finalizers still come.
_is_finalizing: Final = sys.is_finalizing


if TYPE_CHECKING:
    from types import CodeType, FrameType
    from typing import Protocol

    from concagent.model import CallSite

    class OpeningLike(Protocol):
        """What a record keeps of one opened resource; hashable by identity or as a weak reference."""

        record: SiteRecord
        since_ns: int

        def is_open(self) -> bool:
            """Return whether the resource is still open; must not raise and not keep the resource."""


class Opening:
    """The token of one opened resource, for hooks that learn of its end by a call."""

    __slots__ = ("__weakref__", "record", "since_ns")

    def __init__(self, record: SiteRecord, since_ns: int) -> None:
        """Note where and when; `Openings.opened` makes these."""
        self.record = record
        self.since_ns = since_ns

    def is_open(self) -> bool:
        """Return True: a closed opening has left the table."""
        return True


class SiteRecord:
    """The cells of one creation site.  ``passes_on`` says that the real site is the caller's, ``ours`` that it is we."""

    __slots__ = (
        *("alive", "code", "collected", "consumed", "dropped", "ends", "kind", "lasti", "live", "opened", "ours"),
        *("passes_on", "place", "reported", "serial", "site", "user_code"),
    )

    def __init__(self, kind: str, code: CodeType | None, lasti: int, place: str, serial: int) -> None:
        """Make a record on which nothing was opened yet."""
        self.kind = kind
        self.code = code
        self.lasti = lasti
        self.place = place
        self.site: CallSite | None = None
        self.serial = serial
        where = place if code is None else code.co_filename
        self.passes_on = code is not None and is_standard_library(where)
        self.ours = where.startswith(_OURS)
        self.user_code = code is not None and not (self.passes_on or self.ours or is_site_package(where))
        self.live = True
        self.alive: dict[OpeningLike, None] = {}
        self.opened = itertools.count()
        self.collected = itertools.count()
        self.dropped: dict[int, itertools.count[int]] = {}  # died in the statement of its opening, by instruction
        self.consumed: dict[int, bool] = {}  # do they consume a temporary? written by the reader only
        self.ends: frozenset[int] | None = None
        self.reported = 0  # of `unclosed`; written by the reader only

    def call_site(self) -> CallSite:
        """Return file, line and function, made at the first call."""
        if self.site is None:
            from concagent.model import CallSite  # with all value types; only a report needs them

            self.site = CallSite(self.place, 0, self.place) if self.code is None else call_site(self.code, self.lasti)
        return self.site

    def unclosed(self) -> tuple[int, int]:
        """Return how many were collected unclosed, and how many temporaries were consumed."""
        collected, temporaries = _value(self.collected), 0
        for at, counter in list(self.dropped.items()):
            if self._consumes(at):
                temporaries += _value(counter)
            else:
                collected += _value(counter)
        return collected, temporaries

    def _consumes(self, at: int) -> bool:
        known = self.consumed.get(at)
        if known is None:
            from concagent import temporaries  # with the disassembler; most programs never need it

            assert self.code is not None
            if self.ends is None:
                self.ends = temporaries.temporary_ends(self.code, temporaries.instruction_at(self.code, self.lasti))
            known = self.consumed[at] = temporaries.instruction_at(self.code, at) in self.ends
        return known


class OpeningStatistics(NamedTuple):
    """Figures of one creation site at one moment.

    ``old`` counts the open ones of at least the asked age, and ``old_span_ns`` is the time between the openings of the
    first and the last of those: a program that opens all at its start has many old ones and a short span.
    ``temporaries`` is how many of the closed ones were closed by the reference count, in the statement that opened them.
    ``oldest_open_ns`` is the monotonic time of the oldest opening, None if none is open.  ``user_code`` is False for sites
    in the standard library and in installed packages.
    """

    kind: str
    site: CallSite
    user_code: bool
    opened: int
    closed: int
    open: int
    collected_unclosed: int
    old: int = 0
    old_span_ns: int = 0
    oldest_open_ns: int | None = None
    temporaries: int = 0


class UnclosedEvent:
    """So many resources of one site were collected without being closed; ``total`` counts those of earlier events too."""

    __slots__ = ("count", "kind", "site", "total", "user_code")

    def __init__(self, kind: str, site: CallSite, user_code: bool, count: int, total: int) -> None:
        """Make an event."""
        self.kind = kind
        self.site = site
        self.user_code = user_code
        self.count = count
        self.total = total


class Openings:
    """The table.  All methods may be called by any thread; `take_unclosed` by one thread at a time."""

    def __init__(
        self,
        on_unclosed: Callable[[], object] | None = None,
        max_sites: int = MAX_SITES,
        clock: Callable[[], int] = _real.monotonic_ns,
    ) -> None:
        """Make an empty table.

        Args:
            on_unclosed: Called when there is something to take after there was nothing.  Runs in a finalizer, in the
                middle of anything: it may write to a pipe, it must not lock, log or raise.
            max_sites: Cap of the sites of one kind.
            clock: Monotonic nanoseconds.
        """
        self.active = True
        self._on_unclosed = on_unclosed
        self._max_sites = max_sites
        self._clock = clock
        self._tables: dict[str, dict[tuple[int, int], SiteRecord]] = {}
        self._serials = itertools.count(1)
        self._pending = False
        self._keepers: list[tuple[Callable[[], object], Callable[[], object]]] = []

    # The hot side: hooks.

    def table(self, kind: str) -> dict[tuple[int, int], SiteRecord]:
        """Return the records of a kind, by ``(id(code), f_lasti)``.  The same dict for ever: hooks keep it."""
        return self._tables.setdefault(kind, {})

    def record_of(self, kind: str, frame: FrameType | None) -> SiteRecord:
        """Return the record of the innermost frame that does not merely pass the opening on, made if it is new."""
        innermost: SiteRecord | None = None
        while frame is not None:
            record = self.record_at(kind, frame.f_code, frame.f_lasti)
            if record.ours:
                break  # `concagent run -m` of a module of the standard library: the outermost frames are ours
            if not record.passes_on:
                return record
            innermost = innermost or record
            frame = frame.f_back
        return innermost or self._special(kind, UNKNOWN)

    def record_at(self, kind: str, code: CodeType, lasti: int) -> SiteRecord:
        """Return the record of exactly this instruction, made if it is new."""
        table = self.table(kind)
        record = table.get((id(code), lasti))
        if record is None:
            if len(table) >= self._max_sites:
                return self._special(kind, OTHER)
            new = SiteRecord(kind, code, lasti, UNKNOWN, next(self._serials))
            record = table.setdefault((id(code), lasti), new)
        return record

    def opened(self, kind: str, site: tuple[CodeType, int] | None) -> Opening:
        """Record that a resource was opened at a site and return its token; None for an unknown site."""
        record = self._special(kind, UNKNOWN) if site is None else self.record_at(kind, *site)
        opening = Opening(record, self._clock())
        self.add(opening)
        return opening

    def add(self, opening: OpeningLike) -> None:
        """Record an opening that its hook has made."""
        next(opening.record.opened)
        opening.record.alive[opening] = None

    def closed(self, opening: OpeningLike) -> None:
        """Record that the resource was closed, or is gone; again is harmless."""
        opening.record.alive.pop(opening, None)

    def collected_unclosed(self, opening: OpeningLike, dropped_at: int = -1) -> None:
        """Record that the resource was destroyed while open.  Safe in finalizers.

        Args:
            opening: The resource's token.
            dropped_at: If its last reference went away in the very frame that opened it: at which instruction of that.
        """
        record = opening.record
        record.alive.pop(opening, None)
        if not self.active or not record.live or _is_finalizing():
            return  # what the interpreter tears down at its end is no leak, and nobody reads it any more
        if dropped_at < 0 or record.code is None:
            next(record.collected)
        else:
            counter = record.dropped.get(dropped_at)
            next(record.dropped.setdefault(dropped_at, itertools.count()) if counter is None else counter)
            if record.consumed.get(dropped_at):
                return
        if not self._pending:
            self._pending = True
            if self._on_unclosed is not None:
                self._on_unclosed()

    # The cold side: monitor and exporters.

    def take_unclosed(self) -> tuple[UnclosedEvent, ...]:
        """Return what was collected unclosed since the last call, one event a site, in order of the sites' first use."""
        self._pending = False
        events: list[UnclosedEvent] = []
        for record in self._records():
            total, _ = record.unclosed()
            if total > record.reported:
                count = total - record.reported
                record.reported = total
                events.append(UnclosedEvent(record.kind, record.call_site(), record.user_code, count, total))
        return tuple(events)

    def statistics(self, older_than_ns: int = 0) -> tuple[OpeningStatistics, ...]:
        """Return the figures of each site, in order of first use; ``old`` counts what is open for that long."""
        return tuple(self._figures(record, older_than_ns) for record in self._records())

    def open_counts(self) -> tuple[tuple[str, int], ...]:
        """Return how many are open by kind, sorted; each kind that was ever watched is there."""
        counts = dict.fromkeys(self._tables, 0)
        for record in self._records():
            counts[record.kind] += sum(opening.is_open() for opening in list(record.alive))
        return tuple(sorted(counts.items()))

    def collected_counts(self) -> tuple[tuple[str, int], ...]:
        """Return how many were collected unclosed by kind, sorted."""
        counts = dict.fromkeys(self._tables, 0)
        for record in self._records():
            counts[record.kind] += record.unclosed()[0]
        return tuple(sorted(counts.items()))

    def start(self) -> None:
        """Let hooks record."""
        self.active = True

    def stop(self) -> None:
        """Tell the hooks that may survive in copies to be plain; what was recorded can still be read."""
        self.active = False
        for _, leave in self._keepers:
            leave()

    def tell_keeper(self, forget: Callable[[], object], leave: Callable[[], object]) -> None:
        """Have a hook that keeps records itself told when the tables are emptied, and when nothing is recorded any more."""
        self._keepers.append((forget, leave))

    def after_fork_in_child(self) -> None:
        """Forget the parent's openings.  Their tokens stay valid and count for nothing."""
        for forget, _ in self._keepers:
            forget()
        for table in self._tables.values():
            for record in list(table.values()):
                record.live = False
            table.clear()
        self._pending = False

    def _special(self, kind: str, place: str) -> SiteRecord:
        key = (0, 0) if place is OTHER else (0, 1)  # no object has the identity 0
        return self.table(kind).setdefault(key, SiteRecord(kind, None, 0, place, next(self._serials)))

    def _records(self) -> list[SiteRecord]:
        records = [record for table in list(self._tables.values()) for record in list(table.values())]
        return sorted(
            (record for record in records if record.alive or _value(record.opened)), key=lambda record: record.serial
        )

    def _figures(self, record: SiteRecord, older_than_ns: int) -> OpeningStatistics:
        # The order of the readings is that of O1: nobody can be counted as open and not yet as opened.
        since = [opening.since_ns for opening in list(record.alive) if opening.is_open()]
        collected, temporaries = record.unclosed()
        opened = _value(record.opened)
        limit = self._clock() - older_than_ns
        old = [at for at in since if at <= limit]
        return OpeningStatistics(
            kind=record.kind,
            site=record.call_site(),
            user_code=record.user_code,
            opened=opened,
            closed=max(0, opened - len(since) - collected),
            open=len(since),
            collected_unclosed=collected,
            old=len(old),
            old_span_ns=max(old) - min(old) if old else 0,
            oldest_open_ns=min(since, default=None),
            temporaries=temporaries,
        )


def _value(counter: itertools.count[int]) -> int:
    # A counter shows its value only in its repr, which is the same in all versions; reading must not count.
    return int(repr(counter)[6:-1])


def call_site(code: CodeType, lasti: int) -> CallSite:
    """Return file, line and function of an instruction."""
    from concagent.model import CallSite

    line = code.co_firstlineno
    for start, _end, number in code.co_lines():
        if start > lasti:
            break
        if number is not None:
            line = number
    return CallSite(code.co_filename, line, getattr(code, "co_qualname", code.co_name))


_STDLIB: Final = os.path.dirname(os.__file__)
_LIBRARY: Final = tuple({os.path.join(folder, "") for folder in (_STDLIB, os.path.realpath(_STDLIB))})
_OURS: Final = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")
_PACKAGES: Final = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))


def is_site_package(file: str) -> bool:
    """Return whether a file belongs to an installed package."""
    return any(folder in file for folder in _PACKAGES)


def is_standard_library(file: str) -> bool:
    """Return whether a file belongs to the standard library, its frozen modules included."""
    return file.startswith("<frozen ") or (file.startswith(_LIBRARY) and not is_site_package(file))
