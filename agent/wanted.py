"""Which twin of the core was asked for, said before it is loaded: whoever imports ``core`` gets one for good."""

from __future__ import annotations

from typing import Any

core: str | None = None  # an option of ``install``; None: what the environment says


def note(options: dict[str, Any]) -> None:
    """Note which core these options ask for; what is no core at all is refused where the options are read."""
    global core
    asked = options.get("core")
    if asked in ("c", "python", "auto"):
        core = asked
