"""What the line that awaits calls the lock, event or queue that it awaits: ``async with self._lock`` says it.

An asyncio lock is made without us, so its creating line is not known, as it is for a thread's lock.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from concagent.sources import source_line

if TYPE_CHECKING:
    from concagent.model import CallSite

_NAME = r"(?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)"
_ENTERED = re.compile(rf"async with {_NAME}(?: as \w+)?\s*:")
_AWAITED = re.compile(rf"await {_NAME}\.(?:acquire|wait|wait_for|get|put|join)\(")


def called(site: CallSite) -> str | None:
    """Return the dotted name in the line of a wait, ``self`` replaced by the class; None where it is not that plain."""
    line = source_line(site.file, site.line)
    match = _ENTERED.search(line) or _AWAITED.search(line)
    if match is None:
        return None
    name = match["name"]
    owner = site.function.rpartition(".")[0].rpartition(".")[2]
    if name.startswith("self.") and owner and owner != "<locals>":
        return owner + name[len("self") :]
    return name
