"""Can anybody who is alive still get at an object that others wait for?

Whoever wants to set an event or put into a queue must have a reference to it, to a part of it, or to something that leads
there.  If the only ways lead from the frames of threads that are themselves stuck, nobody ever will: the wait is proven to
last for ever.  Unreachable once is unreachable for good, so it is enough to see it at one moment.

We do what CPython's cycle collector does, backwards.  Each object says how many references there are to it.  From the
awaited objects we collect who refers to them, who refers to those, and so on.  If *every* reference to *every* object of that
set comes from an object of the set, from a frame of a stuck thread, or from ourselves, nothing outside can enter it.  An
object with one reference more is a root: a running frame, a C structure, an extension that does not say what it refers to.
We need not know which: what cannot be seen counts as reached.

The set is found in several looks at the heap, with the program running in between; its members may be gone by then, so it
is kept as bare addresses.  The last look finds no new member, and everything is counted in this one look, with the GIL held
and no Python code run: so the proof holds at that moment, whatever happened between the looks.

Edges that are not references, and references that are no edges:

- Who has a *weak* reference gets at the object as long as somebody, here the stuck thread, keeps it.  So weak references lead
  there, too, though they explain nothing.  A callback of a weak reference is called by whoever drops the last reference to
  its object; one that leads to an awaited object is a root.
- Objects of the set that no stuck thread keeps are garbage that is not collected yet.  Garbage does nothing, but for its
  finalizer (that of a suspended generator runs its ``finally``): such an object is a root.  So is a task that nobody keeps.
- ``_target``, ``_args`` and ``_kwargs`` of a thread that is stuck are what it runs with; only ``Thread.run`` looks at them; the
  same is true of the coroutine of a stuck task and of the future that it awaits.
- The frames of the caller, as far as they are ours, and the mapping that it passes.

Assumes    the caller asks with threads that are stuck, and finds them in the same waits (epochs) *afterwards*: an answer is
           worth nothing for a thread that went on meanwhile.
Not seen   what digs in the interpreter: ``gc.get_objects``, ``sys._current_frames``, ``f_locals`` of a frame that is running
           elsewhere, addresses turned into objects by ``ctypes``.
Limits     a free-threaded build, PyPy: everything counts as reached.  The Python twin sees no running frames.  A thread that
           was started with ``_thread.start_new_thread(f, (x,))`` keeps ``x`` where nobody can see it.
Cost       one look takes about 100 ns for each object that the collector knows (1,000,000: 100 ms; a full collection
           takes 400-900 ms), and the program stands still.  It cannot be cut into slices: what is not kept alive may be gone
           after a slice, and to keep it alive would make finalizers of the program run in our thread.  ``node_limit`` bounds it.
           As many looks as the chain of references back to a root is long; 2 for an event that nobody else has.
Sources    CPython Modules/gcmodule.c (subtract_refs); ALGORITHMS.md 3.5.
"""

from __future__ import annotations

import sys
import sysconfig
import types
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from concagent import _pyreach, _real, core, graph, referrers, state
from concagent._pyreach import FINALIZER, KEEPS, KEPT, SOURCE_FORCED, STRONG
from concagent.stackslots import owned_slots

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from concagent.model import Snapshot

NODE_LIMIT: Final = 2_000_000
SECONDS: Final = 2.0
_LOOKS: Final = 100  # a longer chain of references than any program has a use for
_SET_LIMIT: Final = 200_000
_PAUSE_SECONDS: Final = 0.001  # between two looks, so that the program gets its turn
_WAITERS: Final = ("_waiters", "_getters", "_putters")
_ENTRY: Final = ("_target", "_args", "_kwargs")


@dataclass(frozen=True, slots=True)
class Reach:
    """What can still be reached: ``paths`` says of each resource in ``resources`` who refers to it.

    ``complete`` is False if a limit was hit; then all resources count as reached.  ``looks`` is how often the heap was looked
    at, ``longest_seconds`` the longest of these looks, during which the program stood still.
    """

    resources: frozenset[int]
    complete: bool = True
    paths: Mapping[int, str] = field(default_factory=dict)
    looks: int = 0
    objects: int = 0
    longest_seconds: float = 0.0


def is_offered() -> bool:
    """Return whether this interpreter's references can be counted at all."""
    return hasattr(sys, "getrefcount") and not sysconfig.get_config_var("Py_GIL_DISABLED")


def signal_objects(target: object) -> tuple[object, ...]:
    """Return an object and those of its parts by which alone its waiters could be woken.

    Conditions with their queues of waiters, of ``threading``, ``queue`` and ``concurrent.futures``; the queues of futures of
    ``asyncio``.  Anything else stands for itself.
    """
    found: dict[int, object] = {}
    todo = [target]
    while todo:
        one = todo.pop()
        if id(one) in found:
            continue
        found[id(one)] = one
        parts = _attributes(one)
        for name in _WAITERS:
            waiters: Any = parts.get(name)
            if type(waiters) in (deque, set, list):
                found[id(waiters)] = waiters
                found.update((id(waiter), waiter) for waiter in tuple(waiters))
        todo += [part for part in parts.values() if _is_part(part)]
    return tuple(found.values())


def _attributes(one: object) -> dict[str, Any]:
    try:
        parts = object.__getattribute__(one, "__dict__")
    except AttributeError:
        return {}
    return dict(parts) if type(parts) is dict else {}


def _is_part(part: object) -> bool:
    kind = type(part)
    return issubclass(kind, _real.Condition) or (kind.__module__ == "asyncio.locks" and kind.__name__ == "Event")


def reached(
    targets: Mapping[int, Sequence[object]],
    stuck: Collection[object],
    *,
    node_limit: int = NODE_LIMIT,
    seconds: float = SECONDS,
    own: Iterable[object] = (),
    twin: Any = None,
) -> Reach:
    """Return which of the awaited resources anything but ``stuck`` can still get at.

    Args:
        targets: Serial of a resource -> the objects by which it can be signalled (`signal_objects`), as dict of tuples or lists.
            Its references do not count.  Nothing else in frames that are not concagent's may refer to them.
        stuck: Idents of OS threads, and ``Task`` objects, whose frames do not count.
        node_limit: Objects that the collector knows; beyond that nothing is looked at.
        seconds: Time for all looks together.
        own: Other containers of the caller's whose references do not count.
        twin: ``_core`` or ``_pyreach``; None for the one that fits the core.

    Returns:
        See `Reach`.  Takes no lock, runs no code of the program; must not be asked on a hot path.
    """
    if not targets or not is_offered():
        return Reach(frozenset(targets), complete=not targets)
    if twin is None:
        twin = core.implementation if core.NAME == "c" else _pyreach
    return _Search(targets, stuck, own, twin).run(node_limit, seconds)


def close(
    picture: Snapshot,
    targets_of: Callable[[int], Sequence[object]],
    stuck_of: Callable[[int], object | None],
    **limits: Any,
) -> tuple[frozenset[int], Reach]:
    """Return the actors that are proven stuck, since what they wait for is out of everybody's reach, and the last answer.

    Starts from the residue in which nobody alive signals anything, asks what can be reached with those as stuck, and reduces
    again, until nothing changes: each round has fewer stuck actors, and so reaches more.

    Args:
        picture: A confirmed snapshot.
        targets_of: Serial of a resource -> its `signal_objects`; empty if they are not known or in another process: reached.
        stuck_of: Serial of an actor -> ident of its thread, or its ``Task``; None if its frames are nowhere: they count.
        limits: ``node_limit``, ``seconds``, ``own``, as of `reached`.
    """
    awaited = {edge.resource for edge in picture.requests}
    targets = {serial: tuple(targets_of(serial)) for serial in awaited}
    targets = {serial: objects for serial, objects in targets.items() if objects}
    always = frozenset(resource.serial for resource in picture.resources) - frozenset(targets)
    residue = graph.reduce(picture, reached=always)
    answer = Reach(frozenset())
    while residue:
        wanted = {edge.resource for edge in picture.requests if edge.actor in residue}
        for serial in [serial for serial in targets if serial not in wanted]:
            del targets[serial]
        stuck = [one for one in map(stuck_of, residue) if one is not None]
        found = reached(targets, stuck, **limits)
        answer = Reach(
            found.resources | answer.resources,
            found.complete,
            {**answer.paths, **found.paths},
            found.looks + answer.looks,
            found.objects,
            max(found.longest_seconds, answer.longest_seconds),
        )
        left = graph.reduce(picture, reached=always | answer.resources)
        if left == residue or not found.complete:
            return (left if found.complete else frozenset()), answer
        residue = left
    return residue, answer


class _Search:
    """The looks of one question."""

    def __init__(
        self, targets: Mapping[int, Sequence[object]], stuck: Collection[object], own: Iterable[object], twin: Any
    ) -> None:
        self.twin = twin
        self.serials: dict[int, set[int]] = defaultdict(set)  # address of a target -> the resources that it is of
        self.own: list[Any] = [targets, stuck, *own]
        self.args: list[Any] = []
        for serial, objects in targets.items():
            self.own.append(objects)
            for address in map(id, objects):
                self.serials[address].add(serial)
            self.own += [cell for cell in map(state.existing_cell, objects) if cell is not None]
        self.pinned = list(self.serials)
        self.unresolved = set(targets)
        self.idents = [one for one in stuck if isinstance(one, int) and one != _real.get_ident()]
        self.passes: Counter[tuple[int, int]] = Counter()
        self.keepers: set[int] = set()  # addresses of who keeps what it passes over, for certain
        self.tasks = {id(one) for one in stuck if not isinstance(one, int)}
        for ident in self.idents:
            self._pass_over_entry(ident)
        for one in stuck:
            if not isinstance(one, int):
                self._pass_over_coroutine(one)
        for source in state.sources():
            self.own += source.own_objects() if hasattr(source, "own_objects") else ()
        self.own = list({id(one): one for one in self.own}.values())  # each once, or its references count twice
        self.paths: dict[int, tuple[int, list[int]]] = {}

    def _pass_over_entry(self, ident: int) -> None:
        """Pass over what a stuck thread was started with, and count the waits that the core has of it."""
        thread = _real.find_thread(ident)
        parts = _attributes(thread)
        for name in _ENTRY:
            value = parts.get(name)
            if value is not None:
                self._pass_over(thread, value)
                if name == "_args" and type(value) is tuple:
                    self.args.append(value)
        record = core.record_of_ident(ident)
        self.own += [wait for wait in getattr(record, "waits", ()) if type(wait).__flags__ & 1 << 14]

    def _pass_over_coroutine(self, task: Any) -> None:
        for value in (task.get_coro(), getattr(task, "_fut_waiter", None)):
            if value is not None:
                self._pass_over(task, value)

    def _pass_over(self, owner: object, value: object) -> None:
        # 3.13+ keeps attributes in the object itself, earlier versions in its dictionary, once that was asked for.
        for source in (owner, object.__getattribute__(owner, "__dict__") if hasattr(owner, "__dict__") else None):
            if source is not None:
                self.passes[id(source), id(value)] += 1
                if id(owner) not in self.tasks:
                    self.keepers.add(id(source))

    def run(self, node_limit: int, seconds: float) -> Reach:
        """Look until nothing new is found."""
        deadline = _real.monotonic_ns() + int(seconds * 1e9)
        wanted = set(self.pinned) | self.tasks
        looks, objects, longest = 0, 0, 0
        complete = True
        while self.unresolved:
            began = _real.monotonic_ns()
            look = self._look(sorted(wanted), node_limit, max(0.0, (deadline - began) / 1e9))
            longest = max(longest, _real.monotonic_ns() - began)
            looks += 1
            if look is None or looks > _LOOKS:
                complete = False
                break
            objects = look[2]
            more = self._judge(look[0], look[1], wanted)
            if more is None:
                break
            if len(more) > _SET_LIMIT or _real.monotonic_ns() > deadline:
                complete = False
                break
            wanted = more
            _real.sleep(_PAUSE_SECONDS)
        found = {serial for serials in self.serials.values() for serial in serials}
        if complete:
            found -= self.unresolved
        words = referrers.Words(self.twin, self.idents)
        paths = {serial: words.of(why, path, self._target(path)) for serial, (why, path) in self.paths.items()}
        return Reach(frozenset(found), complete, paths, looks, objects, longest / 1e9)

    def _target(self, path: list[int]) -> object:
        """Return the target that a path ends at, from the caller's mapping, which keeps it."""
        targets: Mapping[int, Sequence[object]] = self.own[0]
        return next((one for objects in targets.values() for one in objects if id(one) == path[-1]), None)

    def _look(self, addresses: list[int], limit: int, seconds: float) -> Any:
        # Both calls are made from this frame: the rows must still fit when the second one looks.
        twin = self.twin
        threads = [(ident, self._rows(twin.reach_frames(ident))) for ident in self.idents]
        threads = [row for row in threads if row[1]]
        passes = [(source, target, times) for (source, target), times in self.passes.items()]
        mine = _own_rows(twin.reach_frames(_real.get_ident()))
        if mine:
            threads.append((_real.get_ident(), mine))
        return twin.reach_look(addresses, self.pinned, threads, self.args, self.own, passes, limit, seconds)

    def _rows(self, frames: Iterable[tuple[Any, int]] | None) -> list[tuple[Any, int, int, int]]:
        return [(code, lasti, *_slots(code, lasti)) for code, lasti in frames or ()]

    def _judge(
        self, nodes: dict[int, tuple[int, int]], edges: list[tuple[int, int, int]], wanted: set[int]
    ) -> set[int] | None:
        """Sort out what one look has found; the addresses for the next one, None if there is nothing more to find."""
        known = _module_parts()
        leads: dict[int, list[int]] = defaultdict(list)
        back: dict[int, list[int]] = defaultdict(list)
        strong: dict[int, list[int]] = defaultdict(list)
        strong_back: dict[int, list[int]] = defaultdict(list)
        keeps: dict[int, list[int]] = defaultdict(list)
        roots: dict[int, int] = {address: referrers.HELD for address, (missing, _) in nodes.items() if missing}
        for source, target, kind in edges:
            if kind & ~SOURCE_FORCED == KEEPS:
                keeps[source].append(target)
                continue
            leads[source].append(target)
            back[target].append(source)
            if kind & ~SOURCE_FORCED == STRONG:
                strong[source].append(target)
                strong_back[target].append(source)
                keeps[source].append(target)
            if kind & SOURCE_FORCED:
                roots[source] = referrers.CALLBACK
            if source in known:
                roots[source] = referrers.MODULE
        self._resolve(roots, leads)
        held = _closure((one for one, why in roots.items() if why != referrers.CALLBACK), strong)
        self.keepers |= self.tasks & held
        more = _closure([one for one in self.serials if self.serials[one] & self.unresolved], back)
        more |= _closure(self.tasks - self.keepers, strong_back)
        if not self.unresolved:
            return None
        if not more <= wanted:
            return more
        # A weak reference that the collector does not show (`gc.freeze`) was not counted: who has it, nobody knows.
        self._resolve(dict.fromkeys(more - nodes.keys(), referrers.HELD), leads)
        kept = {address for address, (_, flags) in nodes.items() if flags & KEPT} | self.keepers | held
        kept = _closure(kept, keeps)
        garbage = {
            address: referrers.FINALIZER
            for address, (_, flags) in nodes.items()
            if flags & FINALIZER and address not in kept
        }
        self._resolve(garbage, leads)
        return None

    def _resolve(self, roots: dict[int, int], leads: dict[int, list[int]]) -> None:
        """Mark which resources these roots reach, and remember the shortest way to each."""
        came_from: dict[int, int | None] = dict.fromkeys(roots)
        todo = deque(roots)
        while todo:
            address = todo.popleft()
            for target in leads.get(address, ()):
                if target not in came_from:
                    came_from[target] = address
                    todo.append(target)
        for address in came_from:
            for serial in self.serials.get(address, set()) & self.unresolved:
                path = [address]
                while (before := came_from[path[-1]]) is not None:
                    path.append(before)
                self.paths[serial] = roots[path[-1]], path[::-1]
                self.unresolved.discard(serial)


def _closure(start: Iterable[int], edges: dict[int, list[int]]) -> set[int]:
    found = set(start)
    todo = list(found)
    while todo:
        for one in edges.get(todo.pop(), ()):
            if one not in found:
                found.add(one)
                todo.append(one)
    return found


def _slots(code: Any, lasti: int) -> tuple[int, int]:
    mask, star = owned_slots(code, lasti)
    return mask & (1 << 64) - 1, star


def _own_rows(frames: list[tuple[Any, int]] | None) -> list[tuple[Any, int, int, int]]:
    """Return the innermost frames of the caller's thread, as far as they are concagent's."""
    rows: list[tuple[Any, int, int, int]] = []
    for code, lasti in frames or ():
        if code is None or not code.co_filename.startswith(state.own_folders):
            break
        rows.append((code, lasti, *_slots(code, lasti)))
    return rows


def _module_parts() -> set[int]:
    """Return the addresses of modules and their dictionaries: whoever imports gets at what they refer to."""
    found = {id(sys.modules)}
    modules: list[Any] = list(sys.modules.values())  # programs put other things there, too
    for module in modules:
        if isinstance(module, types.ModuleType):
            found.add(id(module))
            found.add(id(object.__getattribute__(module, "__dict__")))
    return found
