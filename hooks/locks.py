"""Puts the recording Lock and RLock in place of the originals.

Three names make locks: ``threading.Lock``, ``_thread.allocate_lock`` and ``_thread.RLock`` (``threading.RLock`` is a Python
function that looks up ``threading._CRLock`` at each call, so it stays and so do copies of it).  Modules that
copied one of these before us are found by a scan of module globals.

``threading._allocate_lock`` makes the locks that ``Condition.wait`` sleeps on; they are no locks to report, but whoever releases
one has ended a wait, and ours remember him.

Left alone  the private locks of ``Thread``.  The import system, which looks up ``_thread.allocate_lock`` at
            run time, is given a private copy of that module: a module lock of ours would re-enter us on every import in a hook.
"""

from __future__ import annotations

import _thread
import gc
import queue
import sys
import threading
from typing import TYPE_CHECKING, Any

from concagent import _real, core
from concagent.hooks import sync as sync_waits
from concagent.hooks import threads as thread_waits
from concagent.hooks.patching import Patch, PatchSet, Switch

if TYPE_CHECKING:
    from collections.abc import Callable

_SKIP = ("_thread", "threading", "importlib._bootstrap", "_frozen_importlib")


def add_patches(patches: PatchSet, turn_on: Callable[[], None], turn_off: Callable[[], None]) -> None:
    """Append the patches of this family; ``turn_on`` runs after them, ``turn_off`` before they are undone."""
    for file in (threading.__file__, queue.__file__, sync_waits.__file__, thread_waits.__file__):
        core.add_transparent_file(file)
    lock = core.Lock if core.INSTANTIABLE else core.allocate_lock
    patches.add(
        Patch(_real.importlib_bootstrap, "_thread", _real.thread_module_copy, "importlib._bootstrap._thread"),
        Patch(_thread, "allocate_lock", core.allocate_lock, "_thread.allocate_lock"),
        Patch(_thread, "allocate", core.allocate_lock, "_thread.allocate"),
        Patch(_thread, "LockType", core.Lock, "_thread.LockType"),
        Patch(_thread, "RLock", core.RLock, "_thread.RLock"),
        Patch(threading, "Lock", lock, "threading.Lock"),
        Patch(threading, "_CRLock", core.RLock, "threading._CRLock"),
        Patch(threading, "_allocate_lock", core.waiter_lock, "threading._allocate_lock"),
    )
    if hasattr(_thread, "lock"):  # 3.13 and later
        patches.add(Patch(_thread, "lock", core.Lock, "_thread.lock"))
    if hasattr(threading, "_LockType"):
        patches.add(Patch(threading, "_LockType", core.Lock, "threading._LockType"))
    patches.add_alias_scan(_real.allocate_lock, core.allocate_lock, _SKIP, "copies of _thread.allocate_lock")
    patches.add_alias_scan(_real.LockType, core.Lock, _SKIP, "copies of _thread.LockType")
    patches.add_alias_scan(_real.RLockType, core.RLock, _SKIP, "copies of _thread.RLock")
    patches.add(Switch("recording", turn_on, turn_off))


def foreign_patch() -> str | None:
    """Return who has replaced ``threading`` before us, None if nobody has."""
    lock: Any = _thread.allocate_lock
    if lock is core.allocate_lock:
        return None
    for name in ("gevent", "eventlet"):
        module = getattr(lock, "__module__", "") or ""
        if module.partition(".")[0] == name or _patched_by(name):
            return name
    if type(lock) is not type(len) and not isinstance(lock, type):
        return getattr(lock, "__module__", None) or "another tool"
    return None


def _patched_by(name: str) -> bool:
    monkey = sys.modules.get(f"{name}.monkey") if name == "gevent" else sys.modules.get("eventlet.patcher")
    if monkey is None:
        return False
    asked = getattr(monkey, "is_module_patched", None) or getattr(monkey, "is_monkey_patched", None)
    try:
        return bool(asked is not None and (asked("threading") or asked("thread")))
    except Exception:  # noqa: BLE001 - border: somebody else's function
        return False


# (module, attribute, guarded at forks by bound methods of the old lock that the module registered)
_PLACES = (
    ("logging", "_lock", False),
    ("tempfile", "_once_lock", False),
    ("_strptime", "_cache_lock", False),
    ("webbrowser", "_lock", False),
    ("sysconfig", "_CONFIG_VARS_LOCK", False),
    ("asyncio.events", "_lock", False),
    ("asyncio.mixins", "_global_lock", False),
    ("concurrent.futures.thread", "_global_shutdown_lock", True),
)


class Adoption:
    """Replaces free locks that existed before install, from a curated list of the standard library's places.

    A lock is exchanged only while this is the only thread: another one could have read the old lock from its place and
    be about to take it, and then two threads would be in one critical section.  What is not exchanged is counted.
    """

    label = "adopted locks"

    def __init__(self) -> None:
        """Prepare nothing; ``apply`` looks at the program as it is then."""
        self.untracked = 0
        self._done: list[tuple[object, str, object, object]] = []
        self._guarded: list[Any] = []

    def apply(self) -> None:
        """Replace what is free, once, and count what is known to stay untracked."""
        if self._done:
            return
        alone = len(_real.current_frames()) == 1
        for owner, name, guarded in _places():
            old = getattr(owner, name, None)
            new = _twin_of(old)
            if new is not None and alone and _is_free(old):
                setattr(owner, name, new)
                self._done.append((owner, name, old, new))
                if guarded:
                    self._guarded.append(new)
        _adopt_queues(alone)
        self.untracked = _count_known_untracked()

    def restore(self) -> None:
        """Put the old locks back where ours are still in place and free."""
        for owner, name, old, new in reversed(self._done):
            if getattr(owner, name, None) is new and _is_free(new):
                setattr(owner, name, old)
        self._done.clear()
        self._guarded.clear()

    def before_fork(self) -> None:
        """Take the locks that their modules mean to take before a fork, so that no child finds them held."""
        for lock in self._guarded:
            lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Let go of them again."""
        for lock in reversed(self._guarded):
            lock.release()

    def after_fork_in_child(self) -> None:
        """Free them in the child."""
        for lock in self._guarded:
            lock._at_fork_reinit()


def _places() -> list[tuple[object, str, bool]]:
    places: list[tuple[object, str, bool]] = [
        (sys.modules[module], name, guarded) for module, name, guarded in _PLACES if module in sys.modules
    ]
    logging = sys.modules.get("logging")
    if logging is not None:
        handlers = [reference() for reference in getattr(logging, "_handlerList", [])]
        places += [(handler, "lock", False) for handler in (*handlers, logging.lastResort) if handler is not None]
    if "unittest.mock" in sys.modules:
        places.append((sys.modules["unittest.mock"].NonCallableMock, "_lock", False))
    places += [(found, name, False) for found, name in _cached_properties()]
    return places


def _adopt_queues(alone: bool) -> None:
    """Give queues that exist, are free and have no waiters a mutex of ours; their three conditions share it."""
    if not alone:
        return
    # By type: `isinstance` asks an object that is none for its ``__class__``, and that runs the code of proxies.
    kinds = _with_derived(queue.Queue)
    for found in gc.get_objects():
        if type(found) in kinds and type(getattr(found, "mutex", None)) is _real.LockType:
            conditions = (found.not_empty, found.not_full, found.all_tasks_done)
            plain = all(type(c) is threading.Condition and c._lock is found.mutex for c in conditions)  # type: ignore[attr-defined]
            if plain and _is_free(found.mutex) and not any(c._waiters for c in conditions):
                found.mutex = core.Lock() if core.INSTANTIABLE else core.allocate_lock()
                found.not_empty = _real.Condition(found.mutex)
                found.not_full = _real.Condition(found.mutex)
                found.all_tasks_done = _real.Condition(found.mutex)


def _with_derived(base: type) -> set[type]:
    """Return a class and all that are derived from it."""
    kinds = {base}
    derived: type
    for derived in type.__subclasses__(base):
        kinds |= _with_derived(derived)
    return kinds


def _count_known_untracked() -> int:
    """Return how many module globals still are original locks; those of ``threading`` and the import system are not meant."""
    kinds = (_real.LockType, _real.RLockType)
    found = {
        id(value)
        for name, module in list(sys.modules.items())
        if name not in _SKIP and not name.startswith("concagent")
        for value in list(getattr(module, "__dict__", {}).values())
        if type(value) in kinds
    }
    return len(found)


def _cached_properties() -> list[tuple[object, str]]:
    """Return the locks of ``functools.cached_property`` objects (until 3.11 each has one for all instances)."""
    if sys.version_info >= (3, 12):
        return []
    import functools

    found: list[tuple[object, str]] = []
    for module in list(sys.modules.values()):
        for value in list(getattr(module, "__dict__", {}).values()):
            if isinstance(value, type):
                attributes = list(value.__dict__.values())
                found += [(a, "lock") for a in attributes if isinstance(a, functools.cached_property)]
    return found


def _twin_of(lock: object) -> Any:
    if type(lock) is _real.LockType:
        return core.allocate_lock()
    if type(lock) is _real.RLockType:
        return core.RLock()
    return None


def _is_free(lock: object) -> bool:
    """Return whether nobody holds the lock: it can be taken at once, and was not ours already."""
    if getattr(lock, "_is_owned", bool)():
        return False
    taken: bool = lock.acquire(False)  # type: ignore[attr-defined]
    if taken:
        lock.release()  # type: ignore[attr-defined]
    return taken
