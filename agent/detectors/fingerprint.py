"""The identity of a defect across runs, processes and machines.

Two findings are the same defect if they are of one kind and speak of the same places in the code.  Not of the same
objects: serials, addresses, process ids and thread names differ from run to run.  Nor of the same absolute paths: the
laptop, the container and the virtual environment have different prefixes, and a suppression written on one must hold on
the others; the last two components tell files of one program apart well enough.

Invariants F1 the order and the repetition of the sites do not matter: a ring has no first member, and five threads at
           one place are the same defect as four.
Limits     a line number is part of it: code inserted above a site makes a new fingerprint.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from concagent.model import CallSite

_LENGTH: Final = 16
_COMPONENTS: Final = 2


def fingerprint(kind: str, resource_kind: str, detail: str | None, sites: Iterable[CallSite | None]) -> str:
    """Return 16 hexadecimal digits that are equal for equal defects.

    Args:
        kind: Kind of finding.
        resource_kind: Kind of resource.
        detail: Sub-kind, or None.
        sites: The places that make the defect up, in any order; None for an unknown one.
    """
    import hashlib  # loads OpenSSL; only a finding needs it

    places = sorted({place(site) for site in sites})
    text = "\x1f".join((kind, resource_kind, detail or "", *places))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:_LENGTH]


def place(site: CallSite | None) -> str:
    """Return the site as text that is the same on all machines: two path components, line, function."""
    if site is None:
        return "unknown"
    return f"{short_file(site.file)}:{site.line}:{site.function}"


def short_file(file: str) -> str:
    """Return the last two components of a path, separated by a slash."""
    return "/".join(file.replace("\\", "/").split("/")[-_COMPONENTS:])
