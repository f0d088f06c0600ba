"""The house has rooms, and a room sees only those that ARCHITECTURE.md lets it see.

The table there is read, not copied: a module without a row fails, and so does an import that its row does not name.
An agent inside a program must also never run through its own hooks, so what it replaces (locks, threads, ``open``) and
the clocks may be named in ``_real`` only.  ruff's TID251 catches some of that; it does not see a bare ``open(...)``.

By hand, for the budget of 40 ms:  .venv/bin/python tests/unit/test_layering.py
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {"agent": "", "hooks": "hooks", "exporters": "exporters"}
ANYTHING = "anything"
# A line that must make what the program would make says so, with its reason: "# layering: a queue's own conditions".
EXCUSE = re.compile(r"# layering: \w")
PRINTERS = {"cli", "__main__", "commands", "exporters", "bootstrap"}  # bootstrap: concagent.report(file)

ORIGINALS = {
    "threading": {
        *("Lock", "RLock", "Condition", "Semaphore", "BoundedSemaphore", "Event", "Barrier", "Thread", "Timer"),
        *("_allocate_lock", "_start_new_thread"),
    },
    "_thread": {"allocate_lock", "allocate", "RLock", "LockType", "start_new_thread", "start_new"},
    "time": {"sleep", "time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"},
    "queue": {"Queue", "LifoQueue", "PriorityQueue"},
    "io": {"open"},
    "builtins": {"open"},
    "os": {"fork", "fdopen"},
}
# Methods of pathlib.Path that open a file through io.open.
OPENING_METHODS = {"read_text", "write_text", "read_bytes", "write_bytes"}

HEAVY = ("networkx", "prometheus_client", "click", "rich", "psutil", "asyncio", "multiprocessing", "concurrent.futures")
HEAVY += ("http.server", "urllib.request", "ssl", "subprocess", "email", "importlib.metadata", "unittest")


@dataclass(frozen=True)
class Row:
    """What the modules of one row of the table may import; ``typing`` only under TYPE_CHECKING."""

    allowed: frozenset[str]
    typing: frozenset[str]


def rows(text: str) -> dict[str, Row]:
    """Return module -> row, out of the table whose head is ``| Module | ... | May import |``."""
    table = re.search(r"^\| Module \|.*\| May import \|\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table, "ARCHITECTURE.md has no table | Module | ... | May import |"
    result: dict[str, Row] = {}
    for line in table[1].splitlines():
        first, *_, last = [cell.strip() for cell in line.strip("|").split("|")]
        names = [name.removesuffix("/*") for name in re.findall(r"`([^`]+)`", first)]
        plain, _, typing = last.partition("for typing:")
        plain = plain.strip(" ;,")
        allowed = set() if plain == "nothing of ours" else set(re.findall(r"\w+", plain))
        if "(" in first or "/*" in first:  # the modules of one room may see each other
            allowed |= set(names)
        for name in names:
            result[name] = Row(frozenset(allowed), frozenset(re.findall(r"\w+", typing)))
    return result


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name of the row and the path of each of our source files."""
    for folder, room in ROOMS.items():
        for path in sorted((root / folder).rglob("*.py")):
            inner = path.relative_to(root / folder).parts
            yield room or (inner[0] if len(inner) > 1 else path.stem), path


def violations(root: Path) -> list[str]:
    """Return all breaches of the table and of the bans, as ``file:line: what``."""
    table = rows((root / "ARCHITECTURE.md").read_text(encoding="utf-8"))
    found: list[str] = []
    for row in table.values():
        unknown = (row.allowed | row.typing) - {*table, ANYTHING}
        found += [f"ARCHITECTURE.md: {name} has no row" for name in unknown]
    for module, path in modules(root):
        where = path.relative_to(root).as_posix()
        if module not in table:
            found.append(f"{where}:1: {module} has no row in ARCHITECTURE.md")
            continue
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text, filename=str(path))
        excused = {number for number, line in enumerate(text.splitlines(), 1) if EXCUSE.search(line)}
        breaches = [*_imports(tree, module, table), *(item for item in _bans(tree, module) if item[0] not in excused)]
        found += [f"{where}:{line}: {what}" for line, what in breaches]
    return sorted(set(found))


def _imports(tree: ast.Module, module: str, table: dict[str, Row]) -> Iterator[tuple[int, str]]:
    """Yield each import of ours that the row of the module does not name."""
    row = table[module]
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "relative import; write concagent.<module>"
                continue
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top != "concagent":
                continue
            target = rest.split(".")[0]
            target = target if target in table else "__init__"
            allowed = row.allowed | row.typing if id(node) in typing_only else row.allowed
            if target != module and target not in allowed and ANYTHING not in allowed:
                yield node.lineno, f"{module} may not import {target}"


def _bans(tree: ast.Module, module: str) -> Iterator[tuple[int, str]]:
    """Yield each use of what only ``_real`` may name.  Hooks may refer to what they replace, but not call it."""
    if module == "_real":
        return
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.name in ORIGINALS.get(node.module or "", ()):
                    yield node.lineno, f"from {node.module} import {alias.name}; take it from _real"
        elif isinstance(node, ast.Name) and id(node) in called:
            if node.id == "open":
                yield node.lineno, "open(...); use _real.open_file"
            elif node.id == "print" and module not in PRINTERS:
                yield node.lineno, "print(...) outside the command line and the exporters"
        elif isinstance(node, ast.Attribute):
            if node.attr in OPENING_METHODS and id(node) in called:
                yield node.lineno, f".{node.attr}() opens through io.open; use _real.open_file"
            elif (
                isinstance(node.value, ast.Name)
                and node.attr in ORIGINALS.get(node.value.id, ())
                and (module != "hooks" or id(node) in called)
            ):
                yield node.lineno, f"{node.value.id}.{node.attr}; take it from _real"


def test_every_module_keeps_to_its_row_of_the_architecture() -> None:
    assert violations(ROOT) == []


GOOD = {
    "ARCHITECTURE.md": (
        "| Module | One thought | May import |\n"
        "|---|---|---|\n"
        "| `_real` | the originals | nothing of ours |\n"
        "| `errors`, `model` | values | nothing of ours, for typing: errors model |\n"
        "| `core` (`_core`, `_pycore`) | locks | _real errors |\n"
        "| `hooks/*` | patches | core _real |\n"
        "| `exporters/*` | formats | model _real |\n"
        "| `bootstrap` | composition | anything |\n"
    ),
    "agent/_real.py": "import threading\nLock = threading.Lock\nopen_file = open\n",
    "agent/errors.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from concagent.model import Finding\n",
    "agent/model.py": "import dataclasses\n",
    "agent/core.py": "def choose():\n    from concagent import _pycore\n    return _pycore\n",
    "agent/_pycore.py": "from concagent._real import Lock\n",
    "agent/bootstrap.py": "from concagent.hooks import locks\nfrom concagent.exporters import text\n",
    "hooks/locks.py": "import threading\nfrom concagent.hooks.patching import Patch\nPATCH = Patch(threading.Lock)\n",
    "hooks/patching.py": "from concagent import core\n",
    "exporters/text.py": "from concagent.model import Finding\nprint(Finding)\n",
}


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """Return a small house without a fault."""
    for name, text in GOOD.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_a_house_in_order_has_no_violations(house: Path) -> None:
    assert violations(house) == []


BEYOND_REAL = "take it from _real"
OPENS = "use _real.open_file"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("hooks/locks.py", "from concagent.exporters import text\n", "1: hooks may not import exporters"),
        ("exporters/text.py", "import concagent.hooks.locks\n", "1: exporters may not import hooks"),
        ("agent/model.py", "from concagent.errors import X\n", "1: model may not import errors"),
        ("agent/core.py", "def f():\n    from concagent.model import X\n", "2: core may not import model"),
        ("agent/core.py", "from concagent import install\n", "1: core may not import __init__"),
        ("agent/core.py", "from . import _real\n", "1: relative import; write concagent.<module>"),
        ("agent/new.py", "", "1: new has no row in ARCHITECTURE.md"),
        ("agent/core.py", "open('x')\n", f"1: open(...); {OPENS}"),
        ("agent/core.py", "import threading\nthreading.Lock()\n", f"2: threading.Lock; {BEYOND_REAL}"),
        ("agent/core.py", "from threading import RLock\n", f"1: from threading import RLock; {BEYOND_REAL}"),
        ("agent/core.py", "import time\nnow = time.monotonic\n", f"2: time.monotonic; {BEYOND_REAL}"),
        ("hooks/locks.py", "import threading\nthreading.Thread()\n", f"2: threading.Thread; {BEYOND_REAL}"),
        ("agent/core.py", "p.read_text()\n", f"1: .read_text() opens through io.open; {OPENS}"),
        ("agent/core.py", "print(1)\n", "1: print(...) outside the command line and the exporters"),
    ],
)
def test_a_planted_violation_is_found(house: Path, name: str, text: str, expected: str) -> None:
    (house / name).write_text(text, encoding="utf-8")

    assert violations(house) == [f"{name}:{expected}"]


def test_a_line_with_a_reason_is_excused_from_the_bans_but_not_from_the_table(house: Path) -> None:
    text = "import threading\nthreading.Lock()  # layering: the program's own\n"
    text += "from concagent.exporters import text  # layering: no\n"
    (house / "hooks/locks.py").write_text(text, encoding="utf-8")

    assert violations(house) == ["hooks/locks.py:3: hooks may not import exporters"]


def test_a_row_that_names_an_unknown_module_is_found(house: Path) -> None:
    table = house / "ARCHITECTURE.md"
    table.write_text(GOOD["ARCHITECTURE.md"].replace("core _real", "core _reel"), encoding="utf-8")

    assert "ARCHITECTURE.md: _reel has no row" in violations(house)


def test_importing_concagent_pulls_in_nothing_heavy() -> None:
    code = f"import sys; import concagent; print(*(name for name in {HEAVY!r} if name in sys.modules))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.split() == []


def test_concagent_is_imported_once_only_and_from_this_tree_or_an_install() -> None:
    code = "import concagent.model, sys; print(*(n for n in ('agent', 'hooks', 'exporters') if n in sys.modules))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.split() == []


def _figure() -> None:
    """Print what ``import concagent`` costs: the best of 20 processes, each timed from inside."""
    code = "import time; a = time.perf_counter(); import concagent; print(time.perf_counter() - a)"
    times = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(20)]
    print(f"import concagent: {min(times) * 1000:.1f} ms (best of 20), median {sorted(times)[10] * 1000:.1f} ms")


if __name__ == "__main__":
    _figure()
