"""Which line opened the files that nobody closes.

``open`` and ``io.open`` are replaced by something that calls the original and notes the result: a builtin function where
the C core runs (``_core_open.c``), else an `Open`.  The result stays what it is, a real ``TextIOWrapper``; nothing is wrapped.
The whole difficulty is to learn, later and cheaply, how it ended.

*Collected without being closed* is something that the interpreter itself finds out: an io object that is destroyed while
open closes itself, and before that asks its raw ``FileIO`` to issue the ResourceWarning, by calling the method
``_dealloc_warn`` **by name**.  So an entry ``_dealloc_warn`` in the raw object's own ``__dict__`` (which exists anyway: it
holds ``name``) is called exactly when, and only when, CPython 3.10-3.13 would say "unclosed file".  It costs one store at
``open`` and nothing at ``close``.  The garbage collector is different: it finalizes the members of a cycle in the order of
their creation, the raw file first, and a raw file does not ask by name.  But its ``close`` calls ``flush`` by name; so
there is a second entry, ``flush``, which removes itself at the first call.  The collector clears weak references *before*
it runs finalizers; so at that ``flush`` the file cannot be asked any more whether it is being finalized or closed by
somebody's ``__del__``.  The stack tells: the callback of the weak reference notes the frame in which the collection runs,
and if ``flush`` comes from that very frame and instruction, no Python code is between, so it is the finalizer.

Not all that is collected unclosed is a leak: ``json.load(open(p))`` closes its file by the reference count, in the same
statement, always.  So the mark notes the identity of the frame that opened, and at the end the frame in which the finalizer
runs is compared; if it is the same, the table is told at which instruction, and `concagent.temporaries` knows which
instructions consume a temporary.  The collector is told apart by the weak reference, which it has cleared by then.

The ResourceWarning itself must stay as it is: same text, same ``source``, same file and line, same filters, same
``sys.unraisablehook`` under ``-W error``.  It is issued by the original method, called from a function that has the file
name, line and globals of the frame in which the finalizer runs (`call_as_if_from`), or every such warning would point
at this file.  The same trick is used for ``open`` itself where the interpreter looks at its caller: EncodingWarning under
``-X warn_default_encoding``, the warnings about ``buffering``, ``U`` and bool, and tracemalloc's single frame.

Rejected   *A proxy or a subclass*: ``type(open(p))`` changes.  *weakref.finalize*: 3 us, and the object is gone when it is
           called.  *A strong reference to the raw file*: would keep a detached one open.  *Asking for the file number*:
           numbers are reused.  *A sentinel in the file's ``__dict__``*: dies after the file closed itself, so it cannot
           tell.  *Replacing ``close`` in the instance*: our frame at each close, and no ``self`` without a cycle.
           *Hooking the warnings*: the default filter drops them.  *An audit hook*: cannot be removed.
           *Patching ``_io.open``*: the interpreter itself opens through it, for ``sys.stdin`` or the source lines of a
           traceback, with some innocent frame as the caller.  ``os.fdopen``, ``pathlib``, ``tempfile`` use ``io.open``.
Invariants H1 whatever goes wrong here, the caller gets what the original gave, and the exception is counted.
           H2 nothing here refers to a file strongly.
           H3 a finding is made only of files that the interpreter itself calls unclosed: ``closefd``, not closed.
Visible    private entries in ``f.buffer.raw.__dict__`` of a file that is open, one in C and two in Python.  With the C core,
           from 3.12 on, that ``open.__module__`` is ``io`` and not ``_io``.  With `Open`: one frame in tracebacks of a failing
           ``open``, and two in tracemalloc's with more than one frame (CPython's test_warnings.test_tracemalloc sees it);
           ``type(open)``, while ``isinstance``, ``repr``, ``inspect.signature``, ``pickle``, and being no method in a
           class body are as with the original.
Limits     not noticed: a raw file that was detached or flushed, and then dropped alone or in a cycle; ``FileIO(...)`` and
           ``os.open``.  Where a ResourceWarning is an error, its traceback has no carets, and without any frame it has
           an entry ``sys``.
Cost       1.04 of stock for open + close in C, mostly the weak reference and three entries in dicts that come and go; 1.2-1.4
           in Python, see ``benchmarks/bench_open.py``: a quarter of that is the call, six tenths are the site and the mark
           with its weak reference, the rest is the entries and the ``flush`` at ``close``.
Sources    CPython Modules/_io: iobase.c (iobase_finalize), textio.c, bufferedio.c (buffered_dealloc_warn), fileio.c;
           Modules/gcmodule.c (handle_weakrefs, finalize_garbage).
"""

from __future__ import annotations

import builtins
import importlib
import io
import itertools
import os
import sys
import weakref
from collections.abc import Callable
from types import CodeType, FrameType, FunctionType
from typing import TYPE_CHECKING, Any, Final

from concagent import _real, core
from concagent.hooks.patching import AliasScan, Patch, Switch

if TYPE_CHECKING:
    from typing import Protocol

    from concagent.hooks.patching import Step
    from concagent.openings import OpeningLike, Openings, SiteRecord

    OnError = Callable[[str, BaseException], object]

    class Mark(OpeningLike, Protocol):
        """What both twins of the core lay into a raw file."""

        frame_id: int


try:
    from _tracemalloc import is_tracing as _is_tracing  # not tracemalloc: that imports pickle
except ImportError:  # pragma: no cover  interpreters without it

    def _is_tracing() -> bool:
        return False


KIND: Final = "file"
BORDER: Final = "files"
NEWER: Final = 64  # that many files that were opened at the same line since are looked at when one is dropped

# Bound here: at the very end the interpreter empties modules, and finalizers still come.
_getframe: Final = _real.getframe
_monotonic_ns: Final = _real.monotonic_ns
_FileIO: Final = io.FileIO
_TextIOWrapper: Final = io.TextIOWrapper
_BUFFERED: Final = (io.BufferedReader, io.BufferedWriter, io.BufferedRandom)
_raw_dealloc_warn: Final[Callable[..., object]] = getattr(io.FileIO, "_dealloc_warn", lambda *_: None)
_raw_flush: Final = io.FileIO.flush
_deref: Final[Callable[[Any], Any]] = weakref.ref.__call__

_WARN_DEFAULT_ENCODING: Final = bool(getattr(sys.flags, "warn_default_encoding", 0))
_HAS_U_MODE: Final = sys.version_info < (3, 11)

# 3.11 calls a builtin function in the instruction before CALL once it has learned that it is one; with its cache that is 4.
_PRECALL: Final = 166 if sys.version_info[:2] == (3, 11) else None

# What is known of the end of a file; a pair (frame identity, instruction) is the collection that will destroy it.
_OPEN: Final = "open"
_CLOSING: Final = "closing"
_COUNTED: Final = "counted"


def _without_columns(code: CodeType) -> CodeType:
    """Return the code with one line number for all of it and no columns: they would mark places in somebody's line."""
    if not hasattr(code, "co_positions"):
        return code  # 3.10 has none
    units = len(code.co_code) // 2
    lengths = [8] * (units // 8) + ([units % 8] if units % 8 else [])
    # Entries of the kind 13 of CPython's Objects/locations.md: no columns; then the difference of lines, 0.
    return code.replace(co_linetable=b"".join(bytes((0xE8 | (length - 1), 0)) for length in lengths))


# One line, whatever a formatter thinks: its only line number is replaced.
_TRAMPOLINE: Final = _without_columns((lambda function, args, kwargs: function(*args, **kwargs)).__code__)

# What the interpreter itself says where there is no frame.  Not vars(sys): it has no builtins, which warnings needs.
_NO_FRAME: Final[tuple[str, int, str, dict[str, Any]]] = (
    *(("<sys>", 0) if sys.version_info >= (3, 13) else ("sys", 1)),
    "sys",
    {"__name__": "sys", "__builtins__": builtins},
)


def call_as_if_from(frame: FrameType | None, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return what the function returns, called from a frame that has file, line and globals of the given one.

    Warnings and tracemalloc attribute what a C function does to the innermost Python frame.  None stands for a thread
    without any frame, where the interpreter names the module ``sys``.  Costs some microseconds.
    """
    if frame is None:
        file, line, name, namespace = _NO_FRAME
    else:
        user = frame.f_code
        file, line, name, namespace = user.co_filename, frame.f_lineno, user.co_name, frame.f_globals
    code = _TRAMPOLINE.replace(co_filename=file, co_firstlineno=1 if line is None else line, co_name=name)
    return FunctionType(code, namespace)(function, args, kwargs)


class FileMark(weakref.ref):  # type: ignore[type-arg]  # generic only for the type checker
    """A weak reference to a raw file, and the callable entry in that file's ``__dict__``.

    Called with a source, it is ``_dealloc_warn``; without, ``flush``.
    """

    __slots__ = ("fate", "frame_id", "hook", "record", "since_ns")

    fate: Any
    frame_id: int
    hook: Open
    record: SiteRecord
    since_ns: int

    def is_open(self) -> bool:
        """Return whether the file is open.  Holds it for the moment of the question only."""
        raw = _deref(self)
        return raw is not None and not raw.closed

    def __call__(self, *source: Any) -> Any:
        """Note the end of the file and do what the original method does."""
        raw = _deref(self)
        if raw is not None and not source and not raw._finalizing:
            # Somebody closes it, or flushes it by hand; we cannot tell and need not.
            self.fate = _CLOSING
            raw.__dict__.pop("flush", None)
            return _raw_flush(raw)
        try:
            caller = _getframe(1)
        except ValueError:
            caller = None
        try:
            collected = raw is None
            if source:
                if raw is None:
                    raw = _raw_of(source[0])
                unclosed = raw is not None and raw.closefd and not raw.closed
            elif raw is None:
                unclosed = caller is not None and self.fate == (id(caller), caller.f_lasti)
            else:
                unclosed = True
            if unclosed and self.fate is not _COUNTED:
                self.fate = _COUNTED
                # The collector clears weak references first: with a reference left, it was the reference count.
                by_opener = caller is not None and not collected and id(caller) == self.frame_id
                at = caller.f_lasti if caller is not None and by_opener and caller.f_code is self.record.code else -1
                self.hook.count_unclosed(self, at)
        except Exception as error:  # noqa: BLE001  a border: we are in a finalizer of the user's file
            self.hook.failed(error)
        if raw is None:
            return None
        if source:
            return call_as_if_from(caller, _raw_dealloc_warn, raw, *source)
        return _raw_flush(raw)


def _raw_of(file: Any) -> Any:
    for _ in range(3):
        if isinstance(file, _FileIO):
            return file
        file = getattr(file, "buffer", None) or getattr(file, "raw", None)
    return None


def _frame_id_of(record: SiteRecord, frame: FrameType | None) -> int:
    """Return the identity of the innermost frame of a record's code, from this one outwards."""
    while frame is not None and frame.f_code is not record.code:
        frame = frame.f_back
    return 0 if frame is None else id(frame)


def _gone(mark: FileMark) -> None:
    """Take the mark of a file that is being destroyed off the table; if it is still open, note who destroys it."""
    mark.record.alive.pop(mark, None)
    if mark.fate is _OPEN:
        try:
            frame = _getframe(1)
        except ValueError:
            return
        mark.fate = (id(frame), frame.f_lasti)


class _IoModule:
    """Pickles as the module ``io``, which itself cannot be pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, ("io",)


class Open:
    """Stands in for ``open``, and tells the C core's function what to do with what that has noted.

    No function, so that in a class body it does not become a method; see `patches`.
    """

    __slots__ = ("__weakref__", "_careful", "_ignore", "_marks", "_on_error", "_openings", "_original", "_sites")

    def __init__(
        self,
        original: Callable[..., Any],
        openings: Openings,
        on_error: OnError,
        ignore: Callable[[], bool] | None = None,
    ) -> None:
        """Make a stand-in for ``original``; see `patches` for the arguments."""
        self._original = original
        self._openings = openings
        self._on_error = on_error
        self._ignore = ignore
        self._sites = openings.table(KIND)
        self._careful = _WARN_DEFAULT_ENCODING
        self._marks = interpreter_asks_by_name()

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Open as the original does, and note the result."""
        __tracebackhide__ = True
        if (
            len(args) > 2
            or self._careful
            or (kwargs and "buffering" in kwargs)
            or _is_tracing()
            or (_HAS_U_MODE and _has_u(args, kwargs))
            or (args and type(args[0]) is bool)
        ):
            try:
                caller = _getframe(1)
            except ValueError:
                caller = None
            file = call_as_if_from(caller, self._original, *args, **kwargs)
        else:
            file = self._original(*args, **kwargs)
        try:
            if not self._openings.active or (self._ignore is not None and self._ignore()):
                return file
            kind = type(file)
            if kind is _TextIOWrapper:
                raw = file.buffer.raw
            elif kind in _BUFFERED:
                raw = file.raw
            else:
                raw = file
            if type(raw) is not _FileIO or not raw.closefd:
                return file
            try:
                frame = _getframe(1)
            except ValueError:
                record = self._openings.record_of(KIND, None)
                frame_id = 0
            else:
                found = self._sites.get((id(frame.f_code), frame.f_lasti))
                if found is None or found.passes_on or found.ours:
                    found = self._openings.record_of(KIND, frame)
                    frame_id = _frame_id_of(found, frame)
                else:
                    frame_id = id(frame)
                record = found
            mark = FileMark(raw, _gone)
            mark.record = record
            mark.since_ns = _monotonic_ns()
            mark.fate = _OPEN
            mark.frame_id = frame_id
            mark.hook = self
            if self._marks:
                entries = raw.__dict__
                entries["_dealloc_warn"] = mark
                entries["flush"] = mark
            next(record.opened)
            record.alive[mark] = None
        except Exception as error:  # noqa: BLE001  a border: the user's file is open, and theirs
            self.failed(error)
        return file

    def replacement(self) -> Any:
        """Return what is to stand in for the original: the core's function, or this object where the core has none."""
        function = core.open_function(self._original, _FileIO, _TextIOWrapper, *_BUFFERED)
        if function is None:
            return self
        self._openings.tell_keeper(core.forget_openings, lambda: core.ignore_openings(self))
        return function

    def start(self) -> None:
        """Let the replacement record."""
        self._openings.start()
        core.record_openings(self, self._ignore, self._marks)

    def record_at(self, code: CodeType, lasti: int) -> SiteRecord:
        """Return the record of exactly this instruction, the two halves of a call being one."""
        if _PRECALL is not None and code.co_code[lasti] == _PRECALL:
            lasti += 4
        return self._openings.record_at(KIND, code, lasti)

    def record_of_none(self) -> SiteRecord:
        """Return the record of what nobody is known to have opened."""
        return self._openings.record_of(KIND, None)

    def count_unclosed(self, mark: Mark, dropped_at: int) -> None:
        """Count a file as collected unclosed.

        In the frame that opened it, a file may have been a temporary.  Not so if that frame has opened another one at the
        same place since, and that is still there: then the statement was left, and entered again, with the first alive.

        Args:
            mark: The file's.
            dropped_at: The instruction that gave up the last reference, if that was in the frame that opened it; else -1.
        """
        try:
            newest = tuple(itertools.islice(reversed(mark.record.alive), NEWER)) if dropped_at >= 0 else ()
        except RuntimeError:  # another finalizer came between
            newest = ()
        for other in newest:
            if other is mark:
                break
            if other.frame_id == mark.frame_id and other.since_ns >= mark.since_ns:  # type: ignore[attr-defined]
                dropped_at = -1
                break
        self._openings.collected_unclosed(mark, dropped_at)

    def failed(self, error: BaseException) -> None:
        """Hand an error of ours to the counter; whatever the counter does, the user does not see it."""
        try:
            self._on_error(BORDER, error)
        except Exception:  # noqa: BLE001  nobody is left to tell
            pass

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """Return the type of the original, for ``isinstance``; ``type()`` says what we are."""
        return type(self._original)

    def __repr__(self) -> str:
        return repr(self._original)

    def __getattr__(self, name: str) -> Any:
        if name == "__signature__":
            import inspect  # heavy, and rarely asked for

            return inspect.signature(self._original)
        if name in Open.__slots__:
            raise AttributeError(name)  # of a half-made object; looking it up in the original would recurse
        return getattr(self._original, name)

    def __dir__(self) -> list[str]:
        return dir(self._original)

    def __copy__(self) -> Open:
        return self

    def __deepcopy__(self, memo: object) -> Open:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # By name, as the original; a process without us gets the plain one.
        return getattr, (_IoModule(), "open")


# What instances answer, not what the class is: a plain class attribute would be found before __getattr__.
def _of_original(name: str) -> property:
    def get(self: Open) -> Any:
        return getattr(self._original, name)

    return property(get)


for _name in ("__doc__", "__module__"):
    setattr(Open, _name, _of_original(_name))


def _has_u(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    mode = args[1] if len(args) > 1 else kwargs.get("mode", "")
    return isinstance(mode, str) and "U" in mode


def interpreter_asks_by_name() -> bool:
    """Return whether an unclosed file that is destroyed calls ``_dealloc_warn`` and ``flush`` of its raw file's dict."""
    calls: list[str] = []
    try:
        file = _real.open_file(os.devnull, "rb")
        file.raw.__dict__["_dealloc_warn"] = lambda _source: calls.append("warn")
        file.raw.__dict__["flush"] = lambda: calls.append("flush")
        del file
    except Exception:  # noqa: BLE001  an interpreter that is built differently; then only counts are kept
        return False
    return calls[:1] == ["warn"] and "flush" in calls


def patches(
    openings: Openings, on_error: OnError, ignore: Callable[[], bool] | None = None, *, fast: bool = True
) -> list[Step]:
    """Return the steps that make ``open`` record, for a `PatchSet`.

    Undone, files that are open stay noted, and copies of the replacement that somebody kept are plain.

    Args:
        openings: Gets an opening of the kind ``file`` for each file.
        on_error: Called with a border's name and an exception of ours.  May run inside finalizers: it must not lock.
        ignore: Asked at each opening whether to leave it out, for the agent's own threads (which the C core knows itself).
        fast: False has `Open` record also where the core has a function for it.
    """
    original = _real.open_file
    hook = Open(original, openings, on_error, ignore)
    replacement = hook.replacement() if fast else hook
    steps: list[Step] = [
        Switch("files", hook.start, openings.stop),
        Patch(builtins, "open", replacement, "builtins.open"),
        Patch(io, "open", replacement, "io.open"),
    ]
    # pathlib of 3.10 keeps a copy in a class, where no scan of modules looks.
    accessor = getattr(sys.modules.get("pathlib"), "_NormalAccessor", None)
    if accessor is not None and vars(accessor).get("open") is original:
        steps.append(Patch(accessor, "open", replacement, "pathlib._NormalAccessor.open"))
    return [
        *steps,
        AliasScan(original, replacement, skip_modules={"_io", "_pyio"}, label="copies of open"),
    ]
