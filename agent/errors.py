"""The exception tree: one class for each thing a caller would treat differently.

Messages say what, which, and what to do.  Data is in fields, as strings and serials: an exception can outlive the
thread and the frame that it speaks of, so it never holds either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concagent.model import Finding


class ConcagentError(Exception):
    """Base of all errors raised by concagent.  ``slug`` is an anchor in ``docs/findings.md``."""

    slug: str = "concagent-error"


class ConfigError(ConcagentError, ValueError):
    """An option is unknown, or its type or value is not allowed.  Raised before anything is patched.

    Attributes:
        option: Name of the option, as a keyword of ``install``.
        value: ``repr`` of what was given.
        allowed: What is allowed, in words.
    """

    slug = "config-error"

    def __init__(self, message: str, *, option: str = "", value: str = "", allowed: str = "") -> None:
        """Keep the parts in fields beside the message."""
        super().__init__(message)
        self.option = option
        self.value = value
        self.allowed = allowed


class PatchError(ConcagentError):
    """A primitive could not be replaced or restored; whatever had been replaced was put back."""

    slug = "patch-error"


class DeadlockError(ConcagentError, RuntimeError):
    """Raised out of a victim's ``acquire`` or ``join`` under ``recover="raise"``; the wait would never have ended.

    Attributes:
        finding: The finding that explains the deadlock, complete.
    """

    slug = "deadlock"

    def __init__(self, message: str, finding: Finding | None = None) -> None:
        """Keep the finding beside the one-line message."""
        super().__init__(message)
        self.finding = finding


class InvariantError(ConcagentError):
    """An invariant of concagent itself does not hold: a bug in concagent; please report it."""

    slug = "invariant-error"
