from __future__ import annotations

from concagent import ledger
from concagent.ledger import Ledger
from concagent.model import Finding


def finding(mark: str = "a", **fields) -> Finding:
    known = {
        "kind": "deadlock",
        "resource_kind": "lock",
        "confidence": "proven",
        "id": mark,
        "time": 1.0,
        "pid": 1,
        "title": "",
    }
    return Finding(**{**known, "fingerprint": mark, **fields})


def test_the_first_of_a_fingerprint_is_delivered_and_a_repeat_is_counted():
    book = Ledger()

    assert book.record(finding("a"))
    assert not book.record(finding("a", count=3))
    assert [(one.fingerprint, one.count) for one in book.findings()] == [("a", 4)]
    assert book.counts() == ((("deadlock", "lock", "proven"), 4),)


def test_counts_are_sorted_by_label():
    book = Ledger()
    book.record(finding("a", kind="stall"))
    book.record(finding("b"))

    assert [label[0] for label, _ in book.counts()] == ["deadlock", "stall"]


def test_memory_is_bounded_and_what_does_not_fit_is_counted(monkeypatch):
    monkeypatch.setattr(ledger, "FINDING_LIMIT", 2)
    book = Ledger()

    delivered = [book.record(finding(mark)) for mark in "abca"]

    assert delivered == [True, True, False, False]
    assert book.dropped == 1
    assert book.findings()[0].count == 2


def test_a_suppressed_finding_is_counted_and_not_listed():
    book = Ledger()
    book.suppress(finding("a", count=2, suppressed=True))
    book.record(finding("b", suppressed=True))

    assert book.suppressed == 2
    assert book.findings() == ()


def test_after_clear_a_fingerprint_is_new_again():
    book = Ledger()
    book.record(finding("a"))

    book.clear()

    assert book.counts() == ()
    assert book.record(finding("a"))


def test_a_suspicion_that_is_proven_is_delivered_once_more():
    book = Ledger()

    delivered = [book.record(finding("a", confidence=word)) for word in ("suspected", "suspected", "proven", "proven")]

    assert delivered == [True, False, True, False]
    assert [(one.confidence, one.count) for one in book.findings()] == [("proven", 3)]


def test_a_proof_does_not_become_a_suspicion():
    book = Ledger()

    delivered = [book.record(finding("a", confidence=word)) for word in ("proven", "suspected")]

    assert delivered == [True, False]
    assert [one.confidence for one in book.findings()] == ["proven"]
