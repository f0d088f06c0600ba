"""Who gets ``DeadlockError``, so that the others can go on.

Under ``raise`` it is the actor whose wait closed the ring.  He is on his own thread, inside ``acquire`` or ``join``, at the very
moment the ring is found, so he need not be woken, and a ``join`` can be broken, too, though its wait cannot be woken from
outside.  He has waited for the shortest time, and what he acquired last is the least that anybody has to give up.

Only a ring that none but its members can break has a victim: in any other somebody may release yet, and the error would
break a program that works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def choose_victim(policy: str, ring: Sequence[int], *, proven: bool) -> int | None:
    """Return the serial of the actor that is to get the error, None for nobody.

    Args:
        policy: The option ``recover``.
        ring: Serials in waiting order, from the actor that closed the ring.
        proven: Whether none but its members can break it.
    """
    return ring[0] if policy == "raise" and proven else None
