"""What happens to the agent around a fork.

``os.register_at_fork`` cannot be undone, so the three callbacks are registered once and ask whether there is an agent.

CPython 3.12 and later warns at a fork if the process has more than one thread, and counts what the operating system
counts.  In a program that is otherwise single-threaded that thread would be ours, and the warning would be one that
the program does not deserve.  So the agent's thread ends before such a fork and comes back after it.  The
warning is issued after the parent's callbacks, so "after" must be later still: a pending call, which the interpreter
makes in the main thread as soon as it runs Python code again.  That may be code of a callback, ours or one after ours; so
the frame that called ``fork`` is remembered, and until it runs again itself the call is put off.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from concagent import _real

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

WARNS_ABOUT_THREADS = sys.version_info >= (3, 12)


class AtFork(Protocol):
    """Whoever wants to be told of forks."""

    def before_fork(self) -> None:
        """Called in the parent, before."""

    def after_fork_in_parent(self) -> None:
        """Called in the parent, after."""

    def after_fork_in_child(self) -> None:
        """Called in the child."""


_listener: AtFork | None = None
_registered = False
_count_error: Callable[[str, BaseException], None] = lambda _border, _error: None  # noqa: E731
_due: deque[Callable[[], None]] = deque()
_forking: FrameType | None = None  # the frame that called fork, until the fork is over
_trampoline: Any = None  # made once and never freed: it may not die while the interpreter is inside of it


def listen(listener: AtFork | None, count_error: Callable[[str, BaseException], None]) -> None:
    """Tell ``listener`` of each fork from now on; None for nobody."""
    global _listener, _registered, _count_error
    _listener, _count_error = listener, count_error
    if not _registered and hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=lambda: _tell("before_fork"),
            after_in_parent=lambda: _tell("after_fork_in_parent"),
            after_in_child=lambda: _tell("after_fork_in_child"),
        )
        _registered = True


def _tell(method: str) -> None:
    global _forking
    listener = _listener
    if listener is None:
        return
    if method == "before_fork":
        _forking = _real.getframe(1).f_back  # behind the lambda
    elif method == "after_fork_in_child":
        _due.clear()
        _forking = None
    try:
        getattr(listener, method)()
    except Exception as error:  # noqa: BLE001 - border: the fork must go on
        _count_error("fork", error)
    if method == "after_fork_in_parent" and not _due:
        _forking = None  # nobody waits for its end, and a frame keeps all that is in it alive


def caller() -> FrameType | None:
    """Return the frame that called ``fork``, for as long as the callbacks run; None at other times."""
    return _forking


def call_soon(function: Callable[[], None]) -> None:
    """Call ``function`` in the main thread once the fork is over; at once where that cannot be arranged."""
    _due.append(function)
    if not _ask():
        _call_due()


def _ask() -> bool:
    """Ask the interpreter for a pending call; False if it has none to give, or its queue of 32 is full."""
    global _trampoline
    try:
        import ctypes
    except ImportError:
        return False
    if _trampoline is None:
        _trampoline = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(_pending)
    return bool(ctypes.pythonapi.Py_AddPendingCall(_trampoline, None) == 0)


def _pending(_argument: object) -> int:
    frame = _real.getframe(0).f_back
    if frame is not _forking and _forking is not None:
        while frame is not None and frame is not _forking:
            frame = frame.f_back
        if frame is not None and _ask():
            return 0  # in a callback of the fork; a frame that is gone has seen it end
    _call_due()
    return 0


def _call_due() -> None:
    global _forking
    _forking = None
    while _due:
        try:
            _due.popleft()()
        except Exception as error:  # noqa: BLE001 - border: we are inside the interpreter's loop
            _count_error("fork", error)
