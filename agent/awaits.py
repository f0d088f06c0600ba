"""Reads what one asyncio task waits for and what it has entered, from asyncio's own structures.

A task that waits is suspended, and a suspended coroutine tells everything: whom it awaits (``cr_await``), down to the
future at the end, and which ``with`` blocks it is inside, because the bound ``__exit__`` of each lies on its value stack, which
the collector's view of a coroutine shows.  So a program's tasks run exactly as without us; nothing of asyncio is replaced.

We are on another thread than the loop.  A task stays suspended as long as its ``_fut_waiter`` is the same pending future; who
calls here compares that before and after.  Frames' locals are read only of asyncio's own functions: reading those of the
program's would rewrite the dictionary that ``locals()`` gave it, and keep alive what it deletes.

Never     runs code of the program: types are compared, attributes are those of asyncio's classes.
Limits    coroutines of compiled extensions end the chain; what a *running* coroutine has entered is not on view.
Sources   CPython Objects/genobject.c (gen_traverse), Lib/asyncio/{locks,queues,tasks,taskgroups,futures}.py, 3.10-3.15.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from types import (
    AsyncGeneratorType,
    BuiltinMethodType,
    CoroutineType,
    FunctionType,
    GeneratorType,
    MethodDescriptorType,
    MethodType,
    WrapperDescriptorType,
)
from typing import Any, Final, NamedTuple

_DEPTH: Final = 100
_NESTING: Final = 5  # context managers made of context managers
_CONTAINER: Final = 10_000
_EXITS: Final = frozenset({"__aexit__", "__exit__"})
_UNBOUND: Final = (FunctionType, MethodDescriptorType, WrapperDescriptorType)
_WRAPPERS: Final = frozenset(
    {
        "FutureIter",
        "coroutine_wrapper",
        "async_generator_asend",
        "async_generator_athrow",
        "anext_awaitable",
        "_GatheringFuture",
    }
)


class Link(NamedTuple):
    """One suspended function of an await chain; ``frame`` is its frame."""

    awaitable: Any
    frame: Any


class Wait(NamedTuple):
    """What a task waits for.

    ``kind`` is that of a resource, ``target`` the object.  ``futures`` are those whose end is waited for, ``ended_by`` says
    whether any one or all of them are.  ``concurrent`` is the ``concurrent.futures.Future`` behind the wait.  ``detail`` as
    in `model.Resource`.
    """

    kind: str
    target: Any
    timed: bool = False
    futures: tuple[Any, ...] = ()
    ended_by: str = "signal"
    concurrent: Any = None
    detail: str | None = None


def is_running(coroutine: Any) -> bool:
    """Return whether a task's coroutine is executing right now."""
    return bool(getattr(coroutine, "cr_running", False) or getattr(coroutine, "gi_running", False))


def chain_of(awaitable: Any) -> list[Link]:
    """Return the suspended functions from a task's coroutine to the innermost one that it awaits."""
    chain: list[Link] = []
    for _ in range(_DEPTH):
        kind = type(awaitable)
        if kind is CoroutineType:
            frame, following = awaitable.cr_frame, awaitable.cr_await
        elif kind is GeneratorType:
            frame, following = awaitable.gi_frame, awaitable.gi_yieldfrom
        elif kind is AsyncGeneratorType:
            frame, following = awaitable.ag_frame, awaitable.ag_await
        else:
            awaitable = _unwrapped(awaitable)
            if awaitable is None:
                break
            continue
        if frame is None:
            break
        chain.append(Link(awaitable, frame))
        awaitable = following
    return chain


def _unwrapped(awaitable: Any) -> Any:
    """Return the coroutine or asynchronous generator inside one of the interpreter's own wrappers, else None."""
    if type(awaitable).__name__ not in _WRAPPERS or type(awaitable).__module__ not in ("builtins", "_asyncio"):
        return None
    inside = (CoroutineType, GeneratorType, AsyncGeneratorType)
    found = [one for one in gc.get_referents(awaitable) if type(one) in inside]
    if not found and type(awaitable).__name__ == "anext_awaitable":
        return next(iter(gc.get_referents(awaitable)), None)
    return found[0] if found else None


# ---------------------------------------------------------------- what is entered


def entered(chain: list[Link]) -> list[Any]:
    """Return the context managers that the functions of a chain are inside of, outermost first, each entry once.

    One whose ``__aenter__`` is still under way is not entered yet.  Of a ``contextmanager`` and of an exit stack those are
    named that they have entered themselves.  A lock that `Condition.wait` has given back is left out.
    """
    found: list[Any] = []
    for i, link in enumerate(chain):
        here = _on_stack(link)
        following = chain[i + 1].frame.f_code.co_name if i + 1 < len(chain) else ""
        if following == "__aenter__" and here:
            here.pop()
        for manager in here:
            found += _expanded(manager, _NESTING)
    for link in chain:
        if link.frame.f_code is _code("locks", "Condition.wait"):
            condition = link.frame.f_locals.get("self")
            for i in range(len(found) - 1, -1, -1):
                if found[i] is condition or found[i] is getattr(condition, "_lock", None):
                    del found[i]
                    break
    return found


def suspended(chain: list[Link]) -> list[Link]:
    """Return the functions of a chain, and the generators of the ``contextmanager`` blocks that they are inside of."""
    found = list(chain)
    for link in found:  # grows as it goes
        for manager in _on_stack(link) if len(found) < _DEPTH else ():
            found += _generators(manager, _NESTING)
    return found


def _generators(manager: Any, depth: int) -> list[Link]:
    kind = type(manager)
    if issubclass(kind, (contextlib._GeneratorContextManager, contextlib._AsyncGeneratorContextManager)):  # noqa: SLF001
        generator = manager.__dict__.get("gen")
        frame = getattr(generator, "ag_frame", None) or getattr(generator, "gi_frame", None)
        return [] if frame is None else [Link(generator, frame)]
    inner: list[Link] = []
    if depth and issubclass(kind, contextlib._BaseExitStack):  # noqa: SLF001
        for _, callback in list(manager.__dict__.get("_exit_callbacks", ())):
            if type(callback) is MethodType and getattr(callback.__func__, "__name__", None) in _EXITS:
                inner += _generators(callback.__self__, depth - 1)
    return inner


def is_acquire(link: Link) -> bool:
    """Return whether a function is `asyncio.Lock.acquire`."""
    return link.frame.f_code is _code("locks", "Lock.acquire")


def waiting_condition(chain: list[Link]) -> Any:
    """Return the condition that a chain waits on, None if it waits on none."""
    code = _code("locks", "Condition.wait")
    return next((link.frame.f_locals.get("self") for link in chain if link.frame.f_code is code), None)


def referred_to(link: Link) -> list[Any]:
    """Return what a suspended function's variables refer to, and what lies in the containers among that."""
    found = _referents(link)
    for one in list(found):
        if isinstance(one, (list, tuple, set, frozenset, dict)) and len(one) <= _CONTAINER:
            found += gc.get_referents(one)
        elif type(one).__name__ == "TaskGroup":
            found += list(getattr(one, "_tasks", ()))
    return found


def _referents(link: Link) -> list[Any]:
    return gc.get_referents(link.awaitable if sys.version_info >= (3, 11) else link.frame)


def _on_stack(link: Link) -> list[Any]:
    """Return the managers whose exits lie on the value stack of a suspended function, in the order of their entry."""
    held = _referents(link)
    found = []
    for i, one in enumerate(held):
        kind = type(one)
        if kind is MethodType:
            if getattr(one.__func__, "__name__", None) in _EXITS:
                found.append(one.__self__)
        elif kind is BuiltinMethodType:
            if one.__name__ in _EXITS:
                found.append(one.__self__)
        elif kind in _UNBOUND and one.__name__ in _EXITS and i + 1 < len(held):
            found.append(held[i + 1])  # 3.14 pushes the function and its first argument
    return found


def _expanded(manager: Any, depth: int) -> list[Any]:
    kind = type(manager)
    inner: list[Any] = []
    if depth and issubclass(kind, (contextlib._GeneratorContextManager, contextlib._AsyncGeneratorContextManager)):  # noqa: SLF001
        generator = manager.__dict__.get("gen")
        frame = getattr(generator, "ag_frame", None) or getattr(generator, "gi_frame", None)
        if frame is not None:
            for one in _on_stack(Link(generator, frame)):
                inner += _expanded(one, depth - 1)
        return inner
    if depth and issubclass(kind, contextlib._BaseExitStack):  # noqa: SLF001
        for _, callback in list(manager.__dict__.get("_exit_callbacks", ())):
            if type(callback) is MethodType and getattr(callback.__func__, "__name__", None) in _EXITS:
                inner += _expanded(callback.__self__, depth - 1)
        return inner
    return [manager]


# ---------------------------------------------------------------- what is waited for


def _code(module: str, path: str) -> Any:
    """Return the code object of a function of asyncio, None where this version has none or it is not loaded."""
    found: Any = sys.modules.get(f"asyncio.{module}")
    for name in path.split("."):
        found = getattr(found, name, None)
    return getattr(found, "__code__", None)


_KINDS: Final = (  # the innermost function that tells, on whose behalf a future is awaited; outer ones come first
    ("locks", "Barrier.wait", "asyncio-barrier"),
    ("queues", "Queue.get", "asyncio-queue"),
    ("queues", "Queue.put", "asyncio-queue"),
    ("queues", "Queue.join", "asyncio-queue"),
    ("locks", "Event.wait", "asyncio-event"),
    ("locks", "Semaphore.acquire", "asyncio-semaphore"),
    ("locks", "Condition.wait", "asyncio-condition"),
    ("locks", "Lock.acquire", "asyncio-lock"),
)
_codes: dict[Any, str] = {}
_FORWARDING: Final = frozenset(
    {"_chain_future.<locals>._call_check_cancel", "shield.<locals>._outer_done_callback"}
)  # callbacks of a future that stands for another one


def _kind_of_code(code: Any) -> str | None:
    if not _codes:
        for module, path, kind in _KINDS:
            found = _code(module, path)
            if found is not None:
                _codes[found] = kind
    return _codes.get(code)


def wait_of(chain: list[Link], future: Any) -> Wait:
    """Return what a task waits for, given its chain and the future at its end (``_fut_waiter``)."""
    timed = any(_has_timeout(link) for link in chain)
    if chain and chain[-1].frame.f_code is _code("locks", "Lock.acquire"):
        # Also where a condition takes its lock back: that is what it waits for then.
        return Wait("asyncio-lock", chain[-1].frame.f_locals.get("self"), timed, ended_by="holder")
    for link in chain:
        kind = _kind_of_code(link.frame.f_code)
        if kind is not None:
            target = link.frame.f_locals.get("self")
            ends = {"asyncio-semaphore": "any-holder", "asyncio-barrier": "parties"}.get(kind, "signal")
            return Wait(kind, target, timed, ended_by=ends, detail=_detail(link, target))
    several = _several(chain)
    if several is not None:
        return _of_futures(future, *several, timed)
    return _of_future(future, timed)


def _detail(link: Link, target: Any) -> str | None:
    name = link.frame.f_code.co_name
    if name == "put":
        return f"full, {target._maxsize} of {target._maxsize}"  # noqa: SLF001 - a queue of asyncio
    if name == "get":
        return "empty"
    if name == "join":
        return f"{target._unfinished_tasks} tasks not done"  # noqa: SLF001
    return None


def _has_timeout(link: Link) -> bool:
    code = link.frame.f_code
    if code is _code("tasks", "sleep"):
        return True
    if code is _code("tasks", "wait_for") or code is _code("tasks", "_wait"):
        return link.frame.f_locals.get("timeout") is not None
    return False


def _several(chain: list[Link]) -> tuple[tuple[Any, ...], str] | None:
    """Return (futures, how they end the wait) of ``asyncio.wait`` and of a task group that is being left."""
    for link in reversed(chain):
        code = link.frame.f_code
        if code is _code("tasks", "_wait"):
            found = link.frame.f_locals
            every = found.get("return_when") == "ALL_COMPLETED"
            return tuple(found.get("fs", ())), "all-holders" if every else "any-holder"
        if code is _code("taskgroups", "TaskGroup.__aexit__") or code is _code("taskgroups", "TaskGroup._aexit"):
            group = link.frame.f_locals.get("self")
            # One that fails ends the others, and with them the wait.
            return tuple(getattr(group, "_tasks", ())), "any-holder"
        if code is _code("tasks", "wait_for"):
            inner = link.frame.f_locals.get("fut")
            return ((inner,), "holder") if inner is not None else None
    return None


def _of_futures(waiter: Any, futures: tuple[Any, ...], ends: str, timed: bool) -> Wait:
    pending = tuple(one for one in futures if not _is_done(one))
    if len(pending) == 1:
        return _of_future(pending[0], timed)
    total, left = len(futures), len(pending)
    return Wait("tasks", waiter, timed, pending, ends, detail=f"{left} of {total} not done")


def _of_future(future: Any, timed: bool, depth: int = 4) -> Wait:
    """Return what it means to wait for a future: a task, several, one in another thread, or one that somebody sets."""
    if is_task(future):
        return Wait("task", future, timed, (future,), "holder")
    children = getattr(future, "_children", None) if type(future).__name__ == "_GatheringFuture" else None
    if children:
        every = any(_cell(callback, "return_exceptions") is True for callback in _callbacks(children[0]))
        return _of_futures(future, tuple(children), "all-holders" if every else "any-holder", timed)
    for callback in _callbacks(future):
        name = getattr(callback, "__qualname__", "")
        if name == "_chain_future.<locals>._call_check_cancel":
            return Wait("future", future, timed, concurrent=_cell(callback, "source"))
        if name == "shield.<locals>._outer_done_callback":
            inner = _cell(callback, "inner")
            if inner is not None and depth:
                return _of_future(inner, timed, depth - 1)
    return Wait("future", future, timed)


def concurrent_future_of(task: Any) -> Any:
    """Return the ``concurrent.futures.Future`` that this task's end completes (``run_coroutine_threadsafe``), else None."""
    for callback in _callbacks(task):
        if getattr(callback, "__qualname__", "") == "_chain_future.<locals>._call_set_state":
            return _cell(callback, "destination")
    return None


def coming_future_of(callback: Any) -> Any:
    """Return the concurrent future of a task that ``run_coroutine_threadsafe`` has ordered and the loop not yet made."""
    if getattr(callback, "__qualname__", "") == "run_coroutine_threadsafe.<locals>.callback":
        return _cell(callback, "future")
    return None


# ---------------------------------------------------------------- tasks and futures


_HELD: Final = (
    *(("locks", "Lock.acquire"), ("locks", "Semaphore.acquire"), ("tasks", "_wait"), ("tasks", "wait_for")),
    *(("taskgroups", "TaskGroup.__aexit__"), ("taskgroups", "TaskGroup._aexit")),
)
_held_codes: set[Any] = set()


def may_be_held(coroutine: Any, future: Any) -> bool:
    """Return whether somebody may hold what a task waits for: a lock, a permit, or the end of another task.

    A quick answer for the many tasks that wait for a descriptor, a queue or a timer.
    """
    if not _held_codes:
        _held_codes.update(_code(module, path) for module, path in _HELD)
        _held_codes.discard(None)
    if is_task(future) or type(future).__name__ == "_GatheringFuture":
        return True
    for _ in range(_DEPTH):
        if type(coroutine) is CoroutineType:
            code, following = coroutine.cr_code, coroutine.cr_await
        elif type(coroutine) is GeneratorType:
            code, following = coroutine.gi_code, coroutine.gi_yieldfrom
        elif type(coroutine) is AsyncGeneratorType:
            code, following = coroutine.ag_code, coroutine.ag_await
        else:
            coroutine = _unwrapped(coroutine)
            if coroutine is None:
                break
            continue
        if code in _held_codes:
            return True
        coroutine = following
    names = {getattr(callback, "__qualname__", "") for callback in _callbacks(future)}
    return not names.isdisjoint(_FORWARDING)


def is_task(future: Any) -> bool:
    """Return whether this is a task of asyncio's own classes or of one made from them."""
    tasks = sys.modules.get("asyncio.tasks")
    return tasks is not None and isinstance(future, (tasks.Task, tasks._PyTask))  # noqa: SLF001


def task_class(task: Any) -> Any:
    """Return asyncio's own class of a task: its methods are called, not those of a subclass."""
    tasks: Any = sys.modules["asyncio.tasks"]
    return tasks.Task if isinstance(task, tasks.Task) else tasks._PyTask  # noqa: SLF001


def _is_done(future: Any) -> bool:
    return getattr(future, "_state", "PENDING") != "PENDING"


def is_pending(future: Any) -> bool:
    """Return whether a future has no result, no exception, and is not cancelled."""
    return not _is_done(future)


def _callbacks(future: Any) -> list[Any]:
    found = getattr(future, "_callbacks", None)
    return [one[0] if type(one) is tuple else one for one in list(found or ())]


def _cell(function: Any, name: str) -> Any:
    """Return what a closure's variable holds, None if there is none of that name."""
    if type(function) is not FunctionType or name not in function.__code__.co_freevars:
        return None
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    try:
        return cells[name].cell_contents
    except ValueError:  # not set yet
        return None
