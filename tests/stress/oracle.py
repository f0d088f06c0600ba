"""What a program of threads and locks does, in the fewest words: the oracle of ``test_random_programs.py``.

It knows nothing of how the agent works, only what Python's locks do and what ARCHITECTURE ("what counts as proof") promises:

- everybody waits for at most one other, so a deadlock is a ring in "waits for the holder"; who waits with a timeout is in none;
- a hold is ``owned`` (``with``, ``try``/``finally``, every RLock and thread), or released ``later``, or ``bare``, by its code;
- it may be a signal if it is bare; or if it is released later, but the holder himself waits for it, and will not release
  what he waits for;
- a ring is proven if no hold in it may be a signal, or if it is of two or more locks and every hold in it may be;
- a Lock that was released by another thread than its holder is an event from then on, and nothing is said about it any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class World:
    """The state between two steps.  Threads and locks are numbers; ``kinds`` says which locks are ``rlock``."""

    kinds: list[str]
    threads: int
    holds: dict[int, list] = field(default_factory=dict)  # lock -> [thread, depth, discipline]
    waits: dict[int, tuple] = field(default_factory=dict)  # thread -> (what, number, timed, discipline), oldest first
    ended: set[int] = field(default_factory=set)
    signals: set[int] = field(default_factory=set)
    misuses: list[tuple[str, int]] = field(default_factory=list)

    def acquire(self, thread: int, lock: int, discipline: str, how: str) -> None:
        hold = self.holds.get(lock)
        if hold is None:
            habit = "try" if (how, discipline) == ("try", "bare") else discipline
            self.holds[lock] = [thread, 1, "owned" if self.kinds[lock] == "rlock" else habit]
        elif hold[0] == thread and self.kinds[lock] == "rlock":
            hold[1] += 1
        elif how != "try":
            self.waits[thread] = ("lock", lock, how == "timed", discipline)

    def release(self, thread: int, lock: int) -> None:
        hold = self.holds.get(lock)
        if hold is None or (hold[0] != thread and self.kinds[lock] == "rlock"):
            self.misuses.append(("double-release" if hold is None else "foreign-release", lock))
        elif hold[1] > 1:
            hold[1] -= 1
        else:
            if hold[0] != thread:
                self.signals.add(lock)
            del self.holds[lock]
            for waiter, (what, number, _, discipline) in list(self.waits.items()):
                if (what, number) == ("lock", lock):
                    del self.waits[waiter]
                    self.acquire(waiter, lock, discipline, "wait")
                    break

    def join(self, thread: int, other: int) -> None:
        if other not in self.ended:
            self.waits[thread] = ("thread", other, False, "")

    def end(self, thread: int) -> None:
        self.ended.add(thread)
        self.misuses += [
            ("exit-held", n)
            for n, hold in self.holds.items()
            if hold[0] == thread and n not in self.signals and hold[2] != "try"
        ]
        self.waits = {t: wait for t, wait in self.waits.items() if wait[:2] != ("thread", thread)}

    def hop(self, thread: int) -> tuple[int, str] | None:
        """Return (whom the thread waits for, why that hold may be a signal or ""), None if it can go on or nobody can tell."""
        what, number, timed, habit = self.waits.get(thread, ("", 0, True, ""))
        if timed or (what == "lock" and number in self.signals):
            return None
        holder, _, discipline = self.holds[number] if what == "lock" else (number, 1, "owned")
        if holder == thread and discipline in ("later", "finally"):  # all of a thread's code is one function
            again = habit == "bare" or (habit, discipline) == ("later", "finally")
            return holder, "again" if again else ""
        return holder, discipline if discipline in ("bare", "try") else ""

    def rings(self, *, proven: bool = True) -> set[frozenset[int]]:
        """Return the rings, each as its threads; only proven ones, or all."""
        found = set()
        for start in range(self.threads):
            ring: dict[int, str] = {}
            at = start
            while at not in ring and (hop := self.hop(at)) is not None:
                ring[at], at = hop[1], hop[0]
            if ring and at == start and (not proven or self._is_proven(ring)):
                found.add(frozenset(ring))
        return found

    def _is_proven(self, ring: dict[int, str]) -> bool:
        locks_only = all(self.waits[thread][0] == "lock" for thread in ring)
        return not any(ring.values()) or (len(ring) > 1 and locks_only and set(ring.values()) == {"bare"})

    def orphans(self) -> set[tuple[int, int]]:
        """Return (lock, waiter) for waits that nobody ends: the holder has ended."""
        hops = {thread: self.hop(thread) for thread in self.waits}
        ended = {thread: hop for thread, hop in hops.items() if hop and hop[0] in self.ended}
        return {(self.waits[thread][1], thread) for thread, hop in ended.items() if hop[1] != "try"}
