"""The end of a program under ``concagent run``: what the interpreter does at the end of a plain one, and the exit status.

What leaves the program is treated as in a plain run: ``SystemExit`` ends the process with its code, a return
ends it with status 1, which is that of an unhandled exception.  An unhandled ``KeyboardInterrupt`` must kill the process
by SIGINT after the interpreter is torn down, which it does if the last string executed raised one; so we execute such a
string.  An exception is shown by the hook that the program sees, without our frame in the traceback.

Limits     ``--fail-on`` ends the process in the last ``atexit`` callback, so that objects that
           live in modules are not torn down then; it cannot see the end of a program by ``os._exit`` or a signal.
Sources    CPython Python/pythonrun.c (_PyErr_PrintEx, run_eval_code_obj).
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from concagent.model import Finding

# The status of a run in which a finding named by --fail-on was made (DESIGN.md section 7).
FAILED_ON_FINDING: Final = 86


def drop_first_frame(error: BaseException) -> None:
    """Cut our frame off the traceback of what the program raised."""
    trace = error.__traceback__
    if trace is not None:
        error.__traceback__ = trace.tb_next


def flush_streams() -> None:
    """Flush as the interpreter does between a script's end and its traceback, so that both come in order."""
    for stream in (sys.stderr, sys.stdout):
        try:
            stream.flush()
        except Exception:  # noqa: BLE001 - the interpreter ignores it here too, and complains at exit
            pass


def remove_file_names(namespace: dict[str, Any]) -> None:
    """Remove ``__file__`` as the interpreter does once a script has run: atexit callbacks see none."""
    namespace.pop("__file__", None)
    namespace.pop("__cached__", None)


def show(error: BaseException) -> None:
    """Show an unhandled exception by the program's hook, with what the interpreter does when that fails."""
    trace = error.__traceback__
    if sys.version_info >= (3, 12):
        sys.last_exc = error
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, trace
    hook: Any = getattr(sys, "excepthook", None)
    sys.audit("sys.excepthook", hook, type(error), error, trace)
    if hook is None:
        write_stderr("sys.excepthook is missing\n")
        sys.__excepthook__(type(error), error, trace)
        return
    second: BaseException | None = None
    try:
        hook(type(error), error, trace)
    except SystemExit:
        raise
    except BaseException as caught:  # noqa: BLE001 - the program's hook failed; we say so as the interpreter does
        second = caught
        drop_first_frame(second)
    if second is not None:
        _flush_stdout()
        write_stderr("Error in sys.excepthook:\n")
        sys.__excepthook__(type(second), second, second.__traceback__)
        write_stderr("\nOriginal exception was:\n")
        sys.__excepthook__(type(error), error, trace)


def _flush_stdout() -> None:
    try:
        sys.stdout.flush()
    except Exception:  # noqa: BLE001 - as above
        pass


def write_stderr(text: str) -> None:
    """Write where the program has its stderr; a program without one has nothing to read."""
    if sys.stderr is not None:
        sys.stderr.write(text)


def die_of_sigint_at_exit() -> None:
    """Have the interpreter kill the process by SIGINT once it is torn down, as after a plain Ctrl-C.

    It does so if the last *string* that was executed raised KeyboardInterrupt; executing a code object does not count.  Other
    threads count, too: one that loads a module in which a named tuple is made would undo it.  So it is done once more by
    `interrupt_again`, when the agent's threads have ended.
    """
    _died.append(True)
    _raise_in_a_string()


def _raise_in_a_string() -> None:
    try:
        exec("raise KeyboardInterrupt", {})
    except KeyboardInterrupt:
        pass


_died: list[bool] = []


def interrupt_again() -> None:
    """Run as the last of all exit callbacks."""
    if _died:
        _raise_in_a_string()


class FailGate:
    """Turns the exit status into 86 if a finding of one of the given kinds was made.

    Python offers no way to change the status from ``atexit``, so the process is ended there, after everything else that
    was registered has run.  A forked child leaves it alone: its status is its parent's business.
    """

    __slots__ = ("findings", "kinds", "pid")

    def __init__(self) -> None:
        """Begin unarmed."""
        self.kinds: frozenset[str] = frozenset()
        self.findings: Callable[[], tuple[Finding, ...]] = tuple
        self.pid = os.getpid()

    def arm(self, kinds: frozenset[str], findings: Callable[[], tuple[Finding, ...]]) -> None:
        """Watch for these kinds among what ``findings`` returns at exit."""
        self.kinds = kinds
        self.findings = findings

    def check(self) -> None:
        """End the process with status 86 if there is such a finding."""
        if os.getpid() != self.pid:
            return
        if any(finding.kind in self.kinds and not finding.suppressed for finding in self.findings()):
            flush_streams()
            os._exit(FAILED_ON_FINDING)
