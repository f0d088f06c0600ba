"""Tells from bytecode what a suspended function has acquired by a bare call and not released yet.

Who holds an ``asyncio.Lock`` nobody writes down.  Inside ``async with`` the exit on the stack tells (``awaits``); after
``await lock.acquire()`` nothing lies anywhere.  But where a function is suspended, its code says what it has done on the
way there: if on every path from its beginning to this instruction the last thing that it did with ``lock`` was to acquire it, it
has it, and has not given it back itself.  That is a forward analysis over the instructions with two bits for each
expression: may be free, may be held.  An ``acquire`` counts where its ``await`` is over, so a function that waits does not
hold; a ``release`` that is handed on, an ``acquire`` that is not awaited at once, and a new value for one of the names make it
uncertain.  Uncertain is not held.

Whether it releases later, too, is read from the paths that go on: the next thing with this expression must be a release.
Only such a hold is its function's own affair (``later``); another one is ``bare``: somebody else may be meant to release.

Nothing of asyncio is replaced for this, and a program pays nothing for it.

Invariants B1 a hold is named only if it is there on all paths, exceptions included: for ranges of instructions under a ``try``
           any of them may have raised.
Limits     dotted names only; what a function that has returned has taken is not seen, but for ``__aenter__``.
Cost       one analysis for a function and a place in it, cached; a millisecond for a large one.
Sources    CPython Python/compile.c (`await`), Lib/dis.py, 3.10-3.15.
"""

from __future__ import annotations

import functools
import sys
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from concagent import discipline

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

_FREE, _HELD, _EITHER = 1, 2, 3
_METHODS: Final = frozenset({"acquire", "release"})
_NO_FALL: Final = frozenset(
    {"JUMP_FORWARD", "JUMP_ABSOLUTE", "RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE"}
)
_CALLS: Final = frozenset(
    {"PUSH_NULL", "PRECALL", "CALL", "CALL_METHOD", "CALL_FUNCTION"}
)  # all of a call without arguments
_NEAR: Final = 4  # instructions of one ``await``
_LIMIT: Final = 5_000  # instructions of a function that is looked at

Expression = tuple[str, ...]


class Hold(NamedTuple):
    """A lock that a function has: its dotted name, ``later`` or ``bare``, and the instruction that acquired it."""

    expression: Expression
    discipline: str
    lasti: int


class _Event(NamedTuple):
    kind: str  # "acquire", "release", "doubt"
    expression: Expression


@functools.lru_cache(maxsize=1024)
def held_at(code: CodeType, lasti: int) -> tuple[Hold, ...]:
    """Return what a function that is suspended at this instruction holds for certain."""
    flow = _flow_of(code)
    if flow is None:
        return ()
    at = flow.index_of(lasti)
    return tuple(
        Hold(expression, flow.habit(expression, at), flow.acquired(expression, at))
        for expression in sorted(flow.expressions)
        if at >= 0 and flow.states(expression)[at] == _HELD
    )


@functools.lru_cache(maxsize=1024)
def awaited_habit(code: CodeType, lasti: int) -> str:
    """Return ``later`` if a function that is suspended in an ``acquire`` releases the same next, else ``bare``."""
    flow = _flow_of(code)
    return flow.habit_of_wait(flow.index_of(lasti)) if flow is not None else "bare"


@functools.lru_cache(maxsize=256)
def left_held(code: CodeType) -> frozenset[Expression]:
    """Return what a function has acquired for certain whenever it returns, such as an ``__aenter__``."""
    flow = _flow_of(code)
    return flow.held_at_the_end() if flow is not None else frozenset()


@functools.lru_cache(maxsize=256)
def released(code: CodeType) -> frozenset[Expression]:
    """Return what a function releases: an ``__aexit__``."""
    flow = _flow_of(code)
    found = [event for events in flow.events.values() for event in events] if flow is not None else []
    return frozenset(event.expression for event in found if event.kind == "release")


@functools.lru_cache(maxsize=32)
def _flow_of(code: CodeType) -> _Flow | None:
    if not _METHODS.intersection(code.co_names) or len(code.co_code) > 2 * _LIMIT:
        return None
    return _Flow(code)


class _Flow:
    """The instructions of a function, what they do with locks, and where they lead."""

    def __init__(self, code: CodeType) -> None:
        self._instructions: list[Any] = discipline.instructions_of(code)
        self._offsets = [ins.offset for ins in self._instructions]
        self._jumps = _jump_opcodes()
        self.events: dict[int, list[_Event]] = {}  # index of an instruction -> what it does when it is over
        self.expressions: set[Expression] = set()
        self._thrown: set[int] = set()
        self._find_calls()
        self._find_stores()
        self._handlers = self._find_handlers(code)
        self._states: dict[Expression, list[int]] = {}

    def index_of(self, lasti: int) -> int:
        """Return the index of the instruction at an offset, -1 if there is none."""
        return bisect_right(self._offsets, lasti) - 1

    def _index_at(self, offset: int) -> int:
        return min(bisect_left(self._offsets, offset), len(self._offsets) - 1)

    # ------------------------------------------------------------ what is done

    def _find_calls(self) -> None:
        for i, ins in enumerate(self._instructions):
            if not discipline.is_attribute(ins) or ins.argval not in _METHODS:
                continue
            expression = discipline.expression_of(self._instructions, i - 1)
            if expression is None:
                continue
            self.expressions.add(expression)
            over = self._awaited(i) if ins.argval == "acquire" else i if discipline.is_called(ins) else None
            if over is None:
                self._add(i, _Event("doubt", expression))
                continue
            self._add(over, _Event(ins.argval, expression))
            for other in self._thrown_of(over):
                self._add(other, _Event(ins.argval, expression))
                self._thrown.add(other)

    def _add(self, index: int, event: _Event) -> None:
        self.events.setdefault(index, []).append(event)

    def _awaited(self, at: int) -> int | None:
        """Return the index of the instruction after which ``await x.acquire()`` is over, None if it is not that."""
        i = at + 1
        while i < len(self._instructions) and self._instructions[i].opname in _CALLS:
            i += 1
        if i >= len(self._instructions) or self._instructions[i].opname != "GET_AWAITABLE":
            return None
        near = range(i + 1, min(i + 1 + _NEAR, len(self._instructions)))
        return next((k for k in near if self._instructions[k].opname in {"SEND", "YIELD_FROM"}), None)

    def _thrown_of(self, over: int) -> Iterator[int]:
        """Yield where an ``await`` is over, too (3.12): what was awaited returned when an exception was thrown into it."""
        ins = self._instructions
        for i in range(len(ins) - 1):
            if (
                ins[i].opname == "CLEANUP_THROW"
                and ins[over].opname == "SEND"
                and ins[i + 1].argval == ins[over].argval
            ):
                yield i

    def _find_stores(self) -> None:
        for i, ins in enumerate(self._instructions):
            if ins.opname.startswith(("STORE_", "DELETE_")):
                names = ins.argval if isinstance(ins.argval, tuple) else (ins.argval,)
                for expression in self.expressions:
                    if not set(names).isdisjoint(expression):
                        self._add(i, _Event("doubt", expression))

    # ------------------------------------------------------------ where it leads

    def _find_handlers(self, code: CodeType) -> list[tuple[int, int, int]]:
        """Return (index of the first, index behind the last protected instruction, index of the handler)."""
        if sys.version_info >= (3, 11):
            import dis

            entries: list[Any] = dis._parse_exception_table(code)  # type: ignore[attr-defined]  # noqa: SLF001 - there is no public one
            return [(self._index_at(e.start), self._index_at(e.end), self._index_at(e.target)) for e in entries]
        found = []
        for i, ins in enumerate(self._instructions):
            if ins.opname in {"SETUP_FINALLY", "SETUP_WITH", "SETUP_ASYNC_WITH"}:
                target = self._index_at(ins.argval)
                found.append((i, target, target))
        return found

    def _ways(self, at: int) -> Iterator[tuple[int, bool]]:
        """Yield (index of an instruction that may come next, whether this one is over by then)."""
        ins = self._instructions[at]
        waits = ins.opname == "SEND"
        if ins.opcode in self._jumps:
            yield self._index_at(ins.argval), True
        if ins.opname not in _NO_FALL and not ins.opname.startswith("JUMP_BACKWARD") and at + 1 < len(self._offsets):
            yield at + 1, not waits

    # ------------------------------------------------------------ the analysis

    def states(self, expression: Expression) -> list[int]:
        """Return what may be before each instruction, 0 for one that is never reached."""
        found = self._states.get(expression)
        if found is None:
            found = self._states[expression] = self._analyse(expression)
        return found

    def _analyse(self, expression: Expression) -> list[int]:
        before = [0] * len(self._offsets)
        before[0] = _FREE
        work = [0]
        while work:
            at = work.pop()
            after = self._after(before[at], at, expression)
            reached = [(to, after if over else before[at]) for to, over in self._ways(at)]
            reached += [(to, before[at] | after) for first, behind, to in self._handlers if first <= at < behind]
            for to, state in reached:
                if before[to] | state != before[to]:
                    before[to] |= state
                    work.append(to)
        return before

    def _after(self, state: int, at: int, expression: Expression) -> int:
        for event in self.events.get(at, ()):
            if event.expression == expression:
                state = {"acquire": _HELD, "release": _FREE, "doubt": _EITHER}[event.kind]
        return state

    def acquired(self, expression: Expression, at: int) -> int:
        """Return the offset of the nearest ``acquire`` before an instruction."""
        event = _Event("acquire", expression)
        found = [i for i, events in self.events.items() if i < at and event in events and i not in self._thrown]
        return int(self._offsets[max(found, default=at)])

    def habit(self, expression: Expression, at: int) -> str:
        """Return ``later`` if the next thing on any way on is a release, ``bare`` if it is not, or there is none."""
        return self._next(expression, [at], range(0))

    def habit_of_wait(self, at: int) -> str:
        """Return the same for a lock that the function awaits here; ``bare`` if it awaits none."""
        near = range(max(0, at - _NEAR), at + _NEAR)
        waits = [event for i in near for event in self.events.get(i, ()) if event.kind == "acquire"]
        return self._next(waits[0].expression, [to for to, _ in self._ways(at)], near) if len(waits) == 1 else "bare"

    def _next(self, expression: Expression, start: list[int], but_for: range) -> str:
        seen: set[int] = set()
        work = start
        is_released = False
        while work:
            i = work.pop()
            if i in seen or i < 0:
                continue
            seen.add(i)
            events = () if i in self._thrown or i in but_for else self.events.get(i, ())
            kinds = {event.kind for event in events if event.expression == expression}
            if "release" in kinds:
                is_released = True
            elif kinds:
                return "bare"
            else:
                work += [to for to, _ in self._ways(i)]
                work += [to for first, behind, to in self._handlers if first <= i < behind]
        return "later" if is_released else "bare"

    def held_at_the_end(self) -> frozenset[Expression]:
        """Return what is held wherever the function returns."""
        ends = [i for i, ins in enumerate(self._instructions) if ins.opname.startswith("RETURN_") and i > 1]
        found = set()
        for expression in self.expressions:
            states = {self.states(expression)[i] for i in ends} - {0}
            if states == {_HELD}:
                found.add(expression)
        return frozenset(found)


@functools.lru_cache(maxsize=1)
def _jump_opcodes() -> frozenset[int]:
    import dis

    return frozenset(dis.hasjrel) | frozenset(dis.hasjabs)
