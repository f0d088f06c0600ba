"""Publishes waits for locks on files, and learns who takes them.

``fcntl.flock``, ``fcntl.lockf`` and ``os.lockf`` are replaced; with them filelock, portalocker and fasteners are seen.  What
is known of holds is in ``fileholds``, what is made of waits and of attempts that fail in ``filewaits``.

A wait in the main thread that an alarm will interrupt is a timed one: ``signal.alarm`` with a handler that raises is the
only time limit that ``flock`` can have.

The replacements are bound methods, so that ``LOCKER = fcntl.flock`` in a class body remains what it is: no method of that
class.

Left alone  ``close``: see ``fileholds``.  ``fcntl.fcntl(F_SETLKW)``, which nobody uses where there is ``lockf``.
"""

from __future__ import annotations

import errno
import functools
import os
import signal
from typing import TYPE_CHECKING, Any, Final

from concagent import _real, core, fileholds, filewaits, interruptions, state
from concagent.errors import DeadlockError
from concagent.hooks.patching import AliasScan, Patch, PatchSet, Switch

if TYPE_CHECKING:
    from types import FrameType

try:
    import fcntl as _fcntl
except ImportError:  # pragma: no cover - Windows
    _fcntl = None  # type: ignore[assignment]
fcntl: Final[Any] = _fcntl

_BUSY: Final = (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK)
_flock: Final[Any] = getattr(fcntl, "flock", lambda *_: None)
_lockf: Final[Any] = getattr(fcntl, "lockf", lambda *_: None)
_os_lockf: Final[Any] = getattr(os, "lockf", lambda *_: None)
# What os.lockf calls by other names, in those of fcntl.
_OPERATIONS: Final[dict[int, int]] = (
    {os.F_LOCK: fcntl.LOCK_EX, os.F_TLOCK: fcntl.LOCK_EX | fcntl.LOCK_NB, os.F_ULOCK: fcntl.LOCK_UN}
    if fcntl is not None and hasattr(os, "lockf")
    else {}
)
_WITHOUT_WAITING: Final[dict[Any, int]] = {_os_lockf: os.F_TLOCK} if hasattr(os, "lockf") else {}


class Replacements:
    """The three functions, as methods of an object; see above."""

    @functools.wraps(_flock)
    def flock(self, fd: Any, operation: Any, /) -> Any:
        """Lock as the original does; publish a wait, note a hold or an attempt in vain."""
        number = _plain(operation)
        if number is None or not _is_ours():
            return _flock(fd, operation)
        if number & fcntl.LOCK_UN:
            _note(fileholds.forget, fd)
            return _flock(fd, operation)
        return _lock(_flock, _real.getframe(1), (fd, operation), {}, number, None)

    @functools.wraps(_lockf)
    def lockf(self, fd: Any, cmd: Any, /, *args: Any) -> Any:
        """Lock as the original does; publish a wait, note a hold or an attempt in vain."""
        number = _plain(cmd)
        if number is None or not _is_ours():
            return _lockf(fd, cmd, *args)
        span = _span(fd, *args[:3])
        if number & fcntl.LOCK_UN or span is None:
            if span is not None:
                _note(fileholds.forget, fd, span)
            return _lockf(fd, cmd, *args)
        return _lock(_lockf, _real.getframe(1), (fd, cmd, *args), {}, number, span)

    @functools.wraps(_os_lockf)
    def os_lockf(self, /, fd: Any, *args: Any, **kwargs: Any) -> Any:
        """Lock as the original does; publish a wait, note a hold or an attempt in vain."""
        command = args[0] if args else kwargs.get("command")
        length = args[1] if len(args) > 1 else kwargs.get("length")
        number = _plain(command)
        operation = _OPERATIONS.get(number) if number is not None else None
        span = _span(fd, length, 0, os.SEEK_CUR) if operation is not None and _is_ours() else None
        if operation is None or span is None:
            return _os_lockf(fd, *args, **kwargs)
        if operation & fcntl.LOCK_UN:
            _note(fileholds.forget, fd, span)
            return _os_lockf(fd, *args, **kwargs)
        return _lock(_os_lockf, _real.getframe(1), (fd, *args), kwargs, operation, span)


def _is_ours() -> bool:
    """Return whether a call is to be recorded."""
    return core.is_recording() and not core.current_record().agent


def _plain(value: Any) -> int | None:
    """Return a number without what its class adds, as flags of an ``enum`` do; None for what is none."""
    return value if type(value) is int else int.__index__(value) if isinstance(value, int) else None


def _number(fd: Any) -> int:
    """Return the descriptor, as the originals find it; -1 where they will find none."""
    if type(fd) is int:
        return fd
    try:
        return int(fd.fileno())
    except Exception:  # noqa: BLE001 - what the program gave us may be anything; the original says what is wrong with it
        return -1


def _note(function: Any, fd: Any, *args: Any) -> None:
    try:
        function(_number(fd), *args)
    except Exception as error:  # noqa: BLE001 - border: the file is locked or not, whatever we know of it
        _count(error)


def _span(fd: Any, length: Any = 0, start: Any = 0, whence: Any = os.SEEK_SET) -> fileholds.Span | None:
    """Return the first and last byte that a POSIX lock is to have, None for what the original will refuse."""
    length, start, whence = _plain(length), _plain(start), _plain(whence)
    if length is None or start is None or whence is None:
        return None
    try:
        number = _number(fd)
        if whence == os.SEEK_CUR:
            start += os.lseek(number, 0, os.SEEK_CUR)
        elif whence == os.SEEK_END:
            start += os.fstat(number).st_size
        elif whence != os.SEEK_SET:
            return None
    except OSError:
        return None
    first, last = (start, start + length - 1) if length > 0 else (start + length, start - 1)
    return (first, last if length else fileholds.LAST) if first >= 0 else None


def _lock(
    original: Any,
    frame: FrameType,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    operation: int,
    span: fileholds.Span | None,
) -> Any:
    """Call the original, with a wait published if it has to wait, and note what came of it.

    A free lock is taken by an attempt that does not wait: that saves the half of our time.  A lock that is converted is lost
    by such an attempt as by the wait.
    """
    fd, shared = args[0], bool(operation & fcntl.LOCK_SH)
    tries = bool(operation & fcntl.LOCK_NB)
    is_busy = False
    result = None
    try:
        attempt = args if tries else (fd, _WITHOUT_WAITING.get(original, operation | fcntl.LOCK_NB), *args[2:])
        result = original(*attempt, **kwargs)
    except OSError as error:
        is_busy = error.errno in _BUSY and not interruptions.is_of_handler(error)
        if is_busy and tries:
            _note(filewaits.note_failure, fd, frame, shared, span)
        if tries or not is_busy:
            raise
    if is_busy:  # outside of the handler: what the wait raises is no consequence of the attempt
        result = _wait_for(original, frame, args, kwargs, shared, span)
    _note(filewaits.note_hold, fd, frame, shared, span)
    return result


def _wait_for(
    original: Any,
    frame: FrameType,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shared: bool,
    span: fileholds.Span | None,
) -> Any:
    """Publish the wait, look for a ring that it closes, and call the original."""
    mark = core.wait_mark()
    try:
        try:
            wanted = filewaits.wanted(_number(args[0]), shared, span)
            core.check_wait(core.begin_wait(wanted, _has_alarm(), frame))
        except DeadlockError:
            raise
        except Exception as error:  # noqa: BLE001 - border: the wait goes on with plain semantics
            _count(error)
        return original(*args, **kwargs)
    except OSError as error:
        if error.errno == errno.EDEADLK and span is not None:
            _note(filewaits.on_refused, args[0], frame, shared, span)
        raise
    finally:
        try:  # 3.10 looks for signals at the beginning of a handler, but for a ``try``
            core.end_waits(mark)
        finally:
            pass


def _has_alarm() -> bool:
    """Return whether an alarm is about to go off in this thread: that is how such waits are bounded."""
    if _real.get_ident() != _real.main_ident() or _real.get_signal(signal.SIGALRM) is signal.SIG_IGN:
        return False
    seconds, interval = signal.getitimer(signal.ITIMER_REAL)
    return seconds > 0 and not interval


def _count(error: Exception) -> None:
    """Count an error of ours; a descriptor that is none is the caller's, and the original tells him."""
    if not isinstance(error, OSError):
        state.count_error("hook", error)


def add_patches(patches: PatchSet) -> filewaits.PollSource | None:
    """Append the patches of this family; return the source that shows who polls, None where there is nothing to see."""
    if fcntl is None:
        return None
    source, ours = filewaits.PollSource(), Replacements()
    flock = ours.flock  # a bound method is a new object each time, and copies of it are searched for
    patches.add(
        Switch("file locks", lambda: state.add_source(source), lambda: state.remove_source(source)),
        Patch(fcntl, "flock", flock, "fcntl.flock"),
        Patch(fcntl, "lockf", ours.lockf, "fcntl.lockf"),
    )
    if hasattr(os, "lockf"):
        patches.add(Patch(os, "lockf", ours.os_lockf, "os.lockf"))
    patches.add(AliasScan(_flock, flock, skip_modules={"fcntl"}, label="copies of flock"))
    return source
