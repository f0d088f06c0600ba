"""Names of locks are found among the globals of the modules that were made from a file, whatever modules come and go."""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import TYPE_CHECKING

from concagent import _real, naming
from concagent.model import CallSite

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def _module(name: str, file: object, **values: object) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(values, __file__=file)
    return module


def _name(target: object, file: str) -> str | None:
    return naming.name_of(target, CallSite(file, 1, "<module>"))


def test_a_global_of_a_module_that_was_loaded_after_the_last_look_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = _real.allocate_lock()
    naming.know_modules()

    monkeypatch.setitem(sys.modules, "late", _module("late", "/no/late.py", guard=lock))

    assert _name(lock, "/no/late.py") == "guard"


def test_a_module_that_is_gone_or_was_replaced_has_no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = _real.allocate_lock()
    monkeypatch.setitem(sys.modules, "early", _module("early", "/no/early.py", guard=lock))
    assert _name(lock, "/no/early.py") == "guard"

    monkeypatch.setitem(sys.modules, "early", _module("early", "/no/other.py", guard=lock))  # as many as before

    assert _name(lock, "/no/early.py") is None


def test_two_modules_made_from_one_file_are_both_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = _real.allocate_lock(), _real.allocate_lock()
    monkeypatch.setitem(sys.modules, "one", _module("one", "/no/both.py", a=first))
    monkeypatch.setitem(sys.modules, "two", _module("two", "/no/both.py", b=second))

    assert (_name(first, "/no/both.py"), _name(second, "/no/both.py")) == ("a", "b")


def test_what_is_no_module_among_the_modules_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = _real.allocate_lock()
    monkeypatch.setitem(sys.modules, "nothing", None)
    monkeypatch.setitem(sys.modules, "odd", object())
    monkeypatch.setitem(sys.modules, "odder", _module("odder", ["/no/list.py"], guard=lock))
    monkeypatch.setitem(sys.modules, "plain", _module("plain", "/no/plain.py", guard=lock))

    assert _name(lock, "/no/plain.py") == "guard"


def test_a_lazy_module_is_not_loaded_by_being_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "lazy_one.py"
    path.write_text("raise SystemExit('loaded')\n")
    spec = importlib.util.spec_from_file_location("lazy_one", path)
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "lazy_one", module)
    spec.loader.exec_module(module)

    naming.know_modules()

    assert _name(object(), str(path)) is None
    assert type(module) is not types.ModuleType


def test_the_index_keeps_no_module_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    module = _module("brief", "/no/brief.py")
    monkeypatch.setitem(sys.modules, "brief", module)
    naming.know_modules()
    count = sys.getrefcount(module)

    naming.know_modules()
    _name(object(), "/no/brief.py")

    assert sys.getrefcount(module) == count
