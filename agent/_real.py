"""The originals, saved before anything of ours is patched.

Our own code must never run through its own hooks: a monitor that takes a tracked lock would watch itself, find its own
waits, and could deadlock against the program.  So everything the agent needs that it also replaces (locks, threads,
``open``) or that a test may fake (clocks) is taken from here and from nowhere else.  This module is a leaf: it imports
nothing of ours, and it must be imported before the first patch, which ``concagent/__init__`` guarantees.

Invariants R1 every name here is bound once, at import, and never rebound.
           R2 nothing here is patched by ``hooks``: the names live in this module's globals only.
Limits     if another tool (gevent, eventlet) replaced a primitive before us, its replacement is what we save;
           ``bootstrap`` refuses to install then.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal's C half, of plain numbers
import _thread
import builtins
import importlib._bootstrap as _importlib_bootstrap
import os
import signal
import sys
import threading
import time
import types
import weakref

TYPE_CHECKING = False  # typing's constant without typing, which costs more than the rest of `import concagent`
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

allocate_lock: Final = _thread.allocate_lock
LockType: Final[type] = type(_thread.allocate_lock())
RLockType: Final[Any] = _thread.RLock
INSTANTIABLE: Final = sys.version_info >= (3, 13)  # ``type(Lock())()`` is refused before
start_new_thread: Final = _thread.start_new_thread
get_ident: Final = _thread.get_ident
thread_count: Final[Any] = _thread._count
get_native_id: Final = getattr(_thread, "get_native_id", lambda: 0)
ThreadLocal: Final = _thread._local

Thread: Final = threading.Thread
Condition: Final = threading.Condition
Semaphore: Final = threading.Semaphore
Event: Final = threading.Event
Barrier: Final = threading.Barrier

open_file: Final = builtins.open
fork: Final = getattr(os, "fork", None)
sleep: Final = time.sleep
monotonic_ns: Final = time.monotonic_ns
thread_time_ns: Final = time.thread_time_ns
wall_seconds: Final = time.time
signal_signal: Final = signal.signal
get_signal: Final = signal.getsignal
current_frames: Final = sys._current_frames
getframe: Final = sys._getframe
weak_reference: Final = weakref.ref
TIMEOUT_MAX: Final[float] = _thread.TIMEOUT_MAX

# The import system looks names up in the ``_thread`` module at run time.  It gets this private copy, so that module
# locks are made of the originals whatever ``_thread.allocate_lock`` becomes: an import inside a hook must not re-enter it.
thread_module_copy: Final = types.ModuleType("_thread")
thread_module_copy.__dict__.update(_thread.__dict__)
importlib_bootstrap: Final[Any] = _importlib_bootstrap


# What the kernel raises in the thread whose own instruction failed; blocked, it would kill where a handler was meant to run.
_OWN_FAULTS: Final = ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP", "SIGSYS")


agent_idents: Final[set[int]] = set()  # of the agent's threads that run; cleared in a fork's child
counted_idents: Final[set[int]] = set()  # of them those that ``_thread._count()`` counts
_counted_and_gone = 0


def run_agent_thread(function: Callable[..., object], args: tuple[Any, ...] = ()) -> None:
    """Call ``function`` as what a thread of the agent does, from its beginning to its end."""
    ident = get_ident()
    agent_idents.add(ident)
    try:
        function(*args)
    finally:
        agent_idents.discard(ident)


def count_program_threads() -> int:
    """Return what ``_thread._count()`` would return without the agent."""
    return max(0, int(thread_count()) - len(counted_idents) - _counted_and_gone)


def forget_agent_threads() -> set[int]:
    """Return the idents of the threads that a fork's child has lost; CPython goes on counting them."""
    global _counted_and_gone
    gone = agent_idents - {get_ident()}
    _counted_and_gone += len(counted_idents)
    agent_idents.clear()
    counted_idents.clear()
    return gone


def _run_counted(function: Callable[..., object], args: tuple[Any, ...]) -> None:
    counted_idents.add(get_ident())
    try:
        run_agent_thread(function, args)
    finally:
        counted_idents.discard(get_ident())


def start_agent_thread(function: Callable[..., object], args: tuple[Any, ...]) -> int:
    """Start a thread of the agent and return its ident: a raw thread that no signal to the process is delivered to.

    A program that blocks a signal, to fetch it with ``sigwait``, does so for its own threads.  One thread in which the signal
    is not blocked is enough for the kernel to deliver it there, and its default action kills the program.

    Raises:
        RuntimeError: No thread can be started.
    """
    set_mask = getattr(_signal, "pthread_sigmask", None)
    if set_mask is None:
        return start_new_thread(_run_counted, (function, args))
    # Asked for first: setting it can raise, since it runs Python handlers of signals that came.
    former = set_mask(_signal.SIG_BLOCK, ())
    try:
        faults = {getattr(_signal, name, 0) for name in _OWN_FAULTS}
        set_mask(_signal.SIG_BLOCK, _signal.valid_signals() - faults)
        return start_new_thread(_run_counted, (function, args))  # the thread inherits the mask of its creator
    finally:
        set_mask(_signal.SIG_SETMASK, former)


def known_threads() -> list[threading.Thread]:
    """Return the ``Thread`` objects that run; no lock is taken."""
    return list(threading._active.values())  # type: ignore[attr-defined]


def main_ident() -> int | None:
    """Return the OS thread id of the main thread."""
    return threading.main_thread().ident


def find_thread(ident: int) -> threading.Thread | None:
    """Return the ``Thread`` object of a live OS thread id, or None for a thread that ``threading`` did not start.

    A thread sits in ``_limbo`` from ``start`` until it has registered itself, and it sets its ident in between.  Nothing is
    created: ``current_thread()`` would leave a dummy behind in the program's list of threads.
    """
    thread = threading._active.get(ident)  # type: ignore[attr-defined]
    if thread is None:
        for candidate in list(threading._limbo):  # type: ignore[attr-defined]
            if candidate.ident == ident:
                thread = candidate
    return thread if isinstance(thread, Thread) else None
