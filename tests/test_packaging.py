"""What a release says of itself in several places is one thing."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import yaml

import samerge

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = "[project.optional-dependencies]"


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_newest_dated_entry_of_the_changelog_is_the_version():
    dated = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})$", read("CHANGELOG.md"), flags=re.MULTILINE)
    version, day = dated[0]
    assert version == samerge.__version__
    citation = yaml.safe_load(read("CITATION.cff"))
    assert (citation["version"], citation["date-released"]) == (version, day)
    datetime.date.fromisoformat(day)


def test_the_citation_names_the_paper():
    [paper] = yaml.safe_load(read("CITATION.cff"))["references"]
    assert "2606.00511" in paper["url"]
    assert [one["family-names"] for one in paper["authors"]] == ["Park", "Lee", "Sohn"]


def test_the_extras_are_explained():
    """Every extra, and every dependency of the base, has its row in docs/install.md."""
    page = read("docs/install.md")
    table = read("pyproject.toml").partition(EXTRAS)[2].partition("\n[")[0]
    for extra in re.findall(r"^(\w+) = \[", table, flags=re.MULTILINE):
        assert f"`{extra}`" in page, extra
    base = read("pyproject.toml").partition("\ndependencies = [")[2].partition("\n]")[0]
    for name in re.findall(r'"([\w-]+)>=', base):
        assert re.search(rf"^\| {name} ", page, flags=re.MULTILINE), name


def test_the_oldest_versions_are_the_lower_bounds():
    """Of the base and of every extra whose packages the tests need; docs/versions.md has those of the base."""
    text = read("pyproject.toml")
    base, extras = (text.partition(f"\n{head}\n")[2].partition("\n[")[0] for head in ("dependencies = [", EXTRAS))
    extras, _, _ = extras.partition("\ndev = ")  # what comes behind it is not installed for the tests
    bounds = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', base + extras))
    assert {"torch", "peft", "transformers", "diffusers", "gguf", "pytest"} <= bounds.keys()
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", read("constraints-oldest.txt"), flags=re.MULTILINE))
    assert pinned == bounds
    table = dict(re.findall(r"^\| ([\w-]+) \| ([\d.]+) \|$", read("docs/versions.md"), flags=re.MULTILINE))
    assert table == {name: low for name, low in bounds.items() if f'"{name}>=' in base or name in ("diffusers", "gguf")}


def test_workflows_and_templates_are_yaml():
    files = [*(ROOT / ".github").rglob("*.yml"), ROOT / "CITATION.cff"]
    assert len(files) >= 5
    for file in files:
        assert isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict), file
