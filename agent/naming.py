"""Finds what a program calls a lock: the variable or attribute that its author thinks in.

``lock at 0x7f..`` tells a person nothing, ``Account._lock`` does.  Three places know, asked in the order of their cost: the
source line that created it (``self._lock = threading.Lock()``), the globals of the module that waits for it, and, for
an object's attribute, nobody else without touching the frames' locals, which we do not do: reading them would rewrite the
dictionaries of a running function.

Limits     a line that creates two locks is ambiguous; then only the globals decide.
Cost       one source line; one pass over one module's globals.  Only for reports.  Which module has them is looked up in an
           index of all modules by file, which `know_modules` makes beforehand: a program may have thousands of modules.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from concagent.sources import source_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from concagent.model import CallSite

_ASSIGNMENT = re.compile(r"^\s*(?P<target>[A-Za-z_][\w.]*)\s*(?::[^=]+)?=(?!=)\s*(?P<value>.+)$")


class Namer:
    """Answers for one picture: thousands of locks were created in few places and waited for in few modules."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._assigned: dict[CallSite, str | None] = {}
        self._globals: dict[str, dict[int, str]] = {}

    def name_of(self, target: Any, created: CallSite | None, wait: Any = None) -> str | None:
        """Return the name of a lock (``target``, None if it is not at hand), None if it cannot be told."""
        if target is not None:
            files = [created.file] if created is not None else []
            if wait is not None and wait.code is not None and wait.code.co_filename not in files:
                files.append(wait.code.co_filename)
            for file in files:
                name = self._global_name(target, file)
                if name is not None:
                    return name
        if created is None:
            return None
        if created not in self._assigned:
            self._assigned[created] = _assigned_name(created)
        return self._assigned[created]

    def _global_name(self, target: Any, file: str) -> str | None:
        names = self._globals.get(file)
        if names is None:
            names = self._globals[file] = _global_names(file)
        return names.get(id(target))


def name_of(target: Any, created: CallSite | None, wait: Any = None) -> str | None:
    """Return the name of one lock; a picture of many keeps a `Namer`."""
    return Namer().name_of(target, created, wait)


class _Modules(NamedTuple):
    """Names of modules by the file that they were made from; names, because nothing here may keep a module alive."""

    mark: tuple[int, Any] = (0, None)  # number of all modules then, and the name that came last
    names: Mapping[str, list[str]] = {}


_modules = _Modules()


def _namespace_of(module: Any) -> dict[str, Any]:
    """Return a module's namespace, empty for what is no module.  Asking a lazy module itself would load it."""
    try:
        namespace = object.__getattribute__(module, "__dict__")
    except Exception:  # noqa: BLE001 - whatever a program puts among its modules
        return {}
    return namespace if type(namespace) is dict else {}


def know_modules() -> None:
    """Make the index of modules anew if some have come or gone; from time to time, so that a report need not."""
    global _modules
    mark = (len(sys.modules), next(reversed(sys.modules), None))
    if mark == _modules.mark:
        return
    names: dict[str, list[str]] = {}
    for name, module in list(sys.modules.items()):
        file = _namespace_of(module).get("__file__")
        if isinstance(file, str):
            names.setdefault(file, []).append(name)
    _modules = _Modules(mark, names)  # at once: several threads may ask


def _global_names(file: str) -> dict[int, str]:
    """Return the first name of each global of the modules made from a file, by the value's id: globals live on."""
    names: dict[int, str] = {}
    know_modules()
    for module in _modules.names.get(file, ()):
        namespace = _namespace_of(sys.modules.get(module))
        if namespace.get("__file__") == file:
            for key, value in list(namespace.items()):
                if isinstance(key, str):
                    names.setdefault(id(value), key)
    return names


def _assigned_name(created: CallSite) -> str | None:
    """Return the target of the assignment on the creating line: ``a`` or ``Class.attribute``."""
    match = _ASSIGNMENT.match(source_line(created.file, created.line))
    if match is None or _several(match["value"]):
        return None
    target = match["target"]
    owner = created.function.rpartition(".")[0]
    if target.startswith("self.") and owner and "<locals>" not in owner.rpartition(".")[2]:
        return owner.rpartition(">.")[2] + target[len("self") :]
    return target


def _several(value: str) -> bool:
    return value.count("Lock(") + value.count("Semaphore(") + value.count("Condition(") > 1 or " for " in value
