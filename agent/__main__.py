"""``python -m concagent``: the same as the ``concagent`` command."""

import sys

from concagent.cli import main

if __name__ == "__main__":
    sys.exit(main())
