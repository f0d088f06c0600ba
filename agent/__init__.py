"""A runtime agent that finds deadlocks, stalls, orphaned locks, misuse and leaks in concurrent Python.

    import concagent
    concagent.install()          # or, with no line changed:  concagent run app.py

Importing is cheap: the originals are saved, nothing is patched, and everything else is loaded by the first call.
"""

from __future__ import annotations

from concagent import _real as _real  # the originals must be saved before anything can be patched

TYPE_CHECKING = False  # typing's constant without typing, which costs more than the rest of this import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO, Any

    from concagent.bootstrap import Agent
    from concagent.config import Config
    from concagent.errors import ConcagentError, ConfigError, DeadlockError, InvariantError, PatchError
    from concagent.model import AgentStats, Finding
    from concagent.picture import Picture as Snapshot

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "AgentStats",
    "ConcagentError",
    "Config",
    "ConfigError",
    "DeadlockError",
    "Finding",
    "InvariantError",
    "PatchError",
    "Snapshot",
    "__version__",
    "check",
    "findings",
    "install",
    "name",
    "on_finding",
    "report",
    "snapshot",
    "uninstall",
]

_HOMES = {
    "Agent": "bootstrap",
    "AgentStats": "model",
    "ConcagentError": "errors",
    "Config": "config",
    "ConfigError": "errors",
    "DeadlockError": "errors",
    "Finding": "model",
    "InvariantError": "errors",
    "PatchError": "errors",
    "Snapshot": "picture",
}


def __getattr__(name: str) -> Any:
    """Load a public type on first use."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'concagent' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"concagent.{home}"), "Picture" if name == "Snapshot" else name)
    globals()[name] = value
    return value


def install(**options: Any) -> Agent:
    """Start the agent in this process and return it; the running one if there is one already.

    Args:
        options: See ``docs/options.md``; each can also be given as ``CONCAGENT_NAME`` in the environment.

    Raises:
        ConfigError: An option is unknown or its value is not allowed; nothing has been patched.
        PatchError: Another tool replaced the primitives first, or one cannot be replaced; everything was put back.
    """
    from concagent import wanted

    wanted.note(options)  # before the core is loaded
    from concagent import bootstrap

    return bootstrap.install(**options)


def uninstall() -> None:
    """Stop the agent and restore every original; locks made meanwhile go on as plain locks.  No-op without an agent.

    Raises:
        PatchError: Some originals could not be restored (all others were); the message lists them.
    """
    from concagent import bootstrap

    bootstrap.uninstall()


def snapshot() -> Snapshot:
    """Return who holds what and who waits for what, now, with every stack."""
    from concagent import bootstrap

    return bootstrap.running().snapshot()


def check() -> tuple[Finding, ...]:
    """Look now for waits that nobody can end, and return `findings`; for tests, and for who suspects a hang.

    Unlike what the agent does by itself it takes the time (up to seconds in a program of millions of objects) to prove that
    nothing alive refers to what is waited for, and it tells what it only suspects, too.
    """
    from concagent import bootstrap

    return bootstrap.running().check()


def findings() -> tuple[Finding, ...]:
    """Return what was found in this process so far, oldest first; () without an agent."""
    from concagent import bootstrap

    return bootstrap.findings()


def on_finding(callback: Callable[[Finding], object]) -> None:
    """Call ``callback`` with each new finding, on a thread of the agent; one that raises is removed.

    It may be given before ``install``.  All signals are blocked on that thread, and a process that the callback starts
    inherits that: give it its own mask (``signal.pthread_sigmask`` before, or in the child).
    """
    from concagent import bootstrap

    bootstrap.on_finding(callback)


def report(file: IO[str] | None = None, format: str = "text") -> None:  # noqa: A002 - the contract's name
    """Write the full live picture to ``file`` (default: stderr) as ``text``, ``json`` or ``dot``."""
    from concagent import bootstrap

    bootstrap.report(file, format)


def name(lock: object, name: str) -> None:
    """Call a lock, condition, semaphore ... ``name`` in all reports and metrics, from now on.

    Raises:
        ConfigError: The object is not one that concagent tracks, or the name is empty.
    """
    from concagent import bootstrap

    bootstrap.name(lock, name)
