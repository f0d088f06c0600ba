"""The closed sets of words that findings, options and metrics use.

A leaf without imports: `config` needs the words at install, long before the first finding needs the value types.
"""

from __future__ import annotations

from typing import Final

SCHEMA: Final = 1

KINDS: Final = (
    "deadlock",
    "stall",
    "lock-order-inversion",
    "order-violation",
    "context-hazard",
    "fork-hazard",
    "orphaned-lock",
    "misuse",
    "long-wait",
    "long-hold",
    "loop-blocked",
    "leak",
    "data-race",
    "atomicity-violation",
)
CONFIDENCES: Final = ("proven", "suspected", "potential", "hint")

# What ends a wait for a resource of this kind, where the resource does not say otherwise (``Resource.ended_by``):
#   holder       its one holder, by letting go or by ending
#   any-holder   any one of its holders: a permit that comes back, a worker that gets free
#   all-holders  all of its holders: the readers that a writer waits for
#   parties      the arrival of those that are missing
#   signal       whoever notifies, sets, puts, takes or completes
ENDED_BY: Final = {
    "lock": "holder",
    "rlock": "holder",
    "thread": "holder",
    "process": "holder",
    "task": "holder",
    "asyncio-lock": "holder",
    "import-lock": "holder",
    "file-lock": "holder",
    "mp-lock": "holder",
    "mp-rlock": "holder",
    "semaphore": "any-holder",
    "asyncio-semaphore": "any-holder",
    "mp-semaphore": "any-holder",
    "pool": "any-holder",
    "pipe": "any-holder",
    "barrier": "parties",
    "asyncio-barrier": "parties",
    "mp-barrier": "parties",
}
# The detail of a queue at which the threads of a pool wait for work: they are part of the pool, and no program waits for them.
NO_WORK: Final = "empty, no work"
# What the detail of an empty queue ends with, after a number, if things have been in it before.
TAKEN: Final = " taken"
# Kinds of resources whose one holder alone can end a wait for them.
SINGLE_HOLDER_KINDS: Final = frozenset(kind for kind, how in ENDED_BY.items() if how == "holder")

# Names of methods that end somebody else's wait.
SIGNALLING: Final = frozenset(
    {
        "cancel",
        "get",
        "get_nowait",
        "notify",
        "notify_all",
        "put",
        "put_nowait",
        "release",
        "set",
        "set_exception",
        "set_result",
        "task_done",
        "wait",
    }
)
