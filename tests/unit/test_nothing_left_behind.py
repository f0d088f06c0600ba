"""The fixture of conftest.py that watches the tests is watched here: a careless test must really fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"

CARELESS = {
    "patch": ("threading.Lock = lambda: None", "patched: threading.Lock"),
    "open": ("import builtins; builtins.open = lambda *a: None", "patched: builtins.open"),
    "thread": (
        "threading.Thread(target=GATE.acquire, name='forgotten', daemon=True).start()",
        "thread: <Thread(forgotten",
    ),
    "native": ("_thread.start_new_thread(stay, ()); STARTED.acquire()", "1 more native threads than before"),
}
TEST = """
import _thread, threading
GATE, STARTED = _thread.allocate_lock(), _thread.allocate_lock()
GATE.acquire()
STARTED.acquire()

def stay():
    STARTED.release()  # a thread that has not begun is not counted
    GATE.acquire()

def test_careless():
    {code}

def test_next():
    pass
"""


def run_pytest(folder: Path, code: str) -> str:
    """Return what pytest prints about a careless test and one that follows it."""
    text = CONFTEST.read_text(encoding="utf-8").replace("_SETTLE_SECONDS = 5.0", "_SETTLE_SECONDS = 0.2")
    (folder / "conftest.py").write_text(text, encoding="utf-8")
    (folder / "test_it.py").write_text(TEST.format(code=code), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", folder]
    return subprocess.run([*command, folder], capture_output=True, text=True, timeout=60, cwd=folder).stdout


@pytest.mark.parametrize("what", CARELESS)
def test_what_a_test_leaves_behind_fails_it(tmp_path: Path, what: str) -> None:
    code, expected = CARELESS[what]

    output = run_pytest(tmp_path, code)

    assert expected in output
    assert "ERROR test_it.py::test_careless" in output


def test_a_careful_test_passes(tmp_path: Path) -> None:
    output = run_pytest(tmp_path, "t = threading.Thread(target=len, args=('',)); t.start(); t.join()")

    assert "2 passed" in output
