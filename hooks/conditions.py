"""Notices who waits on a condition, or notifies it, without having its lock.

Python refuses that with a ``RuntimeError``, and then nobody has been woken.  Where the error is swallowed, in a thread that dies
of it or by a general ``except``, what is left is a waiter that sleeps for ever, and nothing that says why.

``notify`` is called by each ``Event.set`` and ``Queue.put``, so nothing stands before it.  But it asks first, as ``wait`` does,
whether the lock is the caller's: a condition with an ``RLock`` asks the lock, another one tries to take it in
``Condition._is_owned``.  Both are ours, and the answer "no" is rare enough to look who asks.

Never      a program that asks for itself (``condition._is_owned()``), one that expects the refusal (`state.expects_refusal`).
Not seen   conditions with locks of other makes that have an ``_is_owned`` of their own, and those older than we are.
"""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any

from concagent import _real, core, state
from concagent.hooks.patching import Patch, PatchSet

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_condition_is_owned: Callable[[Any], bool] = threading.Condition._is_owned  # type: ignore[attr-defined]
_ASKING = frozenset({threading.Condition.wait.__code__, threading.Condition.notify.__code__})


@functools.wraps(_condition_is_owned)
def is_owned(self: Any) -> bool:
    """Return what the original does, and look who asks where it is False."""
    owned = _condition_is_owned(self)
    if not owned:
        not_owned()
    return owned


def not_owned() -> None:
    """Say that a condition is about to refuse, if it is one that asks."""
    try:
        if not core.is_recording():
            return
        frame: FrameType | None = _real.getframe(1)
        while frame is not None and frame.f_code.co_filename.startswith(state.own_folders):
            frame = frame.f_back
        if frame is not None and frame.f_code in _ASKING:
            _tell(frame.f_locals["self"], frame)
    except Exception as error:  # noqa: BLE001 - border: the condition refuses, whatever we say of it
        state.count_error("hook", error)


def _tell(condition: Any, frame: FrameType) -> None:
    caller: FrameType | None = frame
    while caller is not None and core.is_transparent(caller.f_code):
        caller = caller.f_back
    if caller is not None and not state.expects_refusal(state.raw_stack(caller), frame.f_code.co_name):
        core.tell_misuse("without-lock", state.condition_cell(condition, condition, "condition", None), caller)


def add_patches(patches: PatchSet) -> None:
    """Append the patches of this family; after those of `sync`, which says what a condition is."""
    condition = threading.Condition
    core.configure_not_owned(not_owned)
    patches.add(Patch(condition, "_is_owned", core.sync_method("is_owned", is_owned), "threading.Condition._is_owned"))
