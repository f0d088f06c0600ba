"""What has been said of waits, and how surely: each is told once, and once more when what was suspected is proven.

A wait is a pair (actor's serial, epoch): the same pair at two moments is the same wait.

Invariants T1 written and read by the monitor's thread only.
           T2 what is proven is never told as suspected afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    Wait = tuple[int, int]

_FORGET_ABOVE = 256  # waits; below it is not worth the while


class Told:
    """Waits of which findings speak."""

    def __init__(self) -> None:
        """Start with none."""
        self._proven: set[Wait] = set()
        self._all: set[Wait] = set()

    def add(self, waits: Iterable[Wait], *, proven: bool) -> None:
        """Note that a finding speaks of these waits."""
        waits = set(waits)
        self._all |= waits
        if proven:
            self._proven |= waits

    def __contains__(self, wait: Wait) -> bool:
        """Return whether a finding speaks of this wait, however surely."""
        return wait in self._all

    def of(self, *, proven: bool) -> Collection[Wait]:
        """Return the waits of which nothing new would be said: by a proof, or by a suspicion."""
        return self._proven if proven else self._all

    def covers(self, waits: Collection[Wait], *, proven: bool) -> bool:
        """Return whether a finding about these waits, proven or suspected, would say nothing new."""
        return set(waits) <= (self._proven if proven else self._all)

    def forget(self, lasting: Collection[Wait]) -> None:
        """Drop the waits that are over, so that memory follows the number of blocked threads."""
        if len(self._all) > _FORGET_ABOVE:
            self._all &= set(lasting)
            self._proven &= self._all
