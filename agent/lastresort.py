"""The stacks of all threads when a report was asked for and the interpreter does not answer.

Reports are made in Python, so code in C that keeps the GIL keeps the report, too.  The C core has a thread that needs no
GIL; see ``_core_lastresort.c`` for how it reads stacks.  This is its Python side: when it runs, and what it writes above
them.  A request is answered as soon as the report's text is made, whether or not anybody reads what is written.

It ends before a fork where CPython counts threads, as the monitor does, and a fork's child starts one of its own.

Limits     the C core only, on Linux with glibc; elsewhere ``is_available`` is False and every method does nothing.
Cost       one thread, asleep until the signal comes.
"""

from __future__ import annotations

import os
from typing import Any

from concagent import core


class LastResort:
    """The thread that needs no GIL; methods are for one thread at a time, as those of ``ReportSignal``."""

    def __init__(self, seconds: float, signal_name: str, directory: str | None, *, to_stderr: bool) -> None:
        """Take what to write and where; nothing runs before ``start``.

        Args:
            seconds: How long a request may stay unanswered; 0 is for ever.
            signal_name: Name of the signal that asks.
            directory: Where to write a file; None for no file.
            to_stderr: Whether to write to standard error.
        """
        self._seconds = seconds
        self._signal_name = signal_name
        self._directory = os.fsencode(directory or "")
        self._to_stderr = to_stderr
        self._core: Any = core.last_resort() if seconds else None

    def is_available(self) -> bool:
        """Return whether there is a last resort here: the core and the system have one, and it is not switched off."""
        return self._core is not None

    def start(self) -> None:
        """Start the thread, unless it runs; without room for a thread there is no last resort until the next start."""
        if self._core is None:
            return
        try:
            self._core.last_resort_start(self._seconds, self._heading(), self._to_stderr, self._directory)
        except NotImplementedError:
            self._core = None
        except OSError:
            pass

    def stop(self) -> int:
        """End the thread; return its native id, 0 if none ran."""
        return int(self._core.last_resort_stop()) if self._core is not None else 0

    def requests(self) -> int:
        """Return the number of the last request."""
        return int(self._core.last_resort_requests()) if self._core is not None else 0

    def answer(self, number: int) -> None:
        """Say that all requests up to this one have their answer."""
        if self._core is not None:
            self._core.last_resort_answer(number)

    def after_fork_in_child(self) -> None:
        """Start a thread for the child, which has none and was not asked."""
        if self._core is not None:
            self._core.last_resort_after_fork()
            self.start()

    def _heading(self) -> bytes:
        text = f"""
== concagent: last resort ==
Process {os.getpid()}: {self._signal_name} asked for a report, and the interpreter has not answered for {self._seconds:g} s.
Most likely code in C keeps the GIL: look for a thread whose innermost line calls into C.
These are the stacks of all threads, read from outside the interpreter; locks could not be read.
"""
        return text.encode()


def native_threads() -> int:
    """Return how many threads of the process are the last resort's, and not known to Python: 0 or 1."""
    implementation = core.last_resort()
    return int(implementation.last_resort_threads()) if implementation is not None else 0
