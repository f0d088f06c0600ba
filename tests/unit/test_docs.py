"""The documents say what is so: each kind has its section, each option its line, each link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from concagent import errors
from concagent.errors import ConcagentError
from concagent.explain import explain, slugs
from concagent.model import KINDS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NOT_DETECTED_YET = (
    *("lock-order-inversion", "order-violation"),
    *("data-race", "atomicity-violation"),
)
DETAILS = {
    "misuse": ("double-release", "over-release", "without-lock", "foreign-release", "exit-held", "destroy-held"),
    "leak": ("collected-unclosed", "still-open-and-growing", "open-at-exit"),
}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def all_errors(base: type[ConcagentError] = ConcagentError) -> list[type[ConcagentError]]:
    found = [base]
    for child in base.__subclasses__():
        found += all_errors(child)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_meaning_example_report_and_cure(kind: str) -> None:
    text = explain(kind)

    assert [word for word in ("Meaning", "Example", "Report", "Cure") if f"**{word}" not in text] == []


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: error.__name__)
def test_each_error_has_a_section(error: type[ConcagentError]) -> None:
    assert error.slug in slugs()


def test_errors_module_was_looked_through() -> None:
    assert len(all_errors()) >= len([name for name in vars(errors) if name.endswith("Error")])


def test_the_kinds_that_are_not_detected_say_so_first_and_no_others_do() -> None:
    said = [kind for kind in KINDS if explain(kind).splitlines()[2].startswith("**Not detected yet in this version**")]

    assert sorted(said) == sorted(NOT_DETECTED_YET)


@pytest.mark.parametrize("kind", DETAILS)
def test_each_detail_has_a_section_inside_its_kind(kind: str) -> None:
    assert [detail for detail in DETAILS[kind] if f"### {detail}\n" not in explain(kind)] == []


def test_a_section_ends_where_the_next_one_begins() -> None:
    assert explain("deadlock").count("\n## ") == 0
    assert explain("atomicity-violation").count("\n# ") == 0
    assert "### exit-held" not in explain("foreign-release")


def test_a_comment_in_an_example_is_not_taken_for_a_heading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("concagent.explain._read", lambda: "## leak\n```python\n## stall\n```\nend\n")

    assert slugs() == ("leak",)
    assert explain("leak").endswith("end\n")


@pytest.mark.parametrize("spelling", ["Open at exit", " open-at-exit ", "#open-at-exit"])
def test_a_slug_is_found_however_it_is_typed(spelling: str) -> None:
    assert explain(spelling) == explain("open-at-exit")


def test_an_unknown_slug_is_answered_with_those_that_exist() -> None:
    with pytest.raises(ConcagentError, match="nothing to explain under 'deadlok'; known: deadlock, stall, "):
        explain("deadlok")


def test_a_missing_text_is_said_with_the_places_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("concagent.explain.__file__", str(tmp_path / "concagent" / "explain.py"))

    with pytest.raises(ConcagentError, match=r"findings\.md is missing, looked for .*reinstall"):
        slugs()


def test_readme_lists_exactly_the_options_of_the_table() -> None:
    from concagent.config import OPTIONS, format_text

    listed = dict(re.findall(r"^\| `(\w+)` \| (.+?) \| .+ \|$", read("README.md"), re.MULTILINE))
    expected = {}
    for option in OPTIONS:
        default = format_text(option, option.default)
        expected[option.name] = f"`{default}`" if default else "-"

    assert listed == expected


def test_readme_names_only_metrics_that_exist() -> None:
    from concagent.exporters.prometheus import METRICS

    named = set(re.findall(r"`(concagent_\w+)`", read("README.md") + read("docs/findings.md")))

    assert named - {metric.name for metric in METRICS} == set()


def test_readme_names_the_two_commands() -> None:
    assert "make demo" in read("README.md")
    assert "make test" in read("README.md")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_inside_the_documents_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        if "://" in name:
            continue
        path = document.parent / name if name else document
        headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE) if path.is_file() else []
        anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
        if not path.exists() or (anchor and anchor not in anchors):
            broken.append(target)

    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_no_path_of_one_machine(document: Path) -> None:
    assert re.findall(r"(?<![\w.~])/(?:root|work|home)/\S*", document.read_text(encoding="utf-8")) == []


def test_the_glossary_has_the_words_of_the_field() -> None:
    text = read("GLOSSARY.md")
    words = [
        "resource",
        "actor",
        "holder",
        "waiter",
        "reduction",
        "residue",
        "victim",
        "orphan",
        "leak",
        "finding",
        "fingerprint",
        "sink",
        "patch",
        "gate",
        "board",
    ]

    assert [word for word in words if f"**{word}**" not in text] == []


def test_changelog_has_the_version_of_the_project() -> None:
    version = re.search(r'^version = "(.+)"$', read("pyproject.toml"), re.MULTILINE)

    assert version
    assert f"## {version[1]}" in read("CHANGELOG.md")
