"""The ``concagent`` command: which of two ways to go.

``run`` starts a program, and whatever we import before it is in the program's ``sys.modules`` and in its start-up time.
All other commands are for people, who like colours, tables and help texts.  So this module imports nothing: ``run`` goes
straight to ``runner``, everything else to ``commands``, which is made of click and, at a terminal, rich.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line and return its exit status; ``run`` does not return.

    Args:
        arguments: What follows the command's name; by default ``sys.argv[1:]``.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["run"]:
        from concagent import runner

        runner.main(given[1:])
    from concagent import commands

    status: int = commands.main(given)
    return status
