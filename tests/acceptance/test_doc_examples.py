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
from typing import Any

import pytest

from concagent.explain import explain, slugs

# What the document tells the reader to set, or what makes a slow verdict quick.
FLAGS = {
    "stall": ["--stall-after", "1"],
    "long-wait": ["--long-wait", "0.2"],
    "long-hold": ["--long-hold", "0.2"],
    "loop-blocked": ["--loop-blocked", "1"],
}
# Sub-kinds: what their finding says.
KIND_OF = {
    **dict.fromkeys(
        ("double-release", "over-release", "without-lock", "foreign-release", "exit-held", "destroy-held"), "misuse"
    ),
    **dict.fromkeys(("collected-unclosed", "open-at-exit"), "leak"),
}
# Whose report stands under its kind.
SHOWN_FOR_ITS_KIND = ("double-release", "collected-unclosed")
LIMIT_SECONDS = 20.0


def example(slug: str) -> str | None:
    """Return the program of a section itself, without its subsections, or None."""
    own = explain(slug).split("\n### ")[0] if slug not in KIND_OF else explain(slug)
    found = re.search(r"^```python\n(.*?)^```", own, re.MULTILINE | re.DOTALL)
    return found[1] if found else None


def programs() -> dict[str, str]:
    found = {slug: program for slug in slugs() if (program := example(slug))}
    return {**found, "long-hold": found["long-wait"]}


def run_until_found(
    folder: Path, program: str, flags: list[str], kind: str, detail: str | None
) -> list[dict[str, Any]]:
    """Return the findings of this kind and detail: the first one, or none if the program ended without."""
    home = folder / "shop"
    home.mkdir()
    script, findings = home / "app.py", folder / "findings.jsonl"
    script.write_text(program, encoding="utf-8")
    command = [sys.executable, "-m", "concagent", "run", "--findings", os.fspath(findings), *flags, os.fspath(script)]
    process = subprocess.Popen(command, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + LIMIT_SECONDS
    found: list[dict[str, Any]] = []
    try:
        while not found and time.monotonic() < deadline:
            ended = process.poll() is not None
            with contextlib.suppress(FileNotFoundError):
                text = findings.read_text(encoding="utf-8")
                lines = text[: text.rfind("\n") + 1].splitlines()  # the last one may be half written
                found = [item for item in map(json.loads, lines) if matches(item, kind, detail)]
            if ended:
                break
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    return found


def matches(finding: dict[str, Any], kind: str, detail: str | None) -> bool:
    return finding["kind"] == kind and (detail is None or (finding["detail"] or "").replace(" ", "-") == detail)


def without_figures(text: str) -> str:
    """Return the text with all durations the same."""
    return re.sub(r"\b\d+\.\d s\b", "n s", text)


@pytest.mark.parametrize("slug", programs())
def test_the_example_is_found_as_the_document_says(tmp_path: Path, slug: str) -> None:
    kind = KIND_OF.get(slug, slug)
    detail = slug if slug in KIND_OF else None

    found = run_until_found(tmp_path, programs()[slug], FLAGS.get(slug, []), kind, detail)

    assert [finding["kind"] for finding in found] == [kind]
    # A section without a report of its own has that of its kind, about one example for all.
    if "**Report" in explain(slug) or slug in SHOWN_FOR_ITS_KIND:
        assert without_figures(found[0]["title"]) in without_figures(explain(kind))
