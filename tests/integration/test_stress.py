"""Each stress script for a moment, so that none of them rots; by hand they run for as long as one likes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from concagent import core

FOLDER = Path(__file__).resolve().parents[1] / "stress"
SECONDS = "2"
SKIPPED = 77
SCRIPTS = sorted(path.name for path in FOLDER.glob("stress_*.py"))

pytestmark = pytest.mark.skipif(core.NAME != "c", reason="they stress the C core")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_moment_of_stress_is_survived(script: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CONCAGENT_")}
    with (tmp_path / "output").open("w+") as output:
        # Not through pipes: a child that hangs would keep them open and us waiting.
        done = subprocess.run(
            [sys.executable, os.fspath(FOLDER / script), SECONDS],
            cwd=FOLDER,
            env=environment | {"CONCAGENT_CORE": "c"},
            stdout=output,
            stderr=output,
            timeout=280,
            check=False,
        )
        output.seek(0)
        text = output.read()
    if done.returncode == SKIPPED:
        pytest.skip(text.strip() or "says that it cannot run here")

    assert done.returncode == 0, text[-4000:]
