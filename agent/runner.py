"""Run a program under the agent so that it cannot tell.

``concagent run app.py`` has to be what ``python app.py`` is, or nobody dares to put it into a service file.  What a
program can see of its launcher is ``__main__``, ``sys.argv``, ``sys.path[0]``, the stack below it, the tracebacks above
it, and what its parent sees: exit status, or the signal that it died of.  Each is made here as the interpreter makes it,
and ``tests/integration/test_run_invisible.py`` compares a table of programs with plain Python, byte for byte.

*The stack.*  A launcher called by ``python -m`` stands on two frames of ``runpy`` and one of ``__main__``, and a program
that prints its stack would show all of them.  So we leave before we begin: the launcher raises an exception, the
interpreter drops every frame, and calls ``sys.excepthook`` to show what was raised.  That hook is ``Program.start``; it
puts the real hook back and runs the program.  One frame of ours is left below the program, the one with ``exec`` in it.

*The end.*  What leaves the hook is treated as in a plain run: ``SystemExit`` ends the process with its code, a return
ends it with status 1, which is that of an unhandled exception.  An unhandled ``KeyboardInterrupt`` must kill the process
by SIGINT after the interpreter is torn down, which it does if the last string executed raised one; so we execute such a
string.  An exception is shown by the hook that the program sees, without our frame in the traceback.

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
           library's cannot shadow them.  ``--fail-on`` ends the process in the last ``atexit`` callback, so that objects that
           live in modules are not torn down then; it cannot see the end of a program by ``os._exit`` or a signal.
           ``run -`` reads standard input to its end even at a terminal: there is no interactive mode.
Sources    CPython Modules/main.c (pymain_run_python), Python/pythonrun.c (_PyErr_PrintEx, run_eval_code_obj).
"""

from __future__ import annotations

import builtins
import os
import sys
from types import CodeType, FrameType, ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from concagent._real import get_ident, getframe, open_file
from concagent.config import OPTIONS, Option, parse_text
from concagent.errors import ConcagentError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from concagent.model import Finding

# The status of a run in which a finding named by --fail-on was made (DESIGN.md section 7).
FAILED_ON_FINDING: Final = 86
USAGE_ERROR: Final = 2

USAGE: Final = "concagent run [OPTIONS] SCRIPT [ARGS] | -m MODULE [ARGS] | -c CODE [ARGS] | - [ARGS]"

# The import system has these frozen; importlib.machinery would import more than we need.
_external: Final[Any] = sys.modules["_frozen_importlib_external"]
_builtin_importer: Final[Any] = sys.modules["_frozen_importlib"].BuiltinImporter

_PYC_HEADER_BYTES: Final = 16
_BY_FLAG: Final = {option.flag: option for option in OPTIONS}


class UsageError(Exception):
    """The command line of ``run`` is wrong; the message is the one line to show."""


class HandOverError(Exception):
    """The program cannot be started; the plain interpreter shall say why.  ``__cause__`` is what we saw."""


class Leave(BaseException):
    """Carries control out of all frames; ``sys.excepthook`` takes it up.  Never seen by a program."""


class Plan:
    """A parsed command line.

    Attributes:
        options: Keywords for ``install``.
        mode: ``script``, ``module``, ``code``; standard input is the script ``-``.
        target: Path, module name or source.
        arguments: What follows, for ``sys.argv[1:]``.
    """

    __slots__ = ("arguments", "mode", "options", "target")

    def __init__(self, options: dict[str, Any], mode: str, target: str, arguments: list[str]) -> None:
        """Keep the four parts."""
        self.options = options
        self.mode = mode
        self.target = target
        self.arguments = arguments

    @property
    def command(self) -> list[str]:
        """Return the arguments with which the plain interpreter runs the same program."""
        switch = {"script": [], "module": ["-m"], "code": ["-c"]}[self.mode]
        return [*switch, self.target, *self.arguments]


def parse(arguments: Sequence[str]) -> Plan:
    """Return what a command line after ``run`` asks for.

    Our options end at the first argument that is none, as the interpreter's do: whatever follows is the program's.

    Raises:
        UsageError: An option is unknown, lacks its value or has one too many, or there is no program.
        ConfigError: A value is not allowed.
    """
    options: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            if not rest:
                break
            return Plan(options, "script", rest[0], rest[1:])
        if argument[:2] in {"-m", "-c"} and not argument.startswith("--"):
            mode = "module" if argument[1] == "m" else "code"
            if argument[2:]:
                return Plan(options, mode, argument[2:], rest)
            if not rest:
                raise UsageError(f"argument expected for the {argument} option")
            return Plan(options, mode, rest[0], rest[1:])
        if argument == "-" or not argument.startswith("-"):
            return Plan(options, "script", argument, rest)
        _take_option(argument, rest, options)
    raise UsageError(f"no program given; usage: {USAGE}")


def _take_option(argument: str, rest: list[str], options: dict[str, Any]) -> None:
    """Parse one flag into ``options``, with its value from ``rest`` where it is not joined by ``=``."""
    flag, joined, text = argument.partition("=")
    option = _BY_FLAG.get(flag)
    if option is None and flag.startswith("--no-"):
        option = _BY_FLAG.get("--" + flag[5:])
        if option is not None and _is_switch(option):
            if joined:
                raise UsageError(f"{flag} takes no value")
            options[option.name] = False
            return
        option = None
    if option is None:
        raise UsageError(f"unknown option {flag}; {_hint(flag)}")
    if not joined:
        if _is_switch(option):
            options[option.name] = True
            return
        if not rest:
            raise UsageError(f"{flag} needs a value; allowed: {option.allowed}")
        text = rest.pop(0)
    options[option.name] = parse_text(option, text, option.flag)


def _is_switch(option: Option) -> bool:
    """Return whether the option is on or off, and so needs no value."""
    return isinstance(option.default, bool)


def _hint(flag: str) -> str:
    """Return the flags that are spelt alike, or where to read all of them."""
    # Imported late: only an error needs it.
    from difflib import get_close_matches

    near = get_close_matches(flag, _BY_FLAG, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else "see concagent run --help"


def help_text() -> str:
    """Return what ``concagent run --help`` prints."""
    lines = [f"Usage: {USAGE}", "", "Run a Python program under the agent.  Options end where the program begins.", ""]
    for option in OPTIONS:
        form = f"{option.flag} / --no-{option.flag[2:]}" if _is_switch(option) else f"{option.flag} VALUE"
        lines += [f"  {form}", f"      {option.help}"]
        if not _is_switch(option):
            lines.append(f"      {option.allowed[:1].upper()}{option.allowed[1:]}.")
    lines += [
        "",
        "Each option can also be given as an environment variable: --long-wait 5 is CONCAGENT_LONG_WAIT=5.",
        "The exit status is the program's own; with --fail-on KIND,... it is 86 if such a finding was made.",
    ]
    return "\n".join(lines) + "\n"


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
            _drop_first_frame(failure)
        if code is not None:
            _flush_streams()
        if failure is None:
            if has_file:
                _remove_file_names(namespace)
            raise SystemExit(0)
        if isinstance(failure, SystemExit):
            try:
                raise failure
            finally:
                failure = None
        try:
            _show(failure)
            if has_file:
                _remove_file_names(namespace)
            if isinstance(failure, KeyboardInterrupt):
                _die_of_sigint_at_exit()
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


def _drop_first_frame(error: BaseException) -> None:
    """Cut our frame off the traceback of what the program raised."""
    trace = error.__traceback__
    if trace is not None:
        error.__traceback__ = trace.tb_next


def _flush_streams() -> None:
    """Flush as the interpreter does between a script's end and its traceback, so that both come in order."""
    for stream in (sys.stderr, sys.stdout):
        try:
            stream.flush()
        except Exception:  # noqa: BLE001 - the interpreter ignores it here too, and complains at exit
            pass


def _remove_file_names(namespace: dict[str, Any]) -> None:
    """Remove ``__file__`` as the interpreter does once a script has run: atexit callbacks see none."""
    namespace.pop("__file__", None)
    namespace.pop("__cached__", None)


def _show(error: BaseException) -> None:
    """Show an unhandled exception by the program's hook, with what the interpreter does when that fails."""
    trace = error.__traceback__
    if sys.version_info >= (3, 12):
        sys.last_exc = error
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, trace
    hook: Any = getattr(sys, "excepthook", None)
    sys.audit("sys.excepthook", hook, type(error), error, trace)
    if hook is None:
        _write_stderr("sys.excepthook is missing\n")
        sys.__excepthook__(type(error), error, trace)
        return
    second: BaseException | None = None
    try:
        hook(type(error), error, trace)
    except SystemExit:
        raise
    except BaseException as caught:  # noqa: BLE001 - the program's hook failed; we say so as the interpreter does
        second = caught
        _drop_first_frame(second)
    if second is not None:
        _flush_stdout()
        _write_stderr("Error in sys.excepthook:\n")
        sys.__excepthook__(type(second), second, second.__traceback__)
        _write_stderr("\nOriginal exception was:\n")
        sys.__excepthook__(type(error), error, trace)


def _flush_stdout() -> None:
    try:
        sys.stdout.flush()
    except Exception:  # noqa: BLE001 - as above
        pass


def _write_stderr(text: str) -> None:
    """Write where the program has its stderr; a program without one has nothing to read."""
    if sys.stderr is not None:
        sys.stderr.write(text)


def _die_of_sigint_at_exit() -> None:
    """Have the interpreter kill the process by SIGINT once it is torn down, as after a plain Ctrl-C.

    It does so if the last *string* that was executed raised KeyboardInterrupt; executing a code object does not count.  Other
    threads count, too: one that loads a module in which a named tuple is made would undo it.  So it is done once more by
    `_interrupt_again`, when the agent's threads have ended.
    """
    _died.append(True)
    _raise_in_a_string()


def _raise_in_a_string() -> None:
    try:
        exec("raise KeyboardInterrupt", {})
    except KeyboardInterrupt:
        pass


_died: list[bool] = []


def _interrupt_again() -> None:
    """Run as the last of all exit callbacks."""
    if _died:
        _raise_in_a_string()


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
    _flush_streams()
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
    _write_stderr("concagent run: " + " ".join(message.split()) + "\n")
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
    atexit.register(_interrupt_again)
    gate = _FailGate()
    atexit.register(gate.check)
    agent = bootstrap.install(**options)
    if agent.config.metrics_port == 0:  # nobody could know it otherwise
        _write_stderr(f"concagent: metrics on http://{agent.config.metrics_address}:{agent.metrics_port}/metrics\n")
    kinds = frozenset(agent.config.fail_on)
    if kinds:
        gate.arm(kinds, agent.findings)
    else:
        atexit.unregister(gate.check)


class _FailGate:
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
            _flush_streams()
            os._exit(FAILED_ON_FINDING)
