"""The twins of the core, and how they are compared with the originals."""

# ruff: noqa: ARG002  a listener has the parameters that the core gives

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import concagent
from concagent import _real, core, rings, state

FORCED = os.environ.get("CONCAGENT_CORE") or "auto"
NAMES = [FORCED] if FORCED in ("python", "c") else ["python", "c"]


def _load(name: str) -> Any:
    """Return a twin, ready for use; skip the test if it is not built and was not forced."""
    if name == "c" and FORCED != "c" and core._load_c()[0] is None:
        pytest.skip("the C core is not built")
    twin, _reason = core.choose(name)
    if name == "c" and core.NAME != "c" and not getattr(twin, "_configured_by_tests", False):
        twin.configure(core._describe_thread, rings.walk, _real.allocate_lock, _real.RLockType)
        twin._configured_by_tests = True
    return twin


class Recorder(rings.Listener):
    """A listener that remembers."""

    def __init__(self) -> None:
        self.rings: list[list[Any]] = []
        self.misuses: list[tuple[str, Any, Any]] = []
        self.orphans: list[Any] = []
        self.answer: BaseException | None = None

    def ring(self, path: Any) -> BaseException | None:
        self.rings.append(list(path))
        return self.answer

    def orphan(self, record: Any, wait: Any, hold: Any) -> BaseException | None:
        self.orphans.append(record)
        return None

    def misuse(self, detail: str, cell: Any, hold: Any, frame: Any) -> None:
        self.misuses.append((detail, cell, hold))


@pytest.fixture(params=NAMES)
def twin(request: pytest.FixtureRequest) -> Any:
    """Each twin of the core that there is."""
    return _load(request.param)


@pytest.fixture
def recorder(twin: Any) -> Iterator[Recorder]:
    """Let the twin record for the length of a test, and tell what it said."""
    listener = Recorder()
    rings.listen(listener)
    twin.start(listener)
    try:
        yield listener
    finally:
        twin.stop()
        rings.listen(None)
        twin.reset_for_tests()


@pytest.fixture
def agent() -> Iterator[Any]:
    """The agent, installed for the length of a test."""
    running = concagent.install(stderr=False, log=False, report_signal="off", socket=False)
    state.reset_for_tests()  # alarms of other tests went off inside of hooks
    try:
        yield running
    finally:
        concagent.uninstall()


@pytest.fixture
def answer() -> Callable[[Callable[[], Any]], tuple[str, str]]:
    """Return a function that says in words what a call does."""
    return _answer


def _answer(call: Callable[[], Any]) -> tuple[str, str]:
    """Return what a call does, in words: its result, or the exception with its message; addresses left out."""
    try:
        value = call()
    except BaseException as error:  # noqa: BLE001 - the comparison is about exceptions
        return type(error).__name__, plain(str(error))
    return "returns", plain(repr(value))


def plain(text: str) -> str:
    """Return a text without addresses."""
    return re.sub(r"0x[0-9a-f]+", "0x", text)
