"""Publishes waits in ``queue.SimpleQueue.get``, which is written in C and blocks there.

The type is immutable, and a derived type in its place would not do: objects that exist, copies of the name and ``isinstance``
know the original.  So the C core puts a ``get`` of ours into the type itself.  Everything stays what it is, derived classes,
pickling and the type's name included; an item that is there is taken by the original at once, and only who has to wait
comes here.  The Python core cannot do that and leaves the type alone: who waits there counts as alive.

A thread of a pool that waits for work is marked as such: a program of which nothing else is left is idle, not stuck.

Not seen   who puts: the queue's lock is inside of it, and ``put`` is left alone.
"""

from __future__ import annotations

import functools
import queue
from collections import deque
from typing import Any, Final

from concagent import _real, core, state
from concagent.words import NO_WORK

_type: Final[Any] = queue.SimpleQueue
_original: Final = _type.__dict__.get("get")
_POOL: Final = ("concurrent.futures.thread", "_worker")

# id -> cell, for queues that somebody waited for; the weak reference says when one is gone, and whose cell is to be dropped.
_cells: dict[int, state.SyncCell] = {}
_gone: deque[Any] = deque()


class _Reference(_real.weak_reference):  # type: ignore[misc, valid-type]
    """Tells that a queue is gone without running Python code where it went."""

    __slots__ = ("key",)


def _cell_of(target: Any, at_work: bool) -> state.SyncCell:
    while _gone:
        try:
            key = _gone.popleft().key
        except IndexError:
            break
        known = _cells.get(key)
        if known is not None and known.reference() is None:
            del _cells[key]
    cell = _cells.get(id(target))
    if cell is None or cell.reference() is not target:
        cell = state.SyncCell("queue", target)
        cell.detail = _no_work if at_work else _empty
        cell.reference = reference = _Reference(target, _gone.append)
        reference.key = id(target)
        _cells[id(target)] = cell
    return cell


def _empty(waited: Any) -> str:
    return "empty" if _type.empty(waited) else "no longer empty"


def _no_work(_waited: Any) -> str:
    return NO_WORK


def _original_get(*args: Any, **kwargs: Any) -> Any:
    return _original(*args, **kwargs)


def get(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Take the next item as the original does; publish the wait for it."""
    block = args[0] if args else kwargs.get("block", True)
    timeout = args[1] if len(args) > 1 else kwargs.get("timeout")
    if not core.is_recording() or not block or not _type.empty(self):
        return _original_get(self, *args, **kwargs)
    mark = core.wait_mark()
    try:
        try:
            _publish(self, timeout is not None)
        except Exception as error:  # noqa: BLE001 - border: the wait goes on with plain semantics
            state.count_error("hook", error)
        return _original_get(self, *args, **kwargs)
    finally:
        try:  # 3.10 looks for signals at the beginning of a handler, but for a ``try``
            core.end_waits(mark)
        finally:
            pass


def _publish(target: Any, timed: bool) -> None:
    frame = _real.getframe(2)
    module, function = frame.f_globals.get("__name__"), frame.f_code.co_name
    core.begin_wait(_cell_of(target, (module, function) == _POOL), timed, frame)


class Replacement:
    """A step of a `PatchSet`: our ``get`` in the type, or nothing where that cannot be."""

    label = "queue.SimpleQueue.get"

    def __init__(self) -> None:
        """Prepare nothing."""
        self._ours: Any = None

    def apply(self) -> None:
        """Put ours in, once."""
        if self._ours is None and core.NAME == "c" and type(_original) is type(list.append):
            ours = core.simple_get(functools.wraps(_original)(get), queue.Empty)
            core.replace_method(_type, "get", ours)
            self._ours = ours

    def restore(self) -> None:
        """Put the original back, unless somebody else has replaced ours."""
        if self._ours is not None and _type.__dict__["get"] is self._ours:
            core.replace_method(_type, "get", _original)
        self._ours = None
