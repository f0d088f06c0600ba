"""Publishes waits for locks on files, and learns who takes them.

``fcntl.flock``, ``fcntl.lockf`` and ``os.lockf`` are replaced; with them filelock, portalocker and fasteners are seen.  What
is known of holds, and what is made of attempts that fail, is in ``filewaits``.

The replacements are bound methods, so that ``LOCKER = fcntl.flock`` in a class body remains what it is: no method of that
class.

Left alone  ``close``: see ``filewaits``.  ``fcntl.fcntl(F_SETLKW)``, which nobody uses where there is ``lockf``.
"""

from __future__ import annotations

import errno
import functools
import os
from typing import TYPE_CHECKING, Any, Final

from concagent import _real, core, filewaits, state
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


class Replacements:
    """The three functions, as methods of an object; see above."""

    @functools.wraps(_flock)
    def flock(self, fd: Any, operation: Any, /) -> Any:
        """Lock as the original does; publish a wait, note a hold or an attempt in vain."""
        if type(operation) is not int or not _is_ours():
            return _flock(fd, operation)
        if operation & fcntl.LOCK_UN:
            _note(filewaits.forget_hold, fd)
            return _flock(fd, operation)
        shared = bool(operation & fcntl.LOCK_SH)
        frame = _real.getframe(1)
        if operation & fcntl.LOCK_NB:
            try:
                _flock(fd, operation)
            except OSError as error:
                if error.errno in _BUSY:
                    _note(filewaits.note_failure, fd, frame, shared)
                raise
        else:
            _wait_for(_flock, frame, fd, operation, shared=shared, posix=False)
        _note(filewaits.note_hold, fd, frame, shared)
        return None

    @functools.wraps(_lockf)
    def lockf(self, fd: Any, cmd: Any, /, *args: Any) -> Any:
        """Lock as the original does, and publish a wait."""
        if type(cmd) is not int or cmd & (fcntl.LOCK_UN | fcntl.LOCK_NB) or not _is_ours():
            return _lockf(fd, cmd, *args)
        return _wait_for(_lockf, _real.getframe(1), fd, cmd, *args, shared=False, posix=True)

    @functools.wraps(_os_lockf)
    def os_lockf(self, /, fd: Any, *args: Any, **kwargs: Any) -> Any:
        """Lock as the original does, and publish a wait."""
        command = args[0] if args else kwargs.get("command")
        if command != os.F_LOCK or not _is_ours():
            return _os_lockf(fd, *args, **kwargs)
        return _wait_for(_os_lockf, _real.getframe(1), fd, *args, shared=False, posix=True, **kwargs)


def _is_ours() -> bool:
    """Return whether a call is to be recorded."""
    return core.is_recording() and not core.current_record().agent


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


def _wait_for(original: Any, frame: FrameType, fd: Any, *args: Any, shared: bool, posix: bool, **kwargs: Any) -> Any:
    """Publish the wait, look for a ring that it closes, and call the original."""
    mark = core.wait_mark()
    try:
        try:
            wanted = filewaits.wanted(_number(fd), shared, posix=posix)
            core.check_wait(core.begin_wait(wanted, False, frame))
        except DeadlockError:
            raise
        except Exception as error:  # noqa: BLE001 - border: the wait goes on with plain semantics
            _count(error)
        return original(fd, *args, **kwargs)
    finally:
        try:  # 3.10 looks for signals at the beginning of a handler, but for a ``try``
            core.end_waits(mark)
        finally:
            pass


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
