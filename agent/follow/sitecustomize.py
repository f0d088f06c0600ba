"""Starts the agent in a child of a program that has it, before the first import of the child's own.

The only file of a directory that a child finds first on its ``PYTHONPATH`` (see ``concagent.following``).  The interpreter
imports a module of this name at its start.  What led here is removed first: the entry of ``sys.path``, that of ``PYTHONPATH``,
our variable; then the agent is installed; then comes the ``sitecustomize`` that the child would have had, and
whatever that raises, a missing one included, is raised to the interpreter as if we had not been there.

The child may be any Python, as old as it likes: this file keeps to what all versions read.  It goes on only in the very
interpreter, environment and package that the parent runs on.  Whatever fails is silent: then the child runs without.
"""

import os
import sys


def _take():
    """Remove the traces of us; return what the parent said, None if it said nothing."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if entry != here]
    sys.path_importer_cache.pop(here, None)
    said = os.environ.pop("_CONCAGENT_FOLLOW", None)
    fields = said.split("\x1f") if said else None
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if here in entries:
        entries.remove(here)
        rest = os.pathsep.join(entries)
        if rest or (fields and fields[0] == "1"):
            os.environ["PYTHONPATH"] = rest
        else:
            del os.environ["PYTHONPATH"]
    return fields


def _is_command():
    """Return whether the child is a command of ours, which sees to itself."""
    words = getattr(sys, "orig_argv", [])[1:]
    return words[:2] == ["-m", "concagent"] or os.path.basename((words or [""])[0]) == "concagent"


def _begin(fields):
    """Install the agent if this is the parent's interpreter, environment and package."""
    tag, prefix, origin = fields[1:4]
    if tag != sys.implementation.cache_tag or prefix != sys.prefix or _is_command():
        return
    spec = sys.modules["_frozen_importlib"]._find_spec("concagent", None)  # noqa: SLF001 - importlib.util is not loaded
    if spec is None or spec.origin != origin:
        return
    from concagent import following

    following.begin(fields[4:])


def _start():
    try:
        fields = _take()
        if fields:
            _begin(fields)
    except Exception:  # noqa: BLE001 - border: the child runs without
        pass


_start()
# The next one takes our place in `sys.modules`; if there is none, nothing has it, as ever.
sys.modules.pop(__name__, None)
import sitecustomize  # noqa: E402, F401
