"""What the stress scripts share: the C core recording, and an end if nothing moves any more.

A script exits 0 if it survived and 77 if it could not run here; a signal is a bug, and so is exit status 3 (it hung; the
stacks are on stderr).  They run alone, ``python tests/stress/stress_x.py [seconds]``, with concagent importable.
"""

# ruff: noqa: ARG002  a listener has the parameters that the core gives

from __future__ import annotations

import faulthandler
import os
import sys

SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0

# Under ASan (see .ci/sanitize) freed memory is kept for a while: the size of the process says nothing there.
SIZE_COUNTS = os.environ.get("PYTHONMALLOC") != "malloc"

os.environ.setdefault("CONCAGENT_CORE", "c")
try:
    from concagent import core
    from concagent.errors import ConfigError
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)
except Exception as error:  # noqa: BLE001 - ConfigError: the C core is not built
    print(f"skipped: {error}")
    sys.exit(77)
assert ConfigError
if core.NAME != "c":
    print("skipped: the C core is not in use")
    sys.exit(77)


class Heard(core.Listener):
    """Counts what it is told; makes victims of those that close a ring if asked to."""

    victims = False

    def __init__(self) -> None:
        self.rings = self.orphans = self.misuses = 0

    def ring(self, path: object) -> BaseException | None:
        self.rings += 1
        return VictimError() if self.victims else None

    def orphan(self, record: object, wait: object, hold: object) -> BaseException | None:
        self.orphans += 1
        return VictimError() if self.victims else None

    def misuse(self, detail: str, cell: object, hold: object, frame: object) -> None:
        self.misuses += 1


class VictimError(RuntimeError):
    """Raised in whoever was chosen."""


heard = Heard()
core.start(heard)
faulthandler.enable()


def watch(seconds: float) -> None:
    """End the process with all stacks if it is still there after so many seconds."""
    faulthandler.dump_traceback_later(seconds, exit=True)
