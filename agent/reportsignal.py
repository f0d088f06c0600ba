"""A signal that asks for a report and is heard even when the main thread is stuck.

A handler set by ``signal.signal`` runs when the main thread executes Python code again; that of a process worth asking may never
do so.  What runs at once is the C-level handler.  The C core has one; for the Python core the standard library has one that
may be installed with a file of our choice: ``faulthandler.register``.  We give it the write end of a pipe whose read
end the monitor polls.  What it writes, a traceback, is of no interest; that something was written is the message.
The pipe does not block, so a handler never waits for us: when it is full, a request is pending anyway, and a hundred
signals ask for one report.

The former disposition comes back on ``close``.  A handler that the program had is chained: it runs after ours, and system
calls are interrupted as they were before us.  Where there was none, ours is installed with ``SA_RESTART``; so the signal
that would have killed the process does not even interrupt a system call.

Assumes    the interrupted thread has a Python thread state, as the main thread has, which the kernel prefers.  If a program
           blocks the signal there and it lands in a thread of foreign C code, nothing is written and the request is lost.
Invariants S1 the default action is never chained: it would kill.
           S2 a child never writes into its parent's pipe once ``after_fork_in_child`` ran; until then it asks its parent.
           S3 neither ``faulthandler.enable`` nor a registration for another signal is touched.
Limits     ``signal.signal`` by the program for the same signal, after us, takes it away from us, as from any other handler; its
           disposition is then left alone by ``close``.  Code in C that keeps the GIL lets the signal in, but not the monitor.
Not done   a handler of the same signal that was registered with ``faulthandler.register`` cannot be chained or put back, for
           nobody can ask which file it had; then, as in any doubt, we refuse.
Sources    CPython Modules/faulthandler.c (faulthandler_user, faulthandler_register_py).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

from concagent import core
from concagent._real import get_ident, get_signal, open_file, signal_signal
from concagent.descriptors import Pipe
from concagent.errors import PatchError

_CHUNK_BYTES = 65536
# A number that no descriptor has: what a handler writes there is lost.
_NOWHERE = 2**31 - 1


class ReportSignal:
    """The pipe of one signal; methods are for one thread at a time, that of the monitor, or install and uninstall."""

    def __init__(self, signum: int, *, late: bool = False) -> None:
        """Take the signal.  Works in any thread.

        Args:
            signum: Number of the signal.
            late: Open no descriptors before ``reopen``; what comes until then has no effect.

        Raises:
            PatchError: This system has no such way, the signal cannot be handled, or ``faulthandler`` may have it already.
        """
        self.signum = signum
        self._name = _name_of(signum)
        had_faulthandler = "faulthandler" in sys.modules
        import faulthandler

        if not hasattr(faulthandler, "register"):
            raise PatchError(
                f"cannot listen to {self._name}: this system has no faulthandler.register; use concagent report PID"
            )
        self._faulthandler: Any = core.signal_handler() or faulthandler
        try:
            self._before: Any = get_signal(signum)
        except ValueError as error:
            raise PatchError(f"cannot listen to {self._name}: {error}; choose another with report_signal") from error
        self._chain = self._before is None or callable(self._before)
        if not callable(self._before) and _is_caught(signum):
            # A handler that Python does not know of: somebody's C code, or faulthandler's own.
            if had_faulthandler:
                raise PatchError(
                    f"cannot listen to {self._name}: faulthandler or other C code handles it already; "
                    "choose another signal with report_signal"
                )
            self._chain = True
        self._pipe: Pipe | None = None
        self._closed = False
        pipe = Pipe(opened=not late)
        try:
            self._register(_NOWHERE if late else pipe.write.number)
        except (OSError, ValueError, RuntimeError) as error:
            pipe.close()
            raise PatchError(f"cannot listen to {self._name}: {error}; choose another with report_signal") from error
        self._pipe = None if late else pipe

    def fileno(self) -> int:
        """Return the descriptor to poll for reading, -1 once closed."""
        return self._pipe.read.number if self._pipe is not None else -1

    def is_lost(self) -> bool:
        """Return whether the program closed the pipe; the handler then writes nowhere until ``reopen``."""
        if self._pipe is not None and not self._pipe.is_ours():
            self._register(_NOWHERE)
            self._pipe.close()
            self._pipe = None
        return self._pipe is None and not self._closed

    def reopen(self) -> None:
        """Listen on a new pipe, in place of one that was lost.

        Raises:
            OSError: No descriptor is left.
            ValueError: The signal cannot be had.
            RuntimeError: The same.
        """
        pipe = Pipe()
        try:
            self._register(pipe.write.number)
        except BaseException:
            pipe.close()
            raise
        self._pipe = pipe

    def ask(self) -> None:
        """Have the pipe say that the signal came, as it did before there was one."""
        if self._pipe is not None:
            os.write(self._pipe.write.number, b"s")

    def drain(self) -> bool:
        """Empty the pipe and return whether the signal came since the last time; never blocks."""
        came = False
        while self._pipe is not None:
            try:
                chunk = os.read(self._pipe.read.number, _CHUNK_BYTES)
            except BlockingIOError:
                break
            except OSError:
                # Somebody closed it under us: programs that become daemons close "all" descriptors.  The other end's number
                # may soon be a file of the program's, so the handler must go at once.
                self._faulthandler.unregister(self.signum)
                self._pipe.close()
                self._pipe = None
                break
            if not chunk:
                break
            came = True
        return came

    def close(self) -> None:
        """Give the signal back to whoever had it before, or leave it to whoever took it since."""
        if self._closed:
            return
        self._closed = True
        now: Any = get_signal(self.signum)
        if now is self._before or now == self._before:
            self._faulthandler.unregister(self.signum)
        elif get_ident() == threading.main_thread().ident:
            # unregister puts back what was before us, so the program's newer handler has to be set again.
            self._faulthandler.unregister(self.signum)
            signal_signal(self.signum, now)
        else:
            # Only the main thread may set it.  So the registration stays, without effect; if C code still calls
            # it, it must not write into whatever will have our descriptor's number.
            self._faulthandler.register(self.signum, file=_NOWHERE, all_threads=False, chain=False)
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def after_fork_in_child(self) -> None:
        """Give the child a pipe of its own, in place of its copy of the parent's.

        Raises:
            PatchError: No descriptor is left.  The child then has no report signal, and the signal no effect in it.
        """
        if self._closed:
            return
        old = self._pipe
        try:
            self.reopen()
        except (OSError, ValueError, RuntimeError) as error:
            self.close()
            raise PatchError(f"cannot listen to {self._name} after fork: {error}") from error
        if old is not None:
            old.close()

    def _register(self, number: int) -> None:
        # For a signal that is registered this replaces file and chain only, and keeps what was before.
        self._faulthandler.register(self.signum, file=number, all_threads=False, chain=self._chain)


def _name_of(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"


def _is_caught(signum: int) -> bool:
    """Return whether a handler is installed, whoever did it; False where the system does not say."""
    try:
        with open_file("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"SigCgt:"):
                    return bool(int(line.split()[1], 16) >> (signum - 1) & 1)
    except (OSError, ValueError, IndexError):
        pass
    return False
