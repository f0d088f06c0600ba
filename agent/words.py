"""The closed sets of words that findings, options and metrics use.

A leaf without imports: `config` needs the words at install, long before the first finding needs the value types.
"""

from __future__ import annotations

from typing import Final

SCHEMA: Final = 1

KINDS: Final = (
    "deadlock",
    "stall",
    "lock-order-inversion",
    "order-violation",
    "context-hazard",
    "fork-hazard",
    "orphaned-lock",
    "misuse",
    "long-wait",
    "long-hold",
    "loop-blocked",
    "leak",
    "data-race",
    "atomicity-violation",
)
CONFIDENCES: Final = ("proven", "suspected", "potential", "hint")

# Kinds of resources whose one holder alone can end a wait for them.
SINGLE_HOLDER_KINDS: Final = frozenset({"lock", "rlock", "thread"})
