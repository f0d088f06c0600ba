"""Shows waits for the locks of modules that are being imported; reads them off importlib, and costs an import nothing.

A module has a lock while it is imported, and whoever imports it meanwhile waits.  Threads that import each other's modules in a
ring are no deadlock: importlib sees the ring and lets one of them have the module half done.  It sees import locks only, so
what stays is a ring with something else in it: a module that starts a thread and joins it, while the thread imports
that very module, or a lock that is held around an import and wanted by the module's own code.

Importlib keeps a table of who waits for which module's lock, and each lock knows its owner.  Its functions were frozen with their
own names and are on the way of every import, so nothing is replaced: the table is read when a picture is taken.

Argument   a thread in the table whose lock has another owner is asleep, or about to see a ring of import locks and to leave;
           such rings are left out.  Its wait ends only when the owner goes on.  If the owner was in one wait between the two
           readings of the threads, and both readings of the table in between agree, the edge was real all that time.
Not seen   threads that have used nothing that is tracked: they count as alive.  When a wait began: it is timed from the first
           picture that showed it.
Sources    CPython Lib/importlib/_bootstrap.py, ``_ModuleLock``: the table maps a thread to a lock up to 3.11, to a list since.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final

from concagent import _real, core, state
from concagent.hooks.patching import PatchSet, Switch
from concagent.tuples import NamedTuple

if TYPE_CHECKING:
    from types import FrameType

    from concagent.model import CallSite

_IMPORTLIB: Final = ("<frozen importlib", "importlib._bootstrap")


class Waiting(NamedTuple):
    """A thread's wait for a module's lock."""

    lock: Any
    owner: Any
    record: Any
    epoch: int


class ImportSource:
    """The waits for modules, for snapshots (see ``state.Source``)."""

    def __init__(self) -> None:
        """Know of no wait yet."""
        self._serials: Any = weakref.WeakKeyDictionary()
        self._since: dict[int, tuple[Any, int, int]] = {}  # actor -> (resource, epoch, since)

    def has_work(self) -> bool:
        """Return whether a thread waits for a module: the core does not know of such a wait, and no epoch tells of it."""
        try:
            return bool(_waits())
        except Exception as error:  # noqa: BLE001 - border: importlib's own affairs differ from version to version
            state.count_error("hook", error)
            return False

    def read(self) -> dict[int, Waiting]:
        """Return actor's serial -> what it waits for."""
        try:
            waits = _waits()
        except Exception as error:  # noqa: BLE001 - border: importlib's own affairs differ from version to version
            state.count_error("hook", error)
            return {}
        found = {}
        for ident, lock in waits.items():
            record, owner = core.record_of_ident(ident), core.record_of_ident(lock.owner)
            if record is not None and owner is not None and not record.agent and not _is_broken(ident, waits):
                found[record.serial] = Waiting(lock, owner, record, record.epoch)
        return found

    def add(self, builder: Any, one: dict[int, Waiting], two: dict[int, Waiting]) -> None:
        """Add the waits that both readings agree on, with the owners."""
        if not two:
            self._since.clear()
            return
        from dataclasses import replace  # with all value types; most programs never take a picture

        from concagent.model import AssignmentEdge, RequestEdge, Resource

        blocked = {edge.actor for edge in builder.requests}
        seen = {}
        for serial, wait in two.items():
            actor, frame = builder.actors.get(serial), builder.frames.get(wait.record.ident)
            if wait != one.get(serial) or actor is None or actor.state != "live" or serial in blocked or frame is None:
                continue
            if wait.owner.serial not in builder.actors:
                continue
            resource = self._serials.setdefault(wait.lock, None) or self._give_serial(wait.lock)
            since = self._since.get(serial, (0, 0, 0))
            if since[:2] != (resource, wait.epoch):
                since = (resource, wait.epoch, _real.monotonic_ns())
            seen[serial] = since
            builder.add_actor(replace(actor, state="blocked"))
            builder.put_resource(Resource(resource, "import-lock", str(wait.lock.name), None))
            builder.request(RequestEdge(serial, resource, since[2], wait.epoch, False, _importing_line(frame)))
            holds = _import_of(str(wait.lock.name), builder.frames.get(wait.owner.ident))
            builder.hold(AssignmentEdge(resource, wait.owner.serial, None, 1, holds))
        self._since = seen

    def _give_serial(self, lock: Any) -> int:
        serial = int(core.next_serial())
        self._serials[lock] = serial
        return serial


def _waits() -> dict[int, Any]:
    """Return OS thread id -> the module lock that it waits for and that another thread owns."""
    table = getattr(_real.importlib_bootstrap, "_blocking_on", None) or {}
    waits = {}
    for ident, entry in list(getattr(table, "data", table).items()):
        value = entry() if isinstance(entry, weakref.ref) else entry
        locks = list(value) if isinstance(value, list) else [value]
        lock = locks[-1] if locks else None
        owner = getattr(lock, "owner", None)
        if owner is not None and owner != ident:
            waits[ident] = lock
    return waits


def _is_broken(ident: int, waits: dict[int, Any]) -> bool:
    """Return whether importlib itself lets one thread of this chain go on: it leads into a ring of nothing but imports."""
    seen = set()
    while ident in waits and ident not in seen:
        seen.add(ident)
        ident = waits[ident].owner
    return ident in seen


def _is_importlib(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_IMPORTLIB[0]) or frame.f_globals.get("__name__") == _IMPORTLIB[1]


def _importing_line(frame: FrameType | None) -> CallSite | None:
    """Return the program's line that imports: the innermost one outside of importlib."""
    from concagent.model import CallSite

    while frame is not None and _is_importlib(frame):
        frame = frame.f_back
    if frame is None:
        return None
    name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)
    return CallSite(frame.f_code.co_filename, frame.f_lineno or 0, name)


def _import_of(module: str, frame: FrameType | None) -> CallSite | None:
    """Return the line by which a thread came to import a module that is not done yet; None if its body does not run."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == module:
            return _importing_line(frame.f_back)
        frame = frame.f_back
    return None


def add_patches(patches: PatchSet) -> None:
    """Append the step that makes snapshots know of imports; nothing is replaced."""
    source = ImportSource()
    patches.add(Switch("imports", lambda: state.add_source(source), lambda: state.remove_source(source)))
