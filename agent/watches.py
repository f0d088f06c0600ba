"""What is looked at besides locks and waits: loops, polls, leaks, other processes; each is loaded when there is cause.

Most programs give no cause for most of it, and pay for none of what is behind it.

Invariants V1 ``look_*`` run on the monitor's thread, once a tick.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from concagent import _real, fileholds, filewaits, following, state
from concagent.tasksource import asyncio_is_loaded

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from concagent.config import Config
    from concagent.filewaits import PollSource
    from concagent.hooks.children import ChildSource
    from concagent.hooks.processes import Replacement
    from concagent.leakwatch import LeakWatch
    from concagent.loopwatch import LoopWatch
    from concagent.monitor import Monitor
    from concagent.openings import Openings
    from concagent.pollwatch import PollWatch
    from concagent.union import Union

REFUSED_SECONDS: Final = 0.2  # at most, for the first wait that the kernel refused to be told


class Watches:
    """The looks of one agent.

    Attributes:
        polls: Who polls for locks on files; None where that is not watched, as the following two.
        children: Waits for child processes.
        processes: Joins of processes.
    """

    def __init__(
        self,
        config: Config,
        monitor: Monitor,
        openings: Openings,
        undo: list[tuple[str, Callable[[], object]]],
        at_fork: list[Any],
    ) -> None:
        """Keep what is needed to look and to speak.

        Args:
            config: The options in force.
            monitor: Its thread looks, and publishes.
            openings: What was opened and not closed.
            undo: Gets a step for whatever is begun later.
            at_fork: Gets what must know of forks.
        """
        self._config = config
        self._monitor = monitor
        self._openings = openings
        self._undo = undo
        self._at_fork = at_fork
        self.polls: PollSource | None = None
        self.children: ChildSource | None = None
        self.processes: Replacement | None = None
        self._loops: LoopWatch | None = None
        self._poll_watch: PollWatch | None = None
        self._leaks: LeakWatch | None = None
        self._end_board: Callable[[], None] | None = None
        self._union: Union | None = None
        self._file_holders: Any = None
        self._refused = False

    def watch_processes(self) -> None:
        """Begin to look at all processes: the program has loaded what their locks are made of, or waits for a file."""
        if self._union is not None:
            return
        from concagent import shared
        from concagent.union import Union

        def is_told(serial: int, epoch: int) -> bool:
            return self._monitor.judge().is_told(serial, epoch)

        union = self._union = Union(self._config, self._monitor.publish, self._monitor.look_later, is_told)

        def look_soon() -> None:
            state.post(state.CallEvent(union.begin))
            self._monitor.wake()

        shared.on_long_wait = look_soon
        shared.has_file_waits = lambda: self._files_concern_others(_real.monotonic_ns())
        self._monitor.tick_hooks.append(union.tick)
        self._at_fork.append(union)
        self._undo.append(("board", shared.end))
        self._end_board = shared.end

    def look_at_files(self, now_ns: int) -> None:
        """Begin to look at other processes when a lock on a file may be in somebody's way."""
        if self._file_holders is None and filewaits.has_long_waits(now_ns):
            from concagent.fileholders import HolderSource

            source = self._file_holders = HolderSource()
            state.add_source(source)
            self._undo.append(("holders of files", lambda: state.remove_source(source)))
        if self._files_concern_others(now_ns):
            self.watch_processes()
            from concagent import shared

            shared.get_board()

    def _files_concern_others(self, now_ns: int) -> bool:
        """Return whether a thread waits long for a lock on a file, or waits for a child and has one."""
        if filewaits.has_long_waits(now_ns):
            return following.has_family()
        if not fileholds.are_any() or self.children is None or self.processes is None:
            return False
        return self.children.has_work() or self.processes.joins()

    def note_refused(self, descriptor: int, frame: FrameType, shared: bool, span: tuple[int, int]) -> None:
        """Tell of a ring of processes that the kernel refused to close; on the thread that was refused."""
        from concagent import refusals

        refusals.note(descriptor, frame, shared, span, self._monitor.publish)
        if not self._refused:  # the process may be about to end of it
            self._refused = True
            self._monitor.flush(REFUSED_SECONDS)

    def end_boards(self) -> None:
        """Remove the program's board if nobody uses it any more; children that made it may have ended without."""
        if self._end_board is not None:
            self._end_board()
        elif following.had_children and following.root_pid == os.getpid() and os.path.isdir("/dev/shm"):
            name = f"concagent-board-{os.getuid()}-{os.getpid()}-"
            if any(each.startswith(name) for each in os.listdir("/dev/shm")):
                from concagent import shared

                shared.get_board()
                shared.end()

    def look_at_loops(self, now_ns: int) -> None:
        """Look whether event loops turn, once there may be some."""
        if self._loops is None and asyncio_is_loaded():
            from concagent.loopwatch import LoopWatch

            judge, config = self._monitor.judge(), self._config
            self._loops = LoopWatch(config.loop_blocked, config.stack_depth, self._monitor.publish, judge.is_told)
        if self._loops is not None:
            self._loops.look(now_ns)

    def look_at_polls(self, now_ns: int) -> None:
        """Look for rings through threads that poll, once one does."""
        if self._poll_watch is None:
            if self.polls is None or not self.polls.is_asked():
                return
            from concagent.pollwatch import PollWatch

            config = self._config
            self._poll_watch = PollWatch(self.polls, config.stall_after, config.stack_depth, self._monitor.publish)
        self._poll_watch.look(now_ns)

    def look_for_leaks(self, now_ns: int) -> None:
        """Look what is open for long."""
        self.leak_watch().look(now_ns)

    def leak_watch(self) -> LeakWatch:
        """Return what looks for leaks, loaded on first use."""
        if self._leaks is None:
            from concagent.leakwatch import LeakWatch

            self._leaks = LeakWatch(self._openings, self._config, self._monitor.publish)
        return self._leaks
