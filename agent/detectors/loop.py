"""A blocked event loop: a threshold, told once for each callback, and never called a deadlock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from concagent.detectors.evidence import Scene, short
from concagent.model import Snapshot

if TYPE_CHECKING:
    from concagent.model import Actor, CallSite, Finding

_ADVICE: Final = (
    "Nothing else on this loop runs meanwhile. Use the awaitable form of the call (asyncio.sleep, an asynchronous client), or "
    "hand it to a thread: await asyncio.to_thread(...). If this is normal here, raise loop_blocked or suppress it."
)


def blocked_loop(
    actor: Actor, task: str | None, site: CallSite | None, lasted_ns: int, now_ns: int, wall_seconds: float
) -> Finding:
    """Return the finding of a loop that has been in one callback for ``lasted_ns``.

    Args:
        actor: The thread that runs the loop, with its stack.
        task: Name of the task whose step it is, None for a plain callback.
        site: Where in the program's own code it is now.
        lasted_ns: Since when it has been seen there, at least.
        now_ns: The monotonic clock.
        wall_seconds: The wall clock.
    """
    scene = Scene(Snapshot(actor.pid, now_ns, wall_seconds, (actor,)))
    who = f"task {task}" if task else "a callback"
    where = f" at {short(site)}" if site else ""
    return scene.finding(
        "loop-blocked",
        "hint",
        {actor.serial: "member"},
        title=f"the event loop of {actor.name} has stood still for {lasted_ns / 1e9:.1f} s: {who} is{where}",
        advice=_ADVICE,
        resource_kind="event-loop",
        extra_sites=[site] if site else [],
    )
