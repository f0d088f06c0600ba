"""Run a program under the agent so that it cannot tell.

``concagent run app.py`` has to be what ``python app.py`` is, or nobody dares to put it into a service file.  What a
program can see of its launcher is ``__main__``, ``sys.argv``, ``sys.path[0]``, the stack below it, the tracebacks above
it, and what its parent sees: exit status, or the signal that it died of.  Each is made here as the interpreter makes it,
and ``tests/integration/test_run_invisible.py`` compares a table of programs with plain Python, byte for byte.

*The stack.*  A launcher called by ``python -m`` stands on two frames of ``runpy`` and one of ``__main__``, and a program
that prints its stack would show all of them.  So we leave before we begin: the launcher raises an exception, the
interpreter drops every frame, and calls ``sys.excepthook`` to show what was raised.  That hook is ``Program.start``; it
puts the real hook back and runs the program.  One frame of ours is left below the program, the one with ``exec`` in it.

*The end* is made as the interpreter makes it; see ``ending``.

*Failure before the start.*  A script that is missing, unreadable or does not compile has nothing to watch.  We replace
ourselves by the plain interpreter, which then says what it always says.  Rewriting its messages would be wrong in the
next version.

Assumes    CPython 3.10 to 3.15 calls ``sys.excepthook`` for what leaves ``__main__``, with no frame below it.
Invariants L1 nothing but ``concagent`` itself and what it cannot do without is imported before the program: no click, no
              argparse, no networkx, no prometheus_client, no json of ours.
           L2 no reference to the program's ``__main__`` or its globals outlives ``start``.
           L3 under a launcher of somebody else (coverage, a debugger, a thread) the hook is not used; the program then
              stands on their frames and ours.
Limits     ``sys.orig_argv`` and ``/proc/self/cmdline`` tell the truth; programs that restart themselves by them stay
           under the agent.  One frame more means one level less of recursion.  Modules that the agent has imported
           are in ``sys.modules`` before the program starts, so a file of the program named like one of the standard
           library's cannot shadow them.
           ``run -`` reads standard input to its end even at a terminal: there is no interactive mode.
Sources    CPython Modules/main.c (pymain_run_python).
"""

from __future__ import annotations

import builtins
import os
import sys
from types import CodeType, FrameType, ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from concagent._real import get_ident, getframe, open_file
from concagent.ending import (
    FailGate,
    die_of_sigint_at_exit,
    drop_first_frame,
    flush_streams,
    interrupt_again,
    remove_file_names,
    show,
    write_stderr,
)
from concagent.errors import ConcagentError, ConfigError
from concagent.runline import Plan, UsageError, help_text, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

USAGE_ERROR: Final = 2

# The import system has these frozen; importlib.machinery would import more than we need.
_external: Final[Any] = sys.modules["_frozen_importlib_external"]
_builtin_importer: Final[Any] = sys.modules["_frozen_importlib"].BuiltinImporter

_PYC_HEADER_BYTES: Final = 16


class HandOverError(Exception):
    """The program cannot be started; the plain interpreter shall say why.  ``__cause__`` is what we saw."""


class Leave(BaseException):
    """Carries control out of all frames; ``sys.excepthook`` takes it up.  Never seen by a program."""


class Program:
    """A program ready to be started: its code, its ``sys.argv`` and its place on ``sys.path``.

    Attributes:
        code: The compiled program; None where ``runpy`` finds it (modules, directories, zip files).
        runpy_name: Module for ``runpy``; ``__main__`` for a directory or zip file.
        argv: The program's ``sys.argv``.
        path0: The program's ``sys.path[0]``; None where plain Python puts nothing there.
        file: ``__file__``, or None.
        loader: ``__loader__`` of ``__main__``.
    """

    __slots__ = ("argv", "code", "file", "loader", "path0", "runpy_name")

    def __init__(self, argv: list[str], path0: str | None) -> None:
        """Begin with what every program has; the rest is set by the mode's loader."""
        self.code: CodeType | None = None
        self.runpy_name = "__main__"
        self.argv = argv
        self.path0 = path0
        self.file: str | None = None
        self.loader: Any = _builtin_importer

    def enter(self) -> dict[str, Any]:
        """Make ``sys`` and ``__main__`` the program's own and return the globals of ``__main__``."""
        sys.argv[:] = self.argv
        if self.path0 is not None:
            sys.path.insert(0, self.path0)
        module = ModuleType("__main__")
        namespace = module.__dict__
        namespace["__loader__"] = self.loader
        if sys.version_info < (3, 14):
            namespace["__annotations__"] = {}
        namespace["__builtins__"] = builtins
        if self.file is not None:
            namespace["__file__"] = self.file
            if sys.version_info < (3, 15):
                namespace["__cached__"] = None
        sys.modules["__main__"] = module
        return namespace

    def start(
        self, _kind: object = None, error: BaseException | None = None, trace: TracebackType | None = None
    ) -> None:
        """Run the program to its end; called as ``sys.excepthook``, when no frame of the launcher is left.

        Returns normally after an unhandled exception, which has then been shown.

        Raises:
            SystemExit: The program ended, with its own code or, having run to its last line, 0.
        """
        _forget(error, trace)
        del error, trace
        namespace = self.enter()
        code, runpy_name, has_file = self.code, self.runpy_name, self.file is not None
        del self  # its code constants belong to the program: L2
        failure: BaseException | None = None
        try:
            if code is not None:
                exec(code, namespace)
            else:
                from runpy import _run_module_as_main  # type: ignore[attr-defined]

                _run_module_as_main(runpy_name, runpy_name != "__main__")
        except BaseException as caught:  # noqa: BLE001 - whatever the program raised
            failure = caught
            drop_first_frame(failure)
        if code is not None:
            flush_streams()
        if failure is None:
            if has_file:
                remove_file_names(namespace)
            raise SystemExit(0)
        if isinstance(failure, SystemExit):
            try:
                raise failure
            finally:
                failure = None
        try:
            show(failure)
            if has_file:
                remove_file_names(namespace)
            if isinstance(failure, KeyboardInterrupt):
                die_of_sigint_at_exit()
        finally:
            failure = None


def _forget(error: BaseException | None, trace: TracebackType | None) -> None:
    """Remove what the interpreter noted about our jump: the program must find ``sys.last_value`` unset."""
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        if hasattr(sys, name):
            delattr(sys, name)
    sys.excepthook = _outer_hook.pop() if _outer_hook else sys.__excepthook__
    if error is not None:
        error.__traceback__ = None
    while trace is not None:
        # The interpreter keeps this traceback until we return; cleared frames keep nothing alive.
        try:
            trace.tb_frame.clear()
        except RuntimeError:
            break
        trace = trace.tb_next


# The hook that was there before ``Program.start`` took its place; one at most.
_outer_hook: Final[list[Callable[..., object]]] = []


def load(plan: Plan) -> Program:
    """Return the program of a command line, compiled and not yet started.

    Raises:
        HandOverError: It cannot be started; the plain interpreter knows the right words.
    """
    safe_path = sys.flags.isolated or getattr(sys.flags, "safe_path", False)
    if plan.mode == "module":
        program = Program(["-m", *plan.arguments], None if safe_path else _working_directory())
        program.runpy_name = plan.target
        return program
    if plan.mode == "code":
        return _load_code(plan, None if safe_path else "")
    if plan.target == "-":
        program = Program(["-", *plan.arguments], None if safe_path else "")
        program.file = "<stdin>"
        program.code = _compile(sys.stdin.buffer.read() if sys.stdin is not None else b"", "<stdin>", can_retry=False)
        return program
    return _load_script(plan, bool(safe_path))


def _working_directory() -> str | None:
    """Return what ``python -m`` puts on ``sys.path``; None where the directory is gone."""
    try:
        return os.getcwd()
    except OSError:
        return None


def _load_code(plan: Plan, path0: str | None) -> Program:
    program = Program(["-c", *plan.arguments], path0)
    source = plan.target + "\n"
    if sys.version_info >= (3, 14):
        from textwrap import dedent

        source = dedent(source)
    program.code = _compile(source, "<string>", can_retry=True)
    if sys.version_info >= (3, 13):
        # Since 3.13 a traceback quotes the lines of -c.
        import linecache

        lines = [line + "\n" for line in source.splitlines()]
        linecache.cache["<string>"] = (len(source), None, lines, "<string>")
    return program


def _load_script(plan: Plan, safe_path: bool) -> Program:
    path = plan.target
    if not os.path.isabs(path):
        directory = _working_directory()
        # Joined, not normalised: that is what __file__ of a plain script looks like.
        path = os.path.join(directory, path) if directory else path
    if _has_importer(path):
        # A directory or a zip file goes to sys.path even with -P: it is the program.
        return Program([plan.target, *plan.arguments], path)
    program = Program([plan.target, *plan.arguments], None if safe_path else os.path.dirname(os.path.realpath(path)))
    program.file = path
    try:
        with open_file(path, "rb") as file:
            data = file.read()
        regular = os.path.isfile(path)
    except (OSError, ValueError) as error:
        raise HandOverError from error
    if path.endswith(".pyc") or data[:4] == _external.MAGIC_NUMBER:
        program.loader = _external.SourcelessFileLoader("__main__", path)
        program.code = _unmarshal(data)
    else:
        program.loader = _external.SourceFileLoader("__main__", path)
        program.code = _compile(data, path, can_retry=regular)
    return program


def _has_importer(path: str) -> bool:
    """Return whether modules can be imported from this path, as the interpreter asks before it reads a script."""
    for hook in sys.path_hooks:
        try:
            hook(path)
        except ImportError:
            continue
        return True
    return False


def _compile(source: bytes | str, filename: str, *, can_retry: bool) -> CodeType:
    """Return the code of a source; what is warned about meanwhile is shown once, whoever compiles in the end."""
    from io import StringIO

    stderr, sys.stderr = sys.stderr, StringIO()
    try:
        code = compile(source, filename, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        if can_retry:
            raise HandOverError from error
        error.__traceback__ = None
        sys.stderr.seek(0)
        stderr.write(sys.stderr.read())
        sys.stderr = stderr
        sys.__excepthook__(type(error), error, None)
        raise SystemExit(1) from None
    else:
        if stderr is not None:
            sys.stderr.seek(0)
            stderr.write(sys.stderr.read())
        return code
    finally:
        sys.stderr = stderr


def _unmarshal(data: bytes) -> CodeType:
    """Return the code in a .pyc of this interpreter."""
    import marshal

    if data[:4] != _external.MAGIC_NUMBER:
        raise HandOverError
    try:
        code = marshal.loads(data[_PYC_HEADER_BYTES:])
    except (ValueError, EOFError, TypeError) as error:
        raise HandOverError from error
    if not isinstance(code, CodeType):
        raise HandOverError
    return code


def hand_over(plan: Plan, original: Sequence[str], our_arguments: int) -> NoReturn:
    """Replace this process by the plain interpreter with the same program.

    Args:
        plan: The program.
        original: ``sys.orig_argv``.
        our_arguments: How many arguments at its end are ours and the program's.

    Raises:
        OSError: The interpreter cannot be executed.
    """
    head = list(original[: len(original) - our_arguments])
    flush_streams()
    os.execv(sys.executable, [head[0], *_interpreter_options(head), *plan.command])


def _interpreter_options(head: list[str]) -> list[str]:
    """Return what stands between the interpreter and us: without ``-m concagent``, or the path of our script."""
    if len(head) < 3 or head[-1] != "concagent" or not head[-2].startswith("-"):
        return head[1:-1]
    # "-Im" is "-I -m".
    letters = head[-2].removesuffix("m")
    return head[1:-2] if letters == "-" else [*head[1:-2], letters]


def launched_plainly() -> bool:
    """Return whether below the caller are only frames of our own entry points and of the interpreter's launcher.

    Only then what we raise is sure to reach the interpreter, and its ``sys.excepthook``.
    """
    import threading

    if get_ident() != threading.main_thread().ident or sys.flags.inspect:
        return False
    frame: FrameType | None = getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__")
        if name not in {"__main__", "runpy", "concagent.cli", "concagent.__main__", __name__}:
            return False
        frame = frame.f_back
    return True


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Carry out ``concagent run``.

    Args:
        arguments: What follows ``run``; by default the end of ``sys.argv``.

    Raises:
        Leave: The program is ready; it starts when all frames are gone.
        SystemExit: The command line was wrong, the agent could not be installed, or (L3) the program has ended.
    """
    given = list(sys.argv[2:] if arguments is None else arguments)
    if given[:1] in (["--help"], ["-h"]):
        sys.stdout.write(help_text())
        raise SystemExit(0)
    plainly = launched_plainly()
    if plainly and not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        # The interpreter put our own place there.  The program's comes later: until then, nothing of its is imported by us.
        del sys.path[0]
    try:
        plan = parse(given)
        try:
            program = load(plan)
        except HandOverError:
            hand_over(plan, sys.orig_argv, len(given) + 1)
        install(plan.options)
    except UsageError as error:
        raise SystemExit(_complain(f"{error}")) from None
    except (ConfigError, ConcagentError) as error:
        raise SystemExit(_complain(f"{error}")) from None
    except OSError as error:
        raise SystemExit(_complain(f"cannot start {sys.executable}: {error}")) from None
    if plainly:
        _outer_hook.append(sys.excepthook)
        sys.excepthook = program.start
        raise Leave
    _outer_hook.append(sys.excepthook)
    program.start()
    raise SystemExit(1)


def _complain(message: str) -> int:
    """Write one line to stderr and return the status for wrong usage."""
    write_stderr("concagent run: " + " ".join(message.split()) + "\n")
    return USAGE_ERROR


def install(options: dict[str, Any]) -> None:
    """Install the agent, and see to ``--fail-on``.

    Raises:
        ConfigError: An option or a variable is wrong.
        PatchError: A primitive is already replaced by somebody else.
    """
    import atexit

    from concagent import wanted

    wanted.note(options)  # before the core is loaded
    from concagent import bootstrap

    # Registered before the agent's own callback, so they run after it: findings made at exit count too.
    atexit.register(interrupt_again)
    gate = FailGate()
    atexit.register(gate.check)
    agent = bootstrap.install(**options)
    if agent.config.metrics_port == 0:  # nobody could know it otherwise
        write_stderr(f"concagent: metrics on http://{agent.config.metrics_address}:{agent.metrics_port}/metrics\n")
    kinds = frozenset(agent.config.fail_on)
    if kinds:
        gate.arm(kinds, agent.findings)
    else:
        atexit.unregister(gate.check)
