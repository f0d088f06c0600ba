"""Findings that are known and not to be reported, each with a reason and perhaps a date.

A suppression file is a promise of the past to the present: somebody looked, and decided.  Such promises go wrong in two
ways.  They are too wide, so that a new defect hides behind an old one; therefore a line names one kind (``deadlock:``
never hides a ``leak``), and its patterns are held only against the actors that make the defect up, never against those
that merely queue behind it.  And they outlive what they were made for; therefore a reason is mandatory, and past its
date a line no longer hides, but is named in the finding, so that whoever reads it knows that it is an old acquaintance.

Whatever cannot be understood is an error with its line number: a line that was skipped in silence would be believed.

    deadlock: lock=orders  file=*/bank.py  frame=Bank.transfer*  reason="known, #123"  expires=2027-01-31

``docs/suppressions.md`` is the reference for users.

Assumes    nothing: this module is pure; text and date are passed in.
Invariants S1 a suppression of a kind matches findings of that kind only.
           S2 what ``line_for`` gives, ``parse`` accepts as it stands, and it matches that kind and fingerprint only.
Cost       ``judge`` is O(lines x frames); once per new fingerprint, on the monitor thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatchcase
from typing import Any, Final

from concagent.errors import ConfigError
from concagent.model import KINDS, Finding, FindingActor, FindingResource

ANY_KIND: Final = "*"
PLACEHOLDER: Final = "..."

# A date further ahead is a slip (2207 for 2027); for ever is said by leaving the date out.
MAX_YEARS_AHEAD: Final = 10

_PATTERNS: Final = ("frame", "lock", "file")
_SINGLE: Final = ("fingerprint", "reason", "expires")
_KEYS: Final = (*_PATTERNS, *_SINGLE)

# Strings, compiled at their first use: most programs have no suppression file.
_HEAD: Final = r"([^\s:=\"#]+)\s*:"
_ITEM: Final = r"([A-Za-z_-]+)=(?:\"((?:[^\"\\]|\\.)*)\"|([^\s\"]\S*|))(?=\s|$)"
_DATE: Final = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"


@dataclass(frozen=True, slots=True)
class Suppression:
    """One line of a suppression file.

    Attributes:
        filename: The file, as named in messages.
        line: Its line number, from 1.
        kind: A kind of finding, or ``*`` for all.
        reason: Why it is not to be reported; ``...`` where nobody filled it in.
        frames: Patterns, each of which must match the function or ``file:function`` of some frame.
        locks: Patterns, each of which must match the name or the class (``file:line``) of some resource.
        files: Patterns, each of which must match the file of some frame.
        fingerprint: The fingerprint that the finding must have, or None.
        expires: The last day on which the line hides anything, or None.
    """

    filename: str
    line: int
    kind: str
    reason: str
    frames: tuple[str, ...] = ()
    locks: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    fingerprint: str | None = None
    expires: date | None = None

    def is_expired(self, today: date) -> bool:
        """Return whether the line's last day is over."""
        return self.expires is not None and today > self.expires


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the suppressions say about one finding.

    Attributes:
        suppressed: Whether it is not to be reported.
        by: The line that decided: the one that hides it, or the expired one that would have; None if no line matches.
        note: What to add to the reason of a finding that is reported although a line matches; else empty.
    """

    suppressed: bool
    by: Suppression | None = None
    note: str = ""

    def apply(self, finding: Finding) -> Finding:
        """Return the finding marked as suppressed, or with the note added to its reason, or as it was."""
        if self.suppressed:
            return finding.with_changes(suppressed=True)
        if self.note:
            return finding.with_changes(reason=f"{finding.reason}; {self.note}" if finding.reason else self.note)
        return finding


def parse(text: str, filename: str, today: date) -> tuple[Suppression, ...]:
    """Return the lines of a suppression file in their order; comments and blank lines are left out.

    Expired lines are kept: they are needed to say that they are expired.

    Args:
        text: Contents of the file.
        filename: For messages.
        today: Against which dates far in the future are recognised as slips.

    Raises:
        ConfigError: A line is not understood.  The message begins with ``filename:line``.
    """
    found: list[Suppression] = []
    # Not splitlines(): it also splits at form feeds and the like, and then our line numbers are not the editor's.
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        line = raw.strip()
        if line and not line.startswith("#"):
            found.append(_Parser(filename, number, line, today).suppression())
    return tuple(found)


def matches(suppression: Suppression, finding: Finding) -> bool:
    """Return whether the line is about this finding; its date is not looked at.

    All that the line names must match.  Patterns are held against the actors with the role ``member`` or ``victim``, the
    resources that these hold or wait for, and the sites where those were made and taken; not against actors that are
    only behind.  A pattern matches case-sensitively and as a whole, with ``*``, ``?`` and ``[...]`` as in a shell.
    """
    return _Evidence(finding).matched_by(suppression)


def judge(suppressions: Iterable[Suppression], finding: Finding, today: date) -> Verdict:
    """Return whether the finding is suppressed and by which line: the first that matches and is not expired."""
    evidence = _Evidence(finding)
    expired: Suppression | None = None
    for suppression in suppressions:
        if evidence.matched_by(suppression):
            if not suppression.is_expired(today):
                return Verdict(suppressed=True, by=suppression)
            expired = expired or suppression
    if expired is None:
        return Verdict(suppressed=False)
    note = (
        f"the suppression in {expired.filename}:{expired.line} ({expired.reason}) "
        f"has expired: its last day was {expired.expires}"
    )
    return Verdict(suppressed=False, by=expired, note=note)


def line_for(finding: Finding) -> str:
    """Return the line that suppresses this very finding, wherever its fingerprint turns up again.

    The reason is a placeholder for the user to fill in.  Unfilled it is accepted too: whoever pastes the line at night
    must not find in the morning that the service no longer starts.
    """
    return f'{finding.kind}: fingerprint={_quoted(finding.fingerprint)}  reason="{PLACEHOLDER}"'


class _Parser:
    """Turns one line into a Suppression."""

    def __init__(self, filename: str, number: int, line: str, today: date) -> None:
        self._filename = filename
        self._number = number
        self._line = line
        self._today = today

    def suppression(self) -> Suppression:
        """Return the line's meaning, or raise ConfigError."""
        kind, items = self._split()
        found: dict[str, list[str]] = {key: [] for key in _KEYS}
        for key, value in items:
            if key not in found:
                raise self._error(f"unknown word {key!r}{_nearest(key, _KEYS)}", "any of " + ", ".join(_KEYS))
            if not value.strip():
                raise self._error(f"{key}= is empty", "a value")
            if key in _SINGLE and found[key]:
                raise self._error(f"{key}= is given twice", f"{key}= once")
            found[key].append(value)
        if not found["reason"]:
            raise self._error("there is no reason", 'reason="why this is not to be reported"')
        if not any(found[key] for key in (*_PATTERNS, "fingerprint")):
            raise self._error(
                "nothing says which findings are meant",
                "one or more of frame=, lock=, file=, fingerprint=",
            )
        return Suppression(
            filename=self._filename,
            line=self._number,
            kind=kind,
            reason=found["reason"][0].strip(),
            frames=tuple(found["frame"]),
            locks=tuple(found["lock"]),
            files=tuple(found["file"]),
            fingerprint=found["fingerprint"][0] if found["fingerprint"] else None,
            expires=self._date(found["expires"][0]) if found["expires"] else None,
        )

    def _split(self) -> tuple[str, list[tuple[str, str]]]:
        """Return the kind and the pairs of word and value; a ``#`` after a blank begins a comment."""
        head = re.match(_HEAD, self._line)
        if head is None:
            raise self._error("no kind at the beginning", "KIND: word=value ..., such as deadlock: lock=orders")
        kind = head[1]
        if kind != ANY_KIND and kind not in KINDS:
            raise self._error(f"unknown kind {kind!r}{_nearest(kind, KINDS)}", "* or one of " + ", ".join(KINDS))
        items: list[tuple[str, str]] = []
        rest = self._line[head.end() :].lstrip()
        while rest and not rest.startswith("#"):
            item = re.match(_ITEM, rest)
            if item is None:
                raise self._error(f"cannot read {rest!r}", 'word=value or word="a value with blanks"')
            quoted = item[2]
            value = item[3] if quoted is None else re.sub(r"\\([\"\\])", r"\1", quoted)
            items.append((item[1], value))
            rest = rest[item.end() :].lstrip()
        return kind, items

    def _date(self, text: str) -> date:
        """Return the date; only one of its many ISO forms is allowed, so that all Python versions agree."""
        allowed = f"a date such as 2027-01-31, at most {MAX_YEARS_AHEAD} years ahead; none at all for ever"
        try:
            day = date.fromisoformat(text) if re.fullmatch(_DATE, text) else None
        except ValueError:
            day = None
        if day is None or day.year > self._today.year + MAX_YEARS_AHEAD:
            raise self._error(f"expires={text} is not a date that can be meant", allowed)
        return day

    def _error(self, what: str, allowed: str) -> ConfigError:
        """Return the error for this line."""
        return ConfigError(
            f"{self._filename}:{self._number}: {what}; allowed: {allowed}",
            option="suppressions",
            value=self._line,
            allowed=allowed,
        )


class _Evidence:
    """The names in a finding that patterns are held against, collected once for all lines."""

    def __init__(self, finding: Finding) -> None:
        self._kind = finding.kind
        self._fingerprint = finding.fingerprint
        members = [actor for actor in finding.actors if _is_member(actor)]
        others = [actor for actor in finding.actors if not _is_member(actor)]
        foreign_resources = _resource_ids(others) - _resource_ids(members)
        foreign_actors = {actor.id for actor in others}
        self._locks: set[str] = set()
        self._places = {(frame.file, frame.function) for actor in members for frame in actor.stack}
        for resource in finding.resources:
            if resource.id in foreign_resources:
                continue
            self._locks.update(_lock_names(resource))
            taken = [holder.acquired for holder in resource.holders if holder.actor not in foreign_actors]
            self._places.update((site.file, site.function) for site in (resource.created, *taken) if site)
        for edge in finding.order:
            self._places.update(_places_in(edge))

    def matched_by(self, suppression: Suppression) -> bool:
        """Return whether all that the line names is here."""
        return (
            suppression.kind in (ANY_KIND, self._kind)
            and suppression.fingerprint in (None, self._fingerprint)
            and all(any(fnmatchcase(name, pattern) for name in self._locks) for pattern in suppression.locks)
            and all(any(fnmatchcase(file, pattern) for file, _ in self._places) for pattern in suppression.files)
            and all(
                any(_frame_matches(file, function, pattern) for file, function in self._places)
                for pattern in suppression.frames
            )
        )


def _is_member(actor: FindingActor) -> bool:
    """Return whether the actor is a part of the defect, not only in its neighbourhood."""
    return actor.role in ("member", "victim")


def _resource_ids(actors: Iterable[FindingActor]) -> set[str]:
    """Return the ids of what the actors hold or wait for."""
    ids: set[str] = set()
    for actor in actors:
        ids.update(actor.holds)
        if actor.waits_for is not None:
            ids.add(actor.waits_for)
    return ids


def _lock_names(resource: FindingResource) -> Iterator[str]:
    """Yield the resource's name, and the site that made it, which is its class if it has no name."""
    if resource.name:
        yield resource.name
    if resource.created is not None:
        yield f"{resource.created.file}:{resource.created.line}"


def _places_in(part: Any) -> Iterator[tuple[str, str]]:
    """Yield file and function of each site and frame anywhere in the order edges of a prediction."""
    if isinstance(part, dict):
        file, function = part.get("file"), part.get("function")
        if isinstance(file, str) and isinstance(function, str):
            yield file, function
        for value in part.values():
            yield from _places_in(value)
    elif isinstance(part, list | tuple):
        for value in part:
            yield from _places_in(value)


def _frame_matches(file: str, function: str, pattern: str) -> bool:
    """Return whether the pattern matches the function, qualified or not, alone or after its file.

    The unqualified name counts too, since Python 3.10 knows no other, and a line should do the same on all versions.
    """
    short = function.rpartition(".")[2]
    return any(fnmatchcase(name, pattern) for name in (function, short, f"{file}:{function}", f"{file}:{short}"))


def _quoted(text: str) -> str:
    """Return the text as a value of a line, in quotes only where it needs them."""
    if re.fullmatch(r"[\w.:/-]+", text):
        return text
    return '"' + re.sub(r"([\"\\])", r"\\\1", text) + '"'


def _nearest(word: str, known: Iterable[str]) -> str:
    """Return a question with the nearest known words, or nothing."""
    # Imported late: only an error needs it.
    from difflib import get_close_matches

    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f", did you mean {near[0]}?" if near else ""
