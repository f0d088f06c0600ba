"""The source of asyncio's tasks, loaded when the program has loaded asyncio: most programs never do."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concagent.tasks import TaskSource


def asyncio_is_loaded() -> bool:
    """Return whether the program has loaded asyncio, to the last of its modules."""
    return hasattr(sys.modules.get("asyncio"), "SelectorEventLoop")


class Tasks:
    """Stands for `tasks.TaskSource`; a `state.Source`."""

    def __init__(self) -> None:
        """Load nothing."""
        self._source: TaskSource | None = None

    def source(self) -> TaskSource | None:
        """Return the source, None as long as there is no asyncio."""
        if self._source is None and asyncio_is_loaded():
            from concagent.tasks import TaskSource

            self._source = TaskSource()
        return self._source

    def has_work(self) -> bool:
        """Return whether there are tasks."""
        source = self.source()
        return source is not None and source.has_work()

    def read(self) -> Any:
        """Return the tasks and their waits."""
        source = self.source()
        return source.read() if source is not None else []

    def add(self, builder: Any, one: Any, two: Any) -> None:
        """Add the tasks that both readings know."""
        source = self.source()
        if source is not None:
            source.add(builder, one, two)

    def target_of(self, serial: int) -> Any:
        """Return the lock, future, event ... of a resource's serial."""
        return self._source.target_of(serial) if self._source is not None else None

    def actor_of(self, serial: int) -> Any:
        """Return the task of an actor's serial."""
        return self._source.actor_of(serial) if self._source is not None else None

    def own_objects(self) -> list[object]:
        """Return what refers to tasks and futures here."""
        return self._source.own_objects() if self._source is not None else []
