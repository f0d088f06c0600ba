"""Says who holds the locks and permits that tasks wait for: nobody writes that down.

Four kinds of holds are seen, all in suspended functions: a lock that ``async with`` has entered, whose exit lies on the stack
(``awaits``); one that a bare ``await lock.acquire()`` has taken and the same function releases later (``bareholds``); the same
in the generator of a ``contextmanager``; one that a manager's own ``__aenter__`` has acquired, and its ``__aexit__`` releases.

If just one task has a locked lock, that one will release it.  A lock that is acquired to be released by another task
has an unknown holder, who counts as able to go on.  Of a semaphore all permits must be accounted for: only a
``BoundedSemaphore`` says how many there are.  Of another one those who are known may be some of several (a pool's ``get`` has
returned, and left no trace), so anybody alive may give a permit back.

Cost       nothing where nobody waits for a lock or a permit; else ten to sixty microseconds a task.
"""

from __future__ import annotations

import sys
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from concagent import awaits, bareholds
from concagent.framevalues import attribute_of, class_attribute, value_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

_KINDS: Final = ("Lock", "Semaphore", "Condition")


class Taken(NamedTuple):
    """A lock or semaphore that a task has; ``site`` is None where it has entered it."""

    thing: Any
    discipline: str
    site: tuple[CodeType, int] | None


def taken_by(chain: list[awaits.Link], entered: list[Any]) -> list[Taken]:
    """Return what a task has, each hold once; ``entered`` as `awaits.entered` says."""
    found = [Taken(_lock_of(manager), "owned", None) for manager in entered]
    for manager in entered:
        found += [Taken(thing, "owned", None) for thing in _kept_by(manager)]
    given_back = _lock_of(awaits.waiting_condition(chain))
    for link in awaits.suspended(chain):
        for hold in bareholds.held_at(link.frame.f_code, link.frame.f_lasti):
            thing = _lock_of(value_of(link.frame, hold.expression))
            if thing is not given_back and _is_of_asyncio(thing) and hold.discipline == "later":
                found.append(Taken(thing, hold.discipline, (link.frame.f_code, hold.lasti)))
    return found


def wait_discipline(chain: list[awaits.Link]) -> str:
    """Return what is known of who will release the lock that a task waits for: ``owned``, ``later`` or ``bare``."""
    acquiring = next((i for i, link in enumerate(chain) if awaits.is_acquire(link)), 0)
    if acquiring == 0:
        return "bare"
    link = chain[acquiring - 1]
    if link.frame.f_code.co_name == "__aenter__":
        return "owned"
    return bareholds.awaited_habit(link.frame.f_code, link.frame.f_lasti)


def _lock_of(thing: Any) -> Any:
    """Return the lock of a condition of asyncio, anything else as it is."""
    return attribute_of(thing, ("_lock",)) if _is_of_asyncio(thing, "Condition") else thing


def _is_of_asyncio(thing: Any, *kinds: str) -> bool:
    module = sys.modules.get("asyncio.locks")
    return any(issubclass(type(thing), getattr(module, name, ())) for name in kinds or _KINDS)


def _kept_by(manager: Any) -> Iterator[Any]:
    """Yield what the ``__aenter__`` of a manager of the program's has acquired for its ``__aexit__`` to release."""
    enter, leave = (class_attribute(type(manager), name) for name in ("__aenter__", "__aexit__"))
    if type(enter) is FunctionType and type(leave) is FunctionType and not _is_of_asyncio(manager):
        for expression in bareholds.left_held(enter.__code__) & bareholds.released(leave.__code__):
            if expression[0] == enter.__code__.co_varnames[0]:
                thing = _lock_of(attribute_of(manager, expression[1:]))
                if _is_of_asyncio(thing):
                    yield thing
