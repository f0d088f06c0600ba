#!/usr/bin/env python3
"""Run the test suites of real packages bare and under the agent, and compare.

    tests/corpus/packages.py [--work DIR] [--agent PATH] [NAME ...]

Each package of ``packages.toml`` is downloaded as an sdist, installed into a virtual environment of its own with this
checkout (or ``--agent``, a wheel), and tested twice: ``python -m pytest`` and ``concagent run -m pytest``.  Said is what
passes bare and does not under the agent, once a second try did not pass either, and each finding that is more than a
long wait or hold and not listed as known.  Exit status 1 if there is any.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import time
import venv
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 900
QUIET = {"long-wait", "long-hold"}


def prepare(name: str, package: dict[str, Any], work: Path, agent: str) -> tuple[Path, Path]:
    """Return (the sdist's folder, the environment's python), made where they are not there."""
    folder, environment = work / name / "src", work / name / "env"
    python = environment / "bin" / "python"
    if not (work / name / "ready").exists():
        venv.create(environment, with_pip=True, clear=True)
        pip = [os.fspath(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, package["sdist"], "pytest<8.4", *package.get("needs", ())], check=True)
        subprocess.run([*pip, agent], check=True)
        download = [os.fspath(python), "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*download, "--dest", os.fspath(work / name), package["sdist"]], check=True)
        (archive,) = (work / name).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(work / name / "unpacked", filter="data")
        (top,) = (work / name / "unpacked").iterdir()
        top.rename(folder)
        (work / name / "ready").touch()
    return folder, python


def run(
    command: list[str], folder: Path, junit: Path, environment: dict[str, str]
) -> tuple[dict[str, str], float, str]:
    """Return (test -> outcome, seconds, the last of the output)."""
    begun = time.monotonic()
    junit.unlink(missing_ok=True)
    with (junit.with_suffix(".out")).open("wb") as out:
        process = subprocess.Popen(
            [*command, "-q", "-p", "no:cacheprovider", f"--junit-xml={junit}"],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
    seconds = time.monotonic() - begun
    tail = junit.with_suffix(".out").read_text(errors="replace")[-2000:]
    if not junit.exists():
        return {}, seconds, tail
    outcomes = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        bad = [child.tag for child in case if child.tag in {"failure", "error", "skipped"}]
        outcomes[f"{case.get('classname')}::{case.get('name')}"] = bad[0] if bad else "passed"
    return outcomes, seconds, tail


def compare(name: str, package: dict[str, Any], work: Path, agent: str) -> bool:
    """Run one package both ways and say what differs; True if nothing does."""
    folder, python = prepare(name, package, work, agent)
    plain = {key: value for key, value in os.environ.items() if not key.startswith("CONCAGENT_")}
    findings = work / name / "findings.jsonl"
    findings.unlink(missing_ok=True)
    traced = {**plain, "CONCAGENT_FINDINGS": os.fspath(findings), "CONCAGENT_LOG": "0"}
    bare, bare_seconds, tail = run(
        [os.fspath(python), "-m", "pytest", *package["tests"]], folder, work / name / "bare.xml", plain
    )
    under = [os.fspath(python), "-m", "concagent", "run", "-m", "pytest", *package["tests"]]
    with_agent, seconds, agent_tail = run(under, folder, work / name / "agent.xml", traced)
    worse = {test for test, outcome in bare.items() if outcome == "passed" and with_agent.get(test) != "passed"}
    if worse and with_agent:  # flaky tests are the package's own
        again, _, _ = run(under, folder, work / name / "agent2.xml", traced)
        once_more, _, _ = run(
            [os.fspath(python), "-m", "pytest", *package["tests"]], folder, work / name / "bare2.xml", plain
        )
        worse = {test for test in worse if again.get(test) != "passed" and once_more.get(test) == "passed"}
    found = []
    if findings.exists():
        found = [json.loads(line) for line in findings.read_text().splitlines()]
    odd = [
        f for f in found if f["kind"] not in QUIET and not any(part in f["title"] for part in package.get("known", {}))
    ]
    passed = sum(outcome == "passed" for outcome in bare.values())
    print(
        f"{name:16} {passed:5} pass bare in {bare_seconds:5.1f} s, {len(worse):3} worse under the agent in {seconds:5.1f} s, "
        f"{len(odd)} findings",
        flush=True,
    )
    for test in sorted(worse)[:20]:
        print(f"    worse: {test}: {with_agent.get(test)}")
    for finding in odd[:30]:
        print(f"    {finding['kind']} {finding['confidence']} {finding['resource_kind']}: {finding['title']}")
    if not passed or not with_agent:
        print("    " + (tail if not passed else agent_tail).replace("\n", "\n    "))
    return bool(passed) and not worse and not odd


def main() -> int:
    """Run the packages that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "packages")
    parser.add_argument("--agent", default=os.fspath(ROOT), help="what pip installs: a folder or a wheel")
    options = parser.parse_args()
    packages = tomllib.loads((Path(__file__).parent / "packages.toml").read_text())
    unknown = set(options.names) - packages.keys()
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(packages)}")
    good = True
    for name in options.names or packages:
        try:
            good &= compare(name, packages[name], options.work.resolve(), options.agent)
        except (subprocess.CalledProcessError, OSError, ValueError) as error:
            print(f"{name:16} cannot be run: {error}")
            good = False
    return not good


if __name__ == "__main__":
    sys.exit(main())
