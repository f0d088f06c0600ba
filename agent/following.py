"""What travels to a child that is executed, so that it runs under the agent from its first import on.

A child that is forked has the agent with it.  One that is executed has its environment only.  So two variables are added
to it at the moment of execution: ``PYTHONPATH`` begins with a directory of ours, which holds nothing but a ``sitecustomize``
(`follow/sitecustomize.py`), and ``_CONCAGENT_FOLLOW`` says who the parent is and what its options are.  The first thing that
the child does is to remove both.  The program's own ``os.environ`` never has them, and a Python child does not see them.

Why not a ``.pth`` file: it would be read at each start of each Python of the environment, whether a program of ours runs or
not, for all users, and would need to be written and removed with rights that an application has not.  Why not to set the
variables in ``os.environ``: programs print, compare and store it.

Who gets them: every Python, also with an environment given explicitly, unless its options (``-I``, ``-E``, ``-S``) say that it
wants none of it; scripts that name Python as their interpreter; and other programs if they inherit the program's own
environment, since shells and the like start Pythons in turn.  Other programs with an environment given explicitly get
exactly that.

Invariants F1 nothing here raises, and in any doubt the environment goes through as it was given.
           F2 options are the parent's, as it was installed; variables that were changed for the child since override them.
Limits     ``os.system`` and processes that C code starts are not followed.  A shell's ``env`` shows two variables more.  A
           Python that is started with ``-S``, ``-E`` or ``-I`` by a shell keeps our traces in its environment, or our entry on
           its ``sys.path``.  ``/proc/PID/environ`` shows all.  A child whose program lies beside a module that is called like
           one of the standard library's runs without.  A child has threads of ours: it cannot ``unshare`` its user name space.
Cost       some microseconds for each process that is started, and in the child the start of the agent: ``python -c pass`` takes
           65 ms for 20 (3.11, editable install, minimum of 25, interleaved).
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

from concagent import descriptors, wanted
from concagent.config import PREFIX, Config

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

VARIABLE: Final = "_CONCAGENT_FOLLOW"
_HERE: Final = os.path.dirname(os.path.abspath(__file__))
FOLDER: Final = os.path.join(_HERE, "follow")

_SEPARATOR: Final = "\x1f"
NAMES: Final = (b"PYTHONPATH", VARIABLE.encode())  # what a child's environment has differently
_VARIABLE: Final = VARIABLE.encode() + b"="
_PYTHONPATH: Final = b"PYTHONPATH="
_PATHS: Final = ("findings", "suppressions", "report_dir")
_TRACKER: Final = b"from multiprocessing.resource_tracker import "
_TAKES_ANOTHER: Final = (b"--check-hash-based-pycs",)
_SHEBANG_BYTES: Final = 256
# Numbers from here on are unlikely to be those that a program expects for its next files.
_SPARE_NUMBERS: Final = 64

had_children = False  # whether a child that was forked or told of us may have made the program's board
has_stderr_of_its_own = False  # whether this is a child whose standard error is not the first process's
root_pid = 0  # the first process of the program, 0 without an agent
_stderr = ""  # what the first process's standard error is
_said: bytes | None = None  # what children are told, behind the word whether they have a PYTHONPATH; None: nothing


# ---------------------------------------------------------------- in the parent


def start(config: Config) -> None:
    """Follow children from now on, with these options."""
    global _said, _stderr
    _said = None
    _stderr = _stderr or _identity(2)
    options = [f"+{name}={value}" for name, value in settled(config).to_environ().items()]
    seen = [f"?{name}={value}" for name, value in os.environ.items() if name.startswith(PREFIX)]
    origin = os.path.join(_HERE, "__init__.py")
    root = [f"@root={root_pid or os.getpid()}", f"@stderr={_stderr}"]
    fields = [sys.implementation.cache_tag or "", sys.prefix, origin, *root, *options, *seen]
    if any(_SEPARATOR in field for field in fields) or os.pathsep in FOLDER:
        return
    _said = os.fsencode(_SEPARATOR.join(fields))


def _identity(descriptor: int) -> str:
    """Return what is the same for all processes that have the same file, pipe or terminal there."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return "closed"
    return f"{status.st_dev}:{status.st_ino}"


def stop() -> None:
    """Follow no more children."""
    global _said
    _said = None


def settled(config: Config) -> Config:
    """Return the options for a process in another directory: paths are absolute."""
    try:
        return config._replace(
            **{name: os.path.abspath(path) for name in _PATHS if (path := getattr(config, name)) is not None}
        )
    except OSError:  # the directory is gone
        return config


def told(pairs: Iterable[bytes]) -> list[bytes] | None:
    """Return an environment, a list of ``NAME=value``, with what the child is told; None if nobody is followed."""
    global had_children
    if _said is None:
        return None
    path: bytes | None = None
    others: list[bytes] = []
    before = b""
    for pair in pairs:
        if pair.startswith(_PYTHONPATH):
            path = pair[len(_PYTHONPATH) :] if path is None else path
        elif pair.startswith(_VARIABLE):
            before = pair[len(_VARIABLE) :]
        else:
            others.append(pair)
    folder, separator = os.fsencode(FOLDER), os.fsencode(os.pathsep)
    entries = path.split(separator) if path is not None else []
    if before:  # the environment of a child was copied
        entries = [entry for entry in entries if entry != folder]
        path = None if not entries and not before.startswith(b"1") else separator.join(entries)
    others.append(_PYTHONPATH + (folder + separator + path if path else folder))
    had_children = True
    others.append(_VARIABLE + (b"0" if path is None else b"1") + _SEPARATOR.encode() + _said)
    return others


def told_mapping(environment: Mapping[Any, Any]) -> dict[bytes, bytes] | None:
    """Return a mapping of an environment with what the child is told; None if it has to go through as it is."""
    pairs = []
    for name, value in dict(environment).items():
        one, two = os.fsencode(name), os.fsencode(value)
        if not one or b"=" in one or b"\0" in one + two:  # an error, for the original to say
            return None
        pairs.append(one + b"=" + two)
    found = told(pairs)
    return None if found is None else dict(pair.split(b"=", 1) for pair in found)


def wants(programs: Sequence[Any], arguments: Sequence[Any], *, inherited: bool) -> bool:
    """Return whether a process that is to be executed shall be told.

    Args:
        programs: Paths of the program, the first that exists is executed.
        arguments: With the program's name as the first.
        inherited: Whether its environment is that of this process.
    """
    if _said is None or not programs:
        return False
    paths = [os.fsencode(path) for path in programs if not isinstance(path, int)]
    words = [os.fsencode(word) for word in arguments]
    if not paths:
        return inherited
    if _is_python(os.path.basename(paths[0])):
        return not _wants_none_of_it(words[1:])
    return inherited or _is_script_of_python(paths)


def _is_python(name: bytes) -> bool:
    # python, python3, python3.13, python3.13t, python3.13d-dbg
    rest = name.removesuffix(b"-dbg")
    rest = rest[:-1] if rest[-1:].islower() and rest != b"python" else rest
    numbered = rest.startswith(b"python") and not rest[6:].strip(b"0123456789.")
    return numbered or name == os.fsencode(os.path.basename(sys.executable or "python"))


def _wants_none_of_it(words: Sequence[bytes]) -> bool:
    """Return whether the options of an interpreter say that it reads no ``PYTHONPATH`` or no ``sitecustomize``."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in _TAKES_ANOTHER:
            del rest[:1]
        elif word[:2] == b"--":
            continue
        elif word[:1] != b"-" or word == b"-":
            return False
        else:
            for at, letter in enumerate(word[1:].decode("latin-1"), 2):
                if letter in "IES":
                    return True
                if letter == "c":  # a helper without threads or locks, one a program
                    return (word[at:] or b"".join(rest[:1])).startswith(_TRACKER)
                if letter == "m":
                    return False
                if letter in "WX":
                    if not word[at:]:
                        del rest[:1]
                    break
    return False


def _is_script_of_python(paths: Sequence[bytes]) -> bool:
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            head = os.read(descriptor, _SHEBANG_BYTES)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return head.startswith(b"#!") and b"python" in head.partition(b"\n")[0]
    return False


# ---------------------------------------------------------------- in both


def begin_program() -> None:
    """Note that this process has an agent; it is the program's first one if it was not told or forked otherwise."""
    global root_pid
    root_pid = root_pid or os.getpid()


def has_family() -> bool:
    """Return whether the program has, or had, other processes: this one's first one, or children of this one."""
    if root_pid not in {0, os.getpid()}:
        return True
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # takes no child away
    except (ChildProcessError, AttributeError):
        return False
    except OSError:
        return True
    return True


# ---------------------------------------------------------------- in the child


def _has_modules_of_its_own() -> bool:
    """Return whether a file beside the child's program has the name of a module of the standard library.

    The child would import its own one, and finds the other loaded if we have imported it first.
    """
    words = list(sys.orig_argv[1:])
    while words and words[0][:1] == "-" and words[0][:2] not in ("-c", "-m") and words[0] != "-":
        takes_another = words[0] in ("-W", "-X", *map(bytes.decode, _TAKES_ANOTHER))
        del words[: 1 + takes_another]
    is_script = bool(words) and words[0][:1] != "-"
    place = os.path.realpath(words[0]) if is_script else os.curdir
    try:
        names = os.listdir(place if os.path.isdir(place) else os.path.dirname(place))
    except OSError:
        return False
    modules = {name[:-3] for name in names if name.endswith(".py")} - {"test"}  # nobody imports that one from there
    return not modules.isdisjoint(sys.stdlib_module_names)


def begin(fields: Iterable[str]) -> None:
    """Install the agent as the parent said, at the start of a child; called by our ``sitecustomize``.

    Raises:
        Exception: Of any kind; the child then runs without.
    """
    inherited: dict[str, str] = {}
    seen: dict[str, str] = {}
    global root_pid, _stderr, has_stderr_of_its_own
    for field in fields:
        name, _, value = field[1:].partition("=")
        if field[0] == "@":
            if name == "root":
                root_pid = int(value)
            else:
                _stderr, has_stderr_of_its_own = value, value != _identity(2)
            continue
        (inherited if field[0] == "+" else seen)[name] = value
    own = {name: value for name, value in os.environ.items() if name.startswith(PREFIX) and seen.get(name) != value}
    variables = {**inherited, **own}
    config = Config.from_sources({}, variables)
    if not config.follow or _has_modules_of_its_own():
        return
    descriptors.begin_at(min(os.sysconf("SC_OPEN_MAX"), 1024) - _SPARE_NUMBERS)
    wanted.note({"core": config.core})
    from concagent import bootstrap

    bootstrap.install_in_child(variables)
