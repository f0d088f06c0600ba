"""Tells from bytecode whether whoever took a plain Lock is going to release it himself.

Python lets any thread release a Lock, and programs use that: a Lock taken at the start and released by another thread is
a poor man's event.  Such a wait looks exactly like a self-deadlock until the release comes.  The code that took the lock
tells them apart: ``acquire()`` followed by a ``try`` whose handler releases the same expression is a mutex, and nobody
writes that around a signal.  A release of the same expression further down in the same function says nearly as much.
In the idiom ``acquire(); start(thread); acquire(); release()`` the release belongs to the second acquire, and who gives
the first one back is somebody else; so what comes next in the function must be a release, and it must be called: the
``release`` in ``Timer(1, lock.release)`` is the somebody else.

Of other threads the same look tells whether they may be that somebody else: who releases what he has not taken.

Only asked about the few holds of a ring, after it was found; the answer for a site never changes and is cached.

Limits     expressions other than dotted names (``locks[i].acquire()``) and stored bound methods count as ``bare``.
Cost       one disassembly of the function per site.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import CodeType

_BASES = (
    "LOAD_FAST",
    "LOAD_GLOBAL",
    "LOAD_NAME",
    "LOAD_DEREF",
    "LOAD_CLASSDEREF",
    "LOAD_FAST_BORROW",
    "LOAD_FAST_CHECK",
)
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
_CONSTANTS = ("LOAD_CONST", "LOAD_SMALL_INT", "LOAD_COMMON_CONSTANT")
_ACQUIRES = ("acquire", "acquire_lock")
_RELEASES = ("release", "release_lock")
_TRY_DISTANCE = 6  # instructions between the call and the first one that the ``try`` protects


@functools.lru_cache(maxsize=1024)
def discipline(code: CodeType | None, lasti: int) -> str:
    """Return ``finally``, ``later``, ``try`` or ``bare`` (see ``AssignmentEdge``) for an acquire called at this instruction."""
    if code is None:
        return "bare"
    instructions = instructions_of(code)
    # During a call the offset is that of the call or, on 3.11 and 3.12, of the last inline cache behind it.
    at = max((i for i, ins in enumerate(instructions) if ins.offset <= lasti), default=-1)
    if at < 0:
        return "bare"
    taken = _called(instructions, at)
    if taken is None:
        return "bare"
    releases = [ins.offset for ins in _loads(instructions, taken, _RELEASES) if is_called(ins)]
    acquires = [ins.offset for ins in _loads(instructions, taken, _ACQUIRES)]
    near = {ins.offset for ins in instructions[at + 1 : at + 1 + _TRY_DISTANCE]}
    for start, target in _handlers(code, instructions):
        end = _end_of_handler(instructions, target)
        if start in near and any(target <= offset < end for offset in releases):
            return "bare" if _is_conditional(instructions, target, end) else "finally"
    following = min((offset for offset in releases if offset > lasti), default=None)
    if following is None or any(lasti < offset < following for offset in acquires):
        return "try" if _only_tries(instructions, at) else "bare"
    return "later"


@functools.lru_cache(maxsize=1024)
def releases_for_others(code: CodeType) -> bool:
    """Return whether a function releases, or hands on the ``release`` of, something that it does not acquire itself."""
    if not set(_RELEASES).intersection(code.co_names):
        return False
    instructions = instructions_of(code)
    released, taken = set(), set()
    for i, ins in enumerate(instructions):
        if ins.opname in _ATTRIBUTES and ins.argval in _RELEASES:
            released.add(expression_of(instructions, i - 1))
        elif ins.opname in _ATTRIBUTES and ins.argval in _ACQUIRES and is_called(ins):
            taken.add(expression_of(instructions, i - 1))
    return not released <= taken


@functools.lru_cache(maxsize=256)
def calls_behind(code: CodeType, lasti: int, methods: frozenset[str]) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """Return (offset, dotted name of the object) of each call of one of these methods further down in a function."""
    instructions = instructions_of(code)
    found = []
    for i, ins in enumerate(instructions):
        if ins.offset > lasti and ins.opname in _ATTRIBUTES and ins.argval in methods and is_called(ins):
            expression = expression_of(instructions, i - 1)
            if expression is not None:
                found.append((ins.offset, expression))
    return tuple(found)


@functools.lru_cache(maxsize=256)
def called_on(code: CodeType, lasti: int, methods: frozenset[str]) -> tuple[str, ...] | None:
    """Return the dotted name of the object whose method a function calls at an instruction, None if it is no such name."""
    instructions = instructions_of(code)
    for i in range(len(instructions) - 1, -1, -1):
        ins = instructions[i]
        if ins.offset <= lasti and ins.opname in _ATTRIBUTES and ins.argval in methods:
            return expression_of(instructions, i - 1)
    return None


@functools.lru_cache(maxsize=256)
def has_another_way(code: CodeType, lasti: int, method: str) -> bool:
    """Return whether a call that raises ``RuntimeError`` is caught by a handler that calls the same method, or takes a lock."""
    if "RuntimeError" not in code.co_names:
        return False
    instructions = instructions_of(code)
    other = {method, f"{method}_all", f"{method}_for", *_ACQUIRES}
    for start, target in _handlers(code, instructions):
        end = _end_of_handler(instructions, target)
        if start <= lasti < target:
            inside = [ins for ins in instructions if target <= ins.offset < end]
            if any(ins.opname in _ATTRIBUTES and ins.argval in other for ins in inside):
                return True
    return False


def _is_conditional(instructions: list[Any], start: int, end: int) -> bool:
    """Return whether a handler asks first: ``if lock.locked(): lock.release()`` reckons with somebody else's release."""
    return any(start <= ins.offset < end and "JUMP" in ins.opname and "IF" in ins.opname for ins in instructions)


def _only_tries(instructions: list[Any], at: int) -> bool:
    """Return whether the call at index ``at`` is ``acquire(False)`` or ``acquire(blocking=False)``: a flag, not a mutex."""
    for i in range(at, max(-1, at - 12), -1):
        ins = instructions[i]
        if ins.opname in _ATTRIBUTES and ins.argval in _ACQUIRES:
            return False
        if ins.opname in _CONSTANTS and (ins.argval is False or ins.argval == 0):
            return True
    return False


def _end_of_handler(instructions: list[Any], target: int) -> int:
    """Return the offset where a handler passes the exception on: a release behind it is not the handler's."""
    return min((ins.offset for ins in instructions if ins.offset > target and ins.opname == "RERAISE"), default=target)


def _loads(instructions: list[Any], taken: tuple[str, ...], methods: tuple[str, ...]) -> list[Any]:
    """Return the instructions where one of these methods of the expression are looked up."""
    return [
        ins
        for i, ins in enumerate(instructions)
        if ins.opname in _ATTRIBUTES and ins.argval in methods and expression_of(instructions, i - 1) == taken
    ]


def is_called(ins: Any) -> bool:
    """Return whether a method without arguments is looked up in order to be called, and not to be handed on."""
    return ins.opname == "LOAD_METHOD" or (sys.version_info >= (3, 12) and bool(ins.arg & 1))


def is_attribute(ins: Any) -> bool:
    """Return whether an instruction looks up an attribute or a method."""
    return ins.opname in _ATTRIBUTES


def instructions_of(code: CodeType) -> list[Any]:
    """Return the instructions of a function without what only belongs to others."""
    import dis

    return [ins for ins in dis.get_instructions(code) if ins.opname not in ("CACHE", "EXTENDED_ARG")]


def _called(instructions: list[Any], at: int) -> tuple[str, ...] | None:
    """Return the dotted name whose ``acquire`` the call at index ``at`` calls: the nearest one before it."""
    for i in range(at, max(-1, at - 12), -1):
        ins = instructions[i]
        if ins.opname in _ATTRIBUTES and ins.argval in _ACQUIRES:
            return expression_of(instructions, i - 1)
    return None


def expression_of(instructions: list[Any], end: int) -> tuple[str, ...] | None:
    """Return the dotted name that ends at index ``end``, None if it is no dotted name."""
    names: list[str] = []
    for i in range(end, -1, -1):
        ins = instructions[i]
        if ins.opname in _ATTRIBUTES:
            names.append(str(ins.argval))
        elif ins.opname in _BASES:
            names.append(str(ins.argval))
            return tuple(reversed(names))
        elif ins.opname in ("LOAD_FAST_LOAD_FAST", "LOAD_FAST_BORROW_LOAD_FAST_BORROW"):
            names.append(str(ins.argval[1]))
            return tuple(reversed(names))
        else:
            return None
    return None


def _handlers(code: CodeType, instructions: list[Any]) -> list[tuple[int, int]]:
    """Return (offset of the first protected instruction, offset of the handler) of every ``try`` in the function."""
    if sys.version_info >= (3, 11):
        import dis

        entries: list[Any] = dis._parse_exception_table(code)  # type: ignore[attr-defined]  # noqa: SLF001 - there is no public one
        return [(entry.start, entry.target) for entry in entries]
    found = []
    for i, ins in enumerate(instructions):
        if ins.opname == "SETUP_FINALLY" and i + 1 < len(instructions):
            found.append((instructions[i].offset, int(ins.argval)))
    return found
