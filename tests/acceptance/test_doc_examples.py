"""The examples of docs/findings.md do what the document says: each is run under the agent and found out."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from concagent.explain import explain, slugs

# What the document tells the reader to set, or what makes a slow verdict quick.
FLAGS = {
    "stall": ["--stall-after", "1"],
    "long-wait": ["--long-wait", "0.2"],
    "long-hold": ["--long-hold", "0.2"],
}
# Sub-kinds: what their finding says.
KIND_OF = {
    **dict.fromkeys(("double-release", "foreign-release", "exit-held", "destroy-held"), "misuse"),
    **dict.fromkeys(("collected-unclosed", "open-at-exit"), "leak"),
}
LIMIT_SECONDS = 20.0


def example(slug: str) -> str | None:
    """Return the program of a section itself, without its subsections, or None."""
    own = explain(slug).split("\n### ")[0] if slug not in KIND_OF else explain(slug)
    found = re.search(r"^```python\n(.*?)^```", own, re.MULTILINE | re.DOTALL)
    return found[1] if found else None


def programs() -> dict[str, str]:
    found = {slug: program for slug in slugs() if (program := example(slug))}
    return {**found, "long-hold": found["long-wait"]}


def run_until_found(folder: Path, program: str, flags: list[str], kind: str, detail: str | None) -> list[str]:
    """Return ``kind/detail`` of the findings made until the expected one came, or the program ended."""
    script, findings = folder / "app.py", folder / "findings.jsonl"
    script.write_text(program, encoding="utf-8")
    command = [sys.executable, "-m", "concagent", "run", "--findings", os.fspath(findings), *flags, os.fspath(script)]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + LIMIT_SECONDS
    seen: list[str] = []
    try:
        while time.monotonic() < deadline:
            ended = process.poll() is not None
            with contextlib.suppress(FileNotFoundError):
                text = findings.read_text(encoding="utf-8")
                lines = text[: text.rfind("\n") + 1].splitlines()  # the last one may be half written
                seen = [f"{item['kind']}/{'-'.join((item['detail'] or '').split())}" for item in map(json.loads, lines)]
            if any(item.startswith(f"{kind}/") and detail in {None, item.split("/")[1]} for item in seen) or ended:
                break
            time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()
    return seen


@pytest.mark.parametrize("slug", programs())
def test_the_example_is_found_as_the_document_says(tmp_path: Path, slug: str) -> None:
    kind = KIND_OF.get(slug, slug)
    detail = slug if slug in KIND_OF else None

    seen = run_until_found(tmp_path, programs()[slug], FLAGS.get(slug, []), kind, detail)

    assert f"{kind}/{detail}" in [item if detail else f"{item.split('/')[0]}/None" for item in seen]
