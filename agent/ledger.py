"""What has been found: one entry a fingerprint, a count for each repeat.

Invariants L1 only the monitor's thread writes; readers get tuples, made by one atomic copy.
           L2 a fingerprint is delivered once in a process, and once more when what was suspected is proven; repeats raise
              ``count`` and the metric, nothing else.
           L3 memory is bounded: after ``FINDING_LIMIT`` fingerprints further ones are counted as dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from concagent.model import Finding

FINDING_LIMIT: Final = 2000

Label = tuple[str, str, str]


class Ledger:
    """The findings of one process."""

    def __init__(self) -> None:
        """Start empty."""
        self._findings: dict[str, Finding] = {}
        self._counts: dict[Label, int] = {}
        self.suppressed = 0
        self.dropped = 0

    def record(self, finding: Finding) -> bool:
        """Count a finding; True if it is the first of its fingerprint, or the first that is proven, and to be delivered."""
        label = (finding.kind, finding.resource_kind, finding.confidence)
        self._counts[label] = self._counts.get(label, 0) + finding.count
        known = self._findings.get(finding.fingerprint)
        if known is not None:
            is_upgrade = (known.confidence, finding.confidence) == ("suspected", "proven")
            latest = finding if is_upgrade else known
            self._findings[finding.fingerprint] = latest.with_changes(count=known.count + finding.count - is_upgrade)
            return is_upgrade
        if len(self._findings) >= FINDING_LIMIT:
            self.dropped += 1
            return False
        self._findings[finding.fingerprint] = finding
        return True

    def findings(self) -> tuple[Finding, ...]:
        """Return the findings that were not suppressed, oldest first, with their present counts."""
        return tuple(finding for finding in list(self._findings.values()) if not finding.suppressed)

    def counts(self) -> tuple[tuple[Label, int], ...]:
        """Return ((kind, resource kind, confidence), count), sorted; suppressed ones are not in it."""
        return tuple(sorted(self._counts.items()))

    def suppress(self, finding: Finding) -> None:
        """Count a finding that a suppression hides."""
        self.suppressed += finding.count

    def clear(self) -> None:
        """Forget everything: a fork's child starts anew, and so does a test."""
        self.__init__()  # type: ignore[misc]
