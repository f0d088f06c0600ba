"""Chooses the twin of the core: says which one runs, and why.

Everybody else imports the core's names from here.  ``CONCAGENT_CORE=c|python`` forces a twin; a forced twin that is absent
is an error and never a silent fallback, or a test run could pass without having tested what it says.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any, Final

from concagent import _real, rings
from concagent import wanted as _wanted
from concagent.errors import ConfigError
from concagent.rings import Listener as Listener
from concagent.rings import find_ring as find_ring

if TYPE_CHECKING:
    from collections.abc import Callable

CHOICES: Final = ("auto", "c", "python")
# What is asked of a function of Python, and is not to be missed where C stands for it.
_WRAPPED: Final = (*functools.WRAPPER_ASSIGNMENTS, "__code__", "__defaults__", "__kwdefaults__", "__globals__")


def _load_c() -> tuple[Any, str]:
    """Return the C twin and "", or None and the reason why it is absent."""
    try:
        from concagent import _core
    except ImportError as error:
        return None, f"the C core is not built ({error})"
    return _core, ""


def _load_python() -> Any:
    """Return the Python twin, which is loaded only where it runs."""
    from concagent import _pycore

    return _pycore


def _describe_thread(ident: int) -> tuple[Any, str, bool]:
    """Return (weak reference or None, name, daemon) of the calling thread, for its record."""
    thread = _real.find_thread(ident)
    if thread is None:
        return None, f"thread-{_real.get_native_id()}", True
    return _real.weak_reference(thread), thread.name, thread.daemon


def choose(wanted: str) -> tuple[Any, str]:
    """Return (twin, reason) for ``auto``, ``c`` or ``python``.

    Raises:
        ConfigError: The wanted twin is unknown or absent.
    """
    if wanted not in CHOICES:
        message = f"option core is {wanted!r}; allowed are {', '.join(CHOICES)}"
        raise ConfigError(message, option="core", value=repr(wanted), allowed=", ".join(CHOICES))
    if wanted == "python":
        return _load_python(), "asked for by option core"
    twin, absent = _load_c()
    if twin is not None:
        return twin, "asked for by option core" if wanted == "c" else "the C core is built"
    if wanted == "c":
        message = f"option core is 'c', but {absent}; install with a compiler, or use core='python'"
        raise ConfigError(message, option="core", value="'c'", allowed="python")
    return _load_python(), absent


implementation, reason = choose(_wanted.core or os.environ.get("CONCAGENT_CORE") or "auto")
NAME: Final[str] = implementation.NAME
if NAME == "c":
    implementation.configure(_describe_thread, rings.walk, _real.allocate_lock, _real.RLockType)

Lock = implementation.Lock
RLock = implementation.RLock
allocate_lock = implementation.allocate_lock
INSTANTIABLE: Final = _real.INSTANTIABLE

if TYPE_CHECKING:
    from concagent._pysync import ThreadCell as ThreadCell
else:
    ThreadCell = implementation.ThreadCell
current_record = implementation.current_record
record_of_ident = implementation.record_of_ident
records = implementation.records
readings = implementation.readings
untracked = implementation.untracked
forget_record = implementation.forget_record
mark_agent_thread = implementation.mark_agent_thread
next_serial = implementation.next_serial
find_cell = implementation.find_cell
keep_cell = implementation.keep_cell
waiter_lock = implementation.waiter_lock
begin_wait = implementation.begin_wait
wait_mark = implementation.wait_mark
end_waits = implementation.end_waits
check_wait = implementation.check_wait
wake_victim = implementation.wake_victim
tick = implementation.tick
is_recording = implementation.is_recording
add_transparent_file = implementation.add_transparent_file
is_transparent = implementation.is_transparent
cell_of = implementation.cell_of
name_lock = implementation.name_lock
classes = implementation.classes
acquisitions = implementation.acquisitions
wait_statistics = implementation.wait_statistics
hold_statistics = implementation.hold_statistics
drain_order = implementation.drain_order
drain_uses = implementation.drain_uses
was_interrupted = implementation.was_interrupted
order_dropped = implementation.order_dropped
environment = implementation.environment
collect_gone = implementation.collect_gone
after_fork_in_child = implementation.after_fork_in_child
reset_for_tests = implementation.reset_for_tests
SharedCell = implementation.SharedCell
share = implementation.share
hasten_semlock = implementation.hasten_semlock
open_function = implementation.open_function
ignore_openings = implementation.ignore_openings
forget_openings = implementation.forget_openings


def start(listener: Listener, *, class_limit: int = 8191) -> None:
    """Begin to record; ``listener`` hears of rings, orphans and misuse."""
    rings.listen(listener)
    implementation.start(listener, class_limit=class_limit, main_ident=_real.main_ident() or 0)


def stop() -> None:
    """Stop recording; locks that exist go on as plain locks."""
    implementation.stop()
    rings.listen(None)


tell_misuse = rings.tell_misuse
configure_not_owned = implementation.configure_not_owned


def configure_sync(
    outer: dict[Any, Any], cell_of: Callable[[Any, Any, Any], Any], condition: type, semaphore: type, bounded: type
) -> None:
    """Tell the C twin what the standard library builds on conditions; to be called before `sync_method`.

    Args:
        outer: Code of the library's functions that wait -> what ``cell_of`` is to be told of them; None for one whose wait
            always ends.  At most 16; the outermost of them on the stack counts.
        cell_of: (condition, ``self`` of the function or the condition, what ``outer`` says or None) -> the cell, which it leaves
            in the condition, or None.  Does not raise.
        condition: The library's class, and the following, too: their instances, not derived ones, take the shortcut.
        semaphore: Its instances have ``_cond`` and ``_value``, their cells ``holders`` and ``foreign``.
        bounded: Its instances have ``_initial_value``, too.
    """
    if NAME == "c":
        implementation.configure_sync(outer, cell_of, condition, semaphore, bounded)


def configure_threads(cell: type, thread: type, active: dict[int, Any], limbo: dict[Any, Any]) -> None:
    """Tell the C twin what threads are made of; to be called before `sync_method` is asked for ``start`` and ``join``.

    Args:
        cell: Derived from `ThreadCell`; `start` and ``join`` lay one into each thread.
        thread: The library's class.
        active: The library's dict: ident -> thread.
        limbo: The library's dict of the threads that begin.
    """
    if NAME == "c":
        implementation.configure_threads(cell, _real.Event, _real.Condition, thread, active, limbo)


def sync_method(name: str, hook: Any) -> Any:
    """Return what does the same as ``hook`` in less time; the hook itself where the twin has nothing faster.

    Args:
        name: ``wait``, ``acquire``, ``release``, ``bounded_release``, ``is_owned``, ``start`` or ``join``.  ``wait``,
            ``start`` and ``join`` replace the hook, ``is_owned`` calls it where the answer may be no, the others for what is
            not a plain semaphore that was used before.
        hook: A function made by ``functools.wraps``: the result looks like what it wraps.
    """
    if NAME != "c":
        return hook
    original = hook.__wrapped__
    method = implementation.sync_method(name, original if name == "wait" else hook, original)
    return functools.update_wrapper(method, original, _WRAPPED)


def is_agent_thread() -> bool:
    """Return whether the calling thread is one of the agent's."""
    return bool(current_record().agent)


def record_openings(hook: Any, ignore: Callable[[], bool] | None, asks_by_name: bool) -> None:
    """Let what `open_function` has returned note each file in a `hooks.files.Open`, until `ignore_openings` is told the same.

    Args:
        hook: Its methods ``record_at``, ``record_of_none``, ``count_unclosed`` and ``failed`` are called.
        ignore: Asked at each opening whether to leave it out.
        asks_by_name: The interpreter calls ``_dealloc_warn`` and ``flush`` that lie in a raw file's dict.
    """
    known = None if NAME == "c" and ignore is is_agent_thread else ignore
    implementation.record_openings(hook, known, asks_by_name)


def last_resort() -> Any:
    """Return what has the functions ``last_resort_*``, None if this twin has no last resort."""
    return implementation if NAME == "c" else None


def start_thread_late(function: Callable[[], object], descriptors: tuple[int, ...], timeout_ns: int) -> bool:
    """Call ``function`` in a thread that Python does not know until then; return False if this twin has no such threads.

    Args:
        function: Called in a thread to which no signal is delivered; what it raises is written to standard error.
        descriptors: It is called when one of them can be read, or was closed.
        timeout_ns: It is called when so much time has passed, at the latest; without descriptors, also by `hurry_late_thread`.
    """
    if NAME != "c":
        return False
    try:
        implementation.start_thread_late(lambda: _real.run_agent_thread(function), descriptors, timeout_ns)
    except (NotImplementedError, OSError):
        return False
    return True


def hurry_late_thread() -> None:
    """Have a thread begin now that was to begin late and waits for no descriptors."""
    if NAME == "c":
        implementation.hurry_late_thread()


def replace_method(cls: type, name: str, method: Any) -> Any:
    """Put a method into a type of C that does not let its attributes be set; return what was there.

    Raises:
        NotImplementedError: The Python twin cannot.
        TypeError: The type is shared by all interpreters.
    """
    if NAME != "c":
        raise NotImplementedError
    return implementation.replace_method(cls, name, method)


def simple_get(hook: Any, empty: type[Exception]) -> Any:
    """Return what does the same as ``hook``, of `queue.SimpleQueue.get`, in less time where there is something to get."""
    implementation.configure_simple_get(hook.__wrapped__, empty)
    return sync_method("simple_get", hook)


class _SignalHandler:
    """The C core's handler, with the two functions of ``faulthandler`` that it stands in for."""

    def register(self, signum: int, *, file: int, all_threads: bool, chain: bool) -> None:  # noqa: ARG002 - faulthandler's
        """Write a byte into ``file`` at each signal; again to change the descriptor."""
        implementation.signal_register(signum, file, chain)

    def unregister(self, signum: int) -> bool:
        """Put back what handled the signal before."""
        return bool(implementation.signal_unregister(signum))


def signal_handler() -> Any:
    """Return what can install a C-level handler for the report signal, None if this twin cannot.

    ``faulthandler`` is the other way; its handler walks the frames of the interrupted thread, which crashes on some versions.
    """
    return _SignalHandler() if NAME == "c" else None
