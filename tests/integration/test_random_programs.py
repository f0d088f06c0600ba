"""The share of the random programs in ``tests/stress`` that every run of the tests can afford."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

STRESS = Path(__file__).resolve().parents[1] / "stress"


@pytest.mark.parametrize("script", ["test_random_programs.py", "test_random_waits.py"], ids=["locks", "waits"])
def test_500_random_programs_get_the_verdicts_of_the_oracle(script):
    command = [sys.executable, str(STRESS / script), "--programs", "500", "--seed", "1"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r'no difference .*"programs": 500\b', done.stdout)
