"""Watches the locks of ``multiprocessing``, once a program loads it.

`multiprocessing.synchronize` makes all its locks of one type in C, which it looks up in the module ``_multiprocessing`` each
time.  A type of ours takes that place (see ``semlock``); everything that is built on it follows: Lock, RLock, semaphores,
conditions, events, queues, pools.

Programs that have no processes shall not pay for this.  So nothing is loaded here: a finder waits for ``_multiprocessing`` to be
imported, lets the import system do it, and goes away.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from concagent import state
from concagent.hooks.patching import Patch, PatchSet

if TYPE_CHECKING:
    from collections.abc import Callable

MODULE: Final = "_multiprocessing"
_POPENS: Final = frozenset({"multiprocessing.popen_fork", "multiprocessing.popen_forkserver"})


class _Finder:
    """Is asked first for each module, and knows one."""

    def __init__(self, loaded: Callable[[Any], None]) -> None:
        self._loaded = loaded

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Return the spec that the other finders have, with a loader that tells us; None for any other module."""
        if name != MODULE:
            return None
        self.remove()
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find is not None else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self._loaded)
                return spec
        return None

    def add(self) -> None:
        """Be asked."""
        sys.meta_path.insert(0, self)

    def remove(self) -> None:
        """Be asked no more."""
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]


class _Loader:
    """The loader of one module, and a call after it."""

    def __init__(self, loader: Any, loaded: Callable[[Any], None]) -> None:
        self._loader = loader
        self._loaded = loaded

    def create_module(self, spec: Any) -> Any:
        """Do what the loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        """Do what the loader does, leave no trace of us in the module, and tell."""
        self._loader.exec_module(module)
        module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loaded(module)


class Replacement:
    """A step of a `PatchSet`: our type in ``_multiprocessing``, now or when it is loaded."""

    label = "_multiprocessing.SemLock"

    def __init__(self, on_load: Callable[[], None]) -> None:
        """Prepare nothing; ``on_load`` is called before the type is put in place."""
        self._on_load = on_load
        self._finder = _Finder(self._put)
        self._patch: Patch | None = None
        self._source: dict[str, Any] = {}  # made by whoever is first

    def apply(self) -> None:
        """Put ours in, or wait for the module."""
        module = sys.modules.get(MODULE)
        if module is not None:
            self._put(module)
        else:
            self._finder.add()

    def _put(self, module: Any) -> None:
        try:
            if not hasattr(module, "SemLock"):
                return
            self._on_load()
            from concagent.hooks import semlock

            patch = Patch(module, "SemLock", semlock.replacement(module.SemLock), self.label)
            patch.apply()
            self._patch = patch
            self._show()
        except Exception as error:  # noqa: BLE001 - border: the program's import goes on with the original
            state.count_error("hook", error)

    def _show(self) -> Any:
        from concagent import shared
        from concagent.hooks import mpwaits, semlock

        locks = semlock.SharedSource()
        if self._source.setdefault("source", locks) is locks:
            waits = self._source["waits"] = mpwaits.WaitSource(locks.others)
            state.add_source(locks)
            state.add_source(waits)  # in this order: it says what the waits that the first one shows are for
            shared.waits = lambda: locks.marks() | waits.marks()
            shared.has_waits = lambda: bool(shared.waits())
        return self._source["source"]

    def joins(self) -> bool:
        """Return whether a thread waits for a child of multiprocessing; shown in pictures from now on, without any lock, too."""
        if not self._source and _POPENS.isdisjoint(sys.modules):
            return False
        source = self._source.get("source") or self._show()
        return bool(source.has_work())

    def restore(self) -> None:
        """Put the original back; what was made of ours goes on as a plain one."""
        self._finder.remove()
        patch, self._patch = self._patch, None
        for source in self._source.values():
            state.remove_source(source)
        self._source.clear()
        if patch is not None:
            patch.restore()


def add_patches(patches: PatchSet, on_load: Callable[[], None]) -> Replacement:
    """Append the step of this family, and return it."""
    step = Replacement(on_load)
    patches.add(step)
    return step
