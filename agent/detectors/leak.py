"""Says which figures of opened and unclosed resources are leaks, and how sure that is.

*Collected unclosed* is a fact: the object was destroyed while open, the interpreter says so itself, and the line is known.
Proven, also for a single one, also in library code.

*Still open* is no fact about the program's intent.  A log file is open for ever and should be; a cache of handles is full
after a while and stays so; a server under rising load has more open each minute.  What sets a leak apart from these is
that the *old* ones get more, without end.  So growth is suspected only if all of this holds for one site: at least
``leak_growth`` resources are open for longer than ``leak_age``; they are more than at the earlier look; and they were
opened over a time longer than ``leak_age``.  The last condition keeps the program silent that opens all its files at its
start, and the second the one whose cache is full.  A cache that fills slowly and has no bound is what a leak is.

*Open at exit* is the weakest: the operating system closes everything a moment later, and a module-level log file is the
normal case.  It is suspected only where one line of the program's own code left at least ``EXIT_OPEN`` resources open, and
at least one in ``EXIT_SHARE`` of all it ever opened: a worker pool that is stopped in the middle of its work has a few
open out of thousands.  Sites in the standard library and in installed packages are left out; their caches are no
business of the user's.  Ten is above every idiom that we know (a handler for each log level, a file for each of a few
channels), and below what leaks in a loop.

Pure: figures in, findings out.  The same figures give the same fingerprints in every process.

Limits     below the thresholds a leak is not seen until it is collected.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from concagent.detectors.fingerprint import fingerprint, short_file
from concagent.model import CallSite, Finding, FindingResource

KIND: Final = "leak"
COLLECTED: Final = "collected unclosed"
GROWING: Final = "still open and growing"
AT_EXIT: Final = "open at exit"

EXIT_OPEN: Final = 10
EXIT_SHARE: Final = 100

_ADVICE: Final = {
    COLLECTED: (
        "open it in a `with` block, or give its owner a close() that is called in a `finally`; what was written "
        "and not flushed may be lost"
    ),
    GROWING: "close each when it is no longer needed (`with`), or bound the cache that keeps them and close what it drops",
    AT_EXIT: "open it in a `with` block, use contextlib.ExitStack for many, or register close() with atexit",
}


if TYPE_CHECKING:
    from typing import Protocol

    class Unclosed(Protocol):
        """So many resources of one site were collected unclosed (`openings.UnclosedEvent`)."""

        @property
        def kind(self) -> str:
            """Return the kind of resource."""

        @property
        def site(self) -> CallSite:
            """Return where they were opened."""

        @property
        def count(self) -> int:
            """Return how many since the event before."""

    class Figures(Protocol):
        """Figures of one site at one moment (`openings.OpeningStatistics`, where the fields are explained)."""

        @property
        def kind(self) -> str:
            """Return the kind of resource."""

        @property
        def site(self) -> CallSite:
            """Return where they were opened."""

        @property
        def user_code(self) -> bool:
            """Return whether the site is in the program's own code."""

        @property
        def opened(self) -> int:
            """Return how many were ever opened."""

        @property
        def open(self) -> int:
            """Return how many are open."""

        @property
        def old(self) -> int:
            """Return how many are open for longer than the age that was asked for."""

        @property
        def old_span_ns(self) -> int:
            """Return the time between the openings of the first and the last of the old ones."""


def detect_unclosed(events: Iterable[Unclosed], *, pid: int, wall_seconds: float) -> tuple[Finding, ...]:
    """Return one proven finding for each site, with the number of resources collected unclosed as its count.

    Args:
        events: Any number for the same site; their counts are added up.
        pid: The process, for the findings.
        wall_seconds: The time of the findings.
    """
    counts: dict[tuple[str, CallSite], int] = {}
    for event in events:
        key = (event.kind, event.site)
        counts[key] = counts.get(key, 0) + event.count
    return tuple(
        _finding(
            COLLECTED,
            kind,
            site,
            title=f"{kind} opened at {_shown(site)} was collected without being closed{_times(count)}",
            reason=None,
            count=count,
            pid=pid,
            wall_seconds=wall_seconds,
        )
        for (kind, site), count in counts.items()
    )


def detect_growth(
    now: Sequence[Figures],
    earlier: Sequence[Figures],
    leak_age: float,
    leak_growth: int,
    *,
    pid: int,
    wall_seconds: float,
) -> tuple[Finding, ...]:
    """Return one suspicion for each site where what is open for long gets more.

    Args:
        now: Figures of all sites, whose ``old`` counts what is open for longer than ``leak_age``.
        earlier: The figures of the last look, made in the same way; a site that is not there had none.
        leak_age: Seconds after which something open counts.
        leak_growth: How many of one site must be that old.
        pid: The process, for the findings.
        wall_seconds: The time of the findings.
    """
    before = {(figures.kind, figures.site): figures.old for figures in earlier}
    return tuple(
        _finding(
            GROWING,
            figures.kind,
            figures.site,
            title=(
                f"{figures.old} {_plural(figures.kind, figures.old)} opened at {_shown(figures.site)} "
                f"are open for more than {leak_age:g} s, and they get more"
            ),
            reason=(
                f"{figures.old} open for more than {leak_age:g} s, {before.get((figures.kind, figures.site), 0)} at the "
                f"look before, {figures.open} open in all, of {figures.opened} opened; a cache without a bound looks "
                "the same"
            ),
            count=figures.old,
            pid=pid,
            wall_seconds=wall_seconds,
        )
        for figures in now
        if figures.old >= max(1, leak_growth)
        and figures.old > before.get((figures.kind, figures.site), 0)
        and figures.old_span_ns >= leak_age * 1e9
    )


def detect_open_at_exit(
    statistics: Iterable[Figures], *, pid: int, wall_seconds: float, at_least: int = EXIT_OPEN
) -> tuple[Finding, ...]:
    """Return one suspicion for each line of the program's own code that left many resources open at its end.

    Args:
        statistics: Figures of all sites, read after the program's own exit handlers.
        pid: The process, for the findings.
        wall_seconds: The time of the findings.
        at_least: How many of one site it takes.
    """
    return tuple(
        _finding(
            AT_EXIT,
            figures.kind,
            figures.site,
            title=(
                f"{figures.open} {_plural(figures.kind, figures.open)} opened at {_shown(figures.site)} "
                f"{'was' if figures.open == 1 else 'were'} still open at exit"
            ),
            reason=(
                f"{figures.open} open of {figures.opened} opened there; the program may have meant to keep them to its end"
            ),
            count=figures.open,
            pid=pid,
            wall_seconds=wall_seconds,
        )
        for figures in statistics
        if figures.user_code and figures.open >= max(1, at_least) and figures.open * EXIT_SHARE >= figures.opened
    )


def _finding(
    detail: str,
    resource_kind: str,
    site: CallSite,
    *,
    title: str,
    reason: str | None,
    count: int,
    pid: int,
    wall_seconds: float,
) -> Finding:
    mark = fingerprint(KIND, resource_kind, detail, (site,))
    return Finding(
        kind=KIND,
        resource_kind=resource_kind,
        confidence="proven" if reason is None else "suspected",
        id=f"{pid}-{mark[:8]}",
        fingerprint=mark,
        time=wall_seconds,
        pid=pid,
        title=title,
        resources=(FindingResource(id="r1", kind=resource_kind, created=site),),
        detail=detail,
        reason=reason,
        count=count,
        advice=_ADVICE[detail],
        suppress=f'{KIND}: fingerprint={mark}  reason="..."',
    )


def _shown(site: CallSite) -> str:
    return f"{short_file(site.file)}:{site.line} in {site.function}"


def _times(count: int) -> str:
    return "" if count == 1 else f" ({count} times)"


def _plural(kind: str, count: int) -> str:
    return kind if count == 1 else kind + "s"
