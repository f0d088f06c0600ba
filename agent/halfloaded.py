"""Modules that a thread of the agent was importing when the process forked: the child imports them anew.

The agent loads what it needs when it first needs it, on threads of its own.  The monitor stands still while the program
forks, unless it takes too long; those that answer a scrape or a request do not.  The child has such a module half done, and
its lock belongs to a thread that is not there: whoever imports it, the program or we, would wait for ever.

So both are taken out of importlib's tables: the next one who wants the module begins with it.  What the program's own
threads were importing is left as it is: that is what happens without us, too.

Invariants H1 runs in the child, before anything there imports; the forking thread is none of those that are asked for.
Sources    CPython Lib/importlib/_bootstrap.py: ``_module_locks`` maps a name to a weak reference to a ``_ModuleLock``, whose
           ``owner`` is a thread's ident; the lock of the table itself is made anew by the fork.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from concagent import _real

if TYPE_CHECKING:
    from collections.abc import Collection


def forget(idents: Collection[int]) -> list[str]:
    """Undo the imports that these threads had begun, and return the names of the modules.

    Args:
        idents: Threads that are not there any more.
    """
    table = getattr(_real.importlib_bootstrap, "_module_locks", {})
    names = []
    for name, reference in list(table.items()):
        lock = reference()
        if lock is not None and lock.owner in idents:
            names.append(name)
            del table[name]
            module = sys.modules.get(name)
            if getattr(getattr(module, "__spec__", None), "_initializing", False):
                del sys.modules[name]
    return names
