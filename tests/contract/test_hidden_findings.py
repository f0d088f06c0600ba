"""A finding that was told stays, and is no work for the garbage collector."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from concagent import core, ledger
from concagent.model import CallSite, Finding, FindingActor, FindingResource, Holder, StackFrame
from concagent.monitor import hide

if TYPE_CHECKING:
    from collections.abc import Iterator


def _parts(value: Any) -> Iterator[Any]:
    if type(value) is tuple:
        yield value
        for each in value:
            yield from _parts(each)
    elif type(value).__module__ == Finding.__module__:
        yield value
        for name in value.__slots__:
            yield from _parts(getattr(value, name))


class _Name(str):
    """A name that a program has made itself, and that leads to it."""


def _finding(name: str) -> Finding:
    frames = (StackFrame("/srv/bank.py", 10, "pay", "with b:"), StackFrame("/srv/bank.py", 12, "get"))
    actor = FindingActor("1/t1", "thread", 1, 2, name, False, "r1", 1.5, False, ("r2", "r3"), "member", frames)
    site = CallSite("/srv/bank.py", 3, "<module>")
    resource = FindingResource("r1", "lock", "a", site, (Holder("1/t2", site, 1.0),))
    return Finding(
        "deadlock", "lock", "proven", "f1", "p1", 1.0, 1, "a ring", (actor,), (resource,), (("a", "b", "c"),)
    )


@pytest.mark.skipif(core.NAME != "c", reason="the Python core cannot hide anything")
def test_no_part_of_a_hidden_finding_is_seen_by_the_collector() -> None:
    finding = _finding("payer")
    seen = [part for part in _parts(finding) if gc.is_tracked(part)]

    hide(finding)

    assert len(seen) >= 8
    assert [part for part in _parts(finding) if gc.is_tracked(part)] == []


def test_a_hidden_finding_is_the_finding_that_it_was() -> None:
    finding, same = _finding("payer"), _finding("payer")

    hide(finding)
    hide(finding)
    book = ledger.Ledger()
    book.record(finding)
    book.record(finding.with_changes(count=2))
    gc.collect()

    assert finding == same
    assert finding.to_dict() == same.to_dict()
    assert book.findings() == (same.with_changes(count=3),)


def test_what_the_program_has_made_is_left_to_the_collector() -> None:
    name = _Name("payer")
    name.itself = name  # type: ignore[attr-defined]
    gone = weakref.ref(name)
    finding = _finding(name)

    hide(finding)
    del finding, name
    gc.collect()

    assert gone() is None
