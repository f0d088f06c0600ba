"""What an install contains: every module of ours under ``concagent``, the data that modules read, and nothing else.

The wheel is built from a copy of the sources, once, without build isolation: the tests need no network.
"""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import concagent

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("agent", "hooks", "exporters", "docs")
FILES = ("pyproject.toml", "setup.cfg", "README.md", "LICENSE", "MANIFEST.in")


def packages() -> dict[str, str]:
    """Return package -> folder, as setup.cfg declares them."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lines = parser["options"]["package_dir"].strip().splitlines()
    return {name.strip(): folder.strip() for name, _, folder in (line.partition("=") for line in lines)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a freshly built wheel."""
    pytest.importorskip("setuptools")
    tree = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in FILES:
        shutil.copy(ROOT / name, tree / name)
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", target, tree], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    (path,) = target.glob("concagent-*.whl")
    return path


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_each_package_folder_is_declared() -> None:
    folders = {
        path.parent.relative_to(ROOT).as_posix() for name in SOURCES[:3] for path in (ROOT / name).rglob("__init__.py")
    }

    assert folders <= set(packages().values())


def test_package_dir_and_packages_name_the_same() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")

    assert set(parser["options"]["packages"].split()) == set(packages())


def test_the_version_is_the_same_in_the_package_and_in_its_metadata() -> None:
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)

    assert declared
    assert concagent.__version__ == declared[1]


def test_the_wheel_has_every_module_and_only_under_concagent(wheel: Path) -> None:
    expected = {
        f"{package.replace('.', '/')}/{path.name}"
        for package, folder in packages().items()
        for path in (ROOT / folder).iterdir()
        if path.suffix in {".py", ".pyi", ".md", ".html", ".css", ".js"} or path.name in {"py.typed", "rules.yml"}
    }

    compiled = {name for name in contents(wheel) if re.fullmatch(r"concagent/_core\.[^/]+\.(so|pyd)", name)}
    assert len(compiled) <= 1  # none without a compiler
    assert contents(wheel) - compiled == expected


def test_the_wheel_has_the_data_that_modules_read(wheel: Path) -> None:
    assert contents(wheel) >= {"concagent/py.typed", "concagent/docs/findings.md"}


def test_the_wheel_has_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        text = archive.read(name).decode()

    assert "concagent = concagent.cli:main" in text


def test_explain_works_from_an_install_without_a_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = "import sys; sys.path.insert(0, sys.argv[1]); from concagent import explain; print(explain.__file__)"
    code += "; print(explain.explain('deadlock'))"

    done = subprocess.run([sys.executable, "-S", "-c", code, tmp_path], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == [str(tmp_path / "concagent" / "explain.py"), "## deadlock"]
