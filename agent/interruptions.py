"""Tells from a stack where the interpreter itself called in: finalizers, weakref, gc and signal callbacks, exit handlers.

Such code runs in the middle of a function that did not call it, on the same thread, at nearly any instruction.  If it
waits for a lock that the interrupted function holds, it waits for itself.  In a traceback that looks like a call.

There is no mark on such a frame.  What tells it is what the interpreter hands to it, and nobody else does: a signal handler
gets a number and a *frame*; a weakref's callback gets a reference that is *dead already*; a gc callback gets ``"start"`` or
``"stop"`` and the counts of a collection; a finalizer is called ``__del__``, and its caller does not name that attribute.  The
instruction of the frame below would be another way (it is no call), but often it is a call: of a C function that dropped the
last reference.  Nothing has to be registered or wrapped for this, and handlers older than we are are seen, too.

`find` is asked where a finding is made, of a thread that is blocked; the C core's twin of it (`Frame_interrupts` in
`_core_frame.h`) where a lock class is used in a new way.

Limits     until 3.12 the arguments of a running function are read through a copy of its locals that the frame keeps; the copy
           is emptied at once, so that no local lives longer than it would.
Cost       O(frames).
"""

from __future__ import annotations

import threading
import weakref
from types import CodeType, FrameType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final

from concagent.framevalues import values_of

if TYPE_CHECKING:
    from collections.abc import Callable

FINALIZER: Final = "finalizer"
WEAKREF: Final = "weakref callback"
GC: Final = "gc callback"
SIGNAL: Final = "signal handler"
EXIT: Final = "exit handler"
KINDS: Final = (None, FINALIZER, WEAKREF, GC, SIGNAL)  # as the cores number them
_FUNCTION: Final = 0x1  # CO_OPTIMIZED: no module and no class body, whose locals are the real thing
_VARARGS: Final = 0x4
_MOST: Final = 4  # arguments of such a function, with `self` and defaults that keep things alive


def kind_of(frame: FrameType) -> str | None:
    """Return how the interpreter came to call this function; None where the function below called it."""
    back, code = frame.f_back, frame.f_code
    if back is None or not code.co_flags & _FUNCTION:
        return None
    if code.co_name == "__del__":
        return None if "__del__" in back.f_code.co_names else FINALIZER
    if code.co_argcount > _MOST:
        return None
    return _kind_of_arguments(_arguments(frame))


def _kind_of_arguments(values: list[Any]) -> str | None:
    for at in (0, 1):  # a method has `self` in front
        given = values[at:]
        if not given:
            return None
        first = given[0]
        if isinstance(first, weakref.ReferenceType) and weakref.ReferenceType.__call__(first) is None:
            return WEAKREF
        if len(given) == 2:
            if isinstance(first, int) and type(given[1]) is FrameType:
                return SIGNAL
            if type(first) is str and first in {"start", "stop"} and type(given[1]) is dict:
                return GC if "generation" in given[1] else None
    return None


def _arguments(frame: FrameType) -> list[Any]:
    """Return the values of a function's positional arguments, as far as they are still bound."""
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount]
    rest = code.co_varnames[code.co_argcount + code.co_kwonlyargcount] if code.co_flags & _VARARGS else ""
    found = values_of(frame, (*names, rest))
    more = found.get(rest)
    return [found[name] for name in names if name in found] + list(more[: _MOST + 1] if type(more) is tuple else ())


def is_of_handler(error: BaseException) -> bool:
    """Return whether an exception comes from a signal handler, or from what that has called."""
    at = error.__traceback__
    handlers: set[CodeType] | None = None
    while at is not None:
        if kind_of(at.tb_frame) == SIGNAL:
            return True
        handlers = _handlers() if handlers is None else handlers
        if at.tb_frame.f_code in handlers:  # one that has given its arguments other values
            return True
        at = at.tb_next
    return False


def _handlers() -> set[CodeType]:
    """Return the code of the signal handlers that are in force, as far as they are functions and methods."""
    import signal  # the core imports us, and has no use for it

    found = set()
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        function = handler.__func__ if isinstance(handler, MethodType) else handler
        if isinstance(function, FunctionType):
            found.add(function.__code__)
    return found


def describe(frame: FrameType, kind: str) -> str:
    """Return what interrupted, in words: ```__del__` of Connection``, ``the handler on_alarm() of SIGALRM``."""
    name = _name(frame.f_code)
    if kind == FINALIZER:
        values = _arguments(frame)
        owner = type(values[0]).__qualname__ if values else name.rpartition(".")[0]
        return f"`__del__` of {owner}"
    if kind == SIGNAL:
        import signal  # the core imports us, and has no use for it

        number = next((value for value in _arguments(frame) if isinstance(value, int)), 0)
        try:
            return f"the handler {name}() of {signal.Signals(number).name}"
        except ValueError:
            return f"the handler {name}() of signal {number}"
    return f"the {kind} {name}()"


def _name(code: CodeType) -> str:
    return str(getattr(code, "co_qualname", code.co_name))


def find(frame: FrameType | None, ident: int) -> dict[int, str]:
    """Return what interrupted in words, by the position (0: innermost) of the frame that the interpreter called.

    Args:
        frame: The innermost frame of a thread.
        ident: The thread's id: only the main thread runs exit handlers.
    """
    found = {}
    at = 0
    while frame is not None:
        kind = kind_of(frame)
        if kind is not None:
            found[at] = describe(frame, kind)
        elif frame.f_back is None and _is_exit_handler(frame, ident):
            found[at] = f"the {EXIT} {_name(frame.f_code)}()"
        frame, at = frame.f_back, at + 1
    return found


def _is_exit_handler(frame: FrameType, ident: int) -> bool:
    """Return whether an outermost frame is one of ``atexit``: the main thread's, after ``threading`` has shut down."""
    main = threading.main_thread()
    code = frame.f_code
    return (
        ident == main.ident
        and not main.is_alive()
        and bool(code.co_flags & _FUNCTION)
        and code.co_filename != threading.__file__
    )


def over(frame: FrameType | None, code: CodeType | None, lasti: int, is_own: Callable[[CodeType], bool]) -> str | None:
    """Return what interrupted the function that took a lock, and where, and still runs above it; None if nothing does.

    Args:
        frame: The innermost frame of the thread that took the lock, and waits for it now.
        code: Of the function that took it.
        lasti: Where; a frame at that very instruction is about to take it, and is not the one that has it.
        is_own: Tells our own code, which is not what was interrupted.
    """
    what: str | None = None
    inside: FrameType | None = None
    while frame is not None:
        if what is not None:
            while inside is not None and is_own(inside.f_code):
                inside = inside.f_back
            if frame.f_code is code and frame.f_lasti != lasti:
                return f"{what} ran inside {_name((inside or frame).f_code)}()"
        kind = kind_of(frame)
        if kind is not None:
            what, inside = describe(frame, kind), frame.f_back
        frame = frame.f_back
    return None
