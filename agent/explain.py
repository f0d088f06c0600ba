"""What a finding means and how to cure it, out of ``docs/findings.md``.

Whoever reads a report at three in the morning has a terminal and no browser, so ``concagent explain SLUG`` prints the
section of the one text that the documentation shows too.  A second copy for the program would be wrong after the first
edit.  The wheel carries the file as ``concagent/docs/findings.md``; in a checkout it lies beside the package's folder.

A section is a heading of level two or three whose whole text is one word in kebab case: the slug.  It
ends where the next heading of its own or a higher level begins, so ``misuse`` includes ``double-release``.

Invariants X1 each kind of ``model.KINDS`` and each ``slug`` of ``errors`` is a section (tests/unit/test_docs.py).
Cost       one small file is read per call; nothing is kept, nothing is read at import.
"""

from __future__ import annotations

import os
import re
from typing import Final

from concagent._real import open_file
from concagent.errors import ConcagentError

_HEADING: Final = re.compile(r"(#{1,3}) (.+)")
_SLUG: Final = re.compile(r"[a-z]+(?:-[a-z]+)*")


def slugs() -> tuple[str, ...]:
    """Return all slugs in the order of the text.

    Raises:
        ConcagentError: The text is not where an install puts it.
    """
    return tuple(_sections(_read()))


def explain(slug: str) -> str:
    """Return the section of a finding, a sub-kind or an error, as Markdown with its heading.

    Args:
        slug: As in a finding's ``kind`` or ``detail``, or an error's ``slug``; case and a leading ``#`` do not count, and
            blanks are as good as hyphens.

    Raises:
        ConcagentError: There is no such section; the message lists those that exist.
    """
    sections = _sections(_read())
    wanted = "-".join(slug.lstrip("# ").lower().split())
    if wanted not in sections:
        raise ConcagentError(f"nothing to explain under {slug!r}; known: {', '.join(sections)}")
    return sections[wanted]


def _read() -> str:
    """Return the text of ``findings.md``, of the wheel or of the checkout."""
    package = os.path.dirname(os.path.abspath(__file__))
    candidates = [os.path.join(base, "docs", "findings.md") for base in (package, os.path.dirname(package))]
    for path in candidates:
        try:
            with open_file(path, encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            continue
    raise ConcagentError(f"findings.md is missing, looked for {' and '.join(candidates)}; reinstall concagent")


def _sections(text: str) -> dict[str, str]:
    """Return slug -> section; a section of level two includes its subsections."""
    lines = text.splitlines()
    headings: list[tuple[int, int, str]] = []
    fenced = False
    for number, line in enumerate(lines):
        if line.startswith("```"):
            fenced = not fenced
        match = None if fenced else _HEADING.match(line)
        if match:
            headings.append((number, len(match[1]), match[2].strip()))
    sections: dict[str, str] = {}
    for index, (start, level, title) in enumerate(headings):
        if level > 1 and _SLUG.fullmatch(title):
            later = (number for number, other, _ in headings[index + 1 :] if other <= level)
            sections[title] = "\n".join(lines[start : next(later, len(lines))]).strip() + "\n"
    return sections
