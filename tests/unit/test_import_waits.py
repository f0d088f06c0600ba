"""Importlib's table of who waits for which module, in both of its shapes."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from concagent.hooks import imports


class _List(list[Any]):
    """As importlib's own: a list that can be referred to weakly."""


def table_of(shape: str, waits: dict[int, Any]) -> tuple[Any, list[Any]]:
    """Return importlib's table for thread -> lock, and what must be kept alive for it."""
    if shape == "to 3.11":
        return dict(waits), []
    lists = {ident: _List([lock]) for ident, lock in waits.items()}
    return SimpleNamespace(data={ident: weakref.ref(one) for ident, one in lists.items()}), list(lists.values())


def lock(owner: int | None) -> SimpleNamespace:
    """Return what is read of a module's lock."""
    return SimpleNamespace(owner=owner, name="app")


@pytest.mark.parametrize("shape", ["to 3.11", "from 3.12"])
def test_who_waits_for_another_ones_module_is_seen(monkeypatch: pytest.MonkeyPatch, shape: str) -> None:
    held, free, mine = lock(2), lock(None), lock(3)
    table, kept = table_of(shape, {1: held, 2: free, 3: mine})
    monkeypatch.setattr(imports._real, "importlib_bootstrap", SimpleNamespace(_blocking_on=table))

    found = imports._waits()

    assert found == {1: held}
    assert len(kept) in {0, 3}


def test_a_list_that_is_gone_or_empty_is_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    empty, gone = _List(), _List([lock(5)])
    table = SimpleNamespace(data={1: weakref.ref(empty), 2: weakref.ref(gone)})
    del gone
    monkeypatch.setattr(imports._real, "importlib_bootstrap", SimpleNamespace(_blocking_on=table))

    assert imports._waits() == {}


def test_an_importlib_without_the_table_has_no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports._real, "importlib_bootstrap", SimpleNamespace())

    assert imports._waits() == {}


def test_the_table_is_where_this_python_has_it() -> None:
    table = imports._real.importlib_bootstrap._blocking_on

    assert hasattr(getattr(table, "data", table), "items")


def test_a_ring_of_nothing_but_imports_is_importlibs_own_affair() -> None:
    waits = {1: lock(2), 2: lock(1), 3: lock(1), 4: lock(5)}

    assert [imports._is_broken(ident, waits) for ident in (1, 2, 3, 4)] == [True, True, True, False]
