"""PEFT's own tests of weighted adapters and of several active adapters, run against PEFT and against samerge.

    python benchmarks/peft_tests.py                         # clones PEFT at the tag of the installed version
    python benchmarks/peft_tests.py --peft-source ../peft   # a checkout or a bare repository that is there already

PEFT's source goes to a cache outside this repository. Its tests are run four times, with `add_weighted_adapter` routed
as `peft_suite/route.py` says. Writes benchmarks/results/peft_tests.json, and from it the table of docs/peft_tests.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tables

HERE = Path(__file__).parent
SUITE = HERE / "peft_suite"
RESULTS = tables.RESULTS / "peft_tests.json"
DOC = tables.DOCS / "peft_tests.md"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "samerge" / "peft"
REPOSITORY = "https://github.com/huggingface/peft"
#: What is sent through samerge, by the name of the route.
ROUTES = {
    "peft": "nothing (PEFT alone)",
    "exact": "`cat`, `svd`",
    "paper": "`cat`, `svd` as `paper` at density 1",
    "linear": "`cat`, `svd`, `linear`",
}
SELECTION = "TestMultipleActiveAdapters or weighted"

#: Why a test that PEFT passes may fail when samerge merges: by a part of the failure's message.
EXPLAINED = {
    "DID NOT RAISE": "the test expects an error for adapters of different ranks; samerge merges them",
    "zeros_like": "the test expects zeros to 1e-8 of an adapter less itself; with samerge rounding leaves 1e-8",
}


def git(*words: str, cwd: Path | None = None) -> str:
    return subprocess.run(["git", *words], cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


def checkout(source: Path | None, revision: str | None, target: Path) -> str:
    """PEFT's files in `target`; returns the commit."""
    if source is None:
        revision = revision or f"v{version('peft')}"
        source = CACHE / revision
        if not source.is_dir():
            CACHE.mkdir(parents=True, exist_ok=True)
            git("clone", "--quiet", "--depth", "1", "--branch", revision, REPOSITORY, str(source))
        revision = "HEAD"
    revision = revision or "HEAD"
    archive = target.with_suffix(".tar")
    git("archive", "--output", str(archive), revision, "tests", cwd=source)
    target.mkdir()
    shutil.unpack_archive(archive, target)
    return git("log", "-1", "--format=%H %cs", revision, cwd=source)


def run(route: str, folder: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The outcome of each test, and who did each of its merges."""
    report = folder / f"{route}.xml"
    words = ["-c", os.devnull, "--rootdir", ".", "-p", "route", "-p", "no:cacheprovider", "-q", "-k", SELECTION]
    words += [f"--junitxml={report}", "tests/test_samerge_weighted.py", "tests/test_custom_models.py"]
    path = os.pathsep.join([str(SUITE), str(HERE.parent / "src"), *sys.path[1:]])
    environment = os.environ | {"SAMERGE_ROUTE": route, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    if not report.is_file():
        raise SystemExit(f"pytest did not run:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
    outcomes: dict[str, str] = {}
    merges: dict[str, list[str]] = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        found = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        text = "passed" if found is None else found.tag
        if found is not None and found.tag != "skipped":
            text = f"failed: {found.get('message', '')}\n{found.text or ''}"
        name = f"{case.get('classname')}::{case.get('name')}"
        outcomes[name] = text
        merges[name] = [item.get("value", "") for item in case.iter("property") if item.get("name") == "merged by"]
    return outcomes, merges


def difference(text: str) -> str:
    return next((why for part, why in EXPLAINED.items() if part in text), f"unexplained: {text.splitlines()[0][:200]}")


def table(results: dict[str, Any]) -> str:
    """The results as docs/peft_tests.md shows them."""
    header = ["routed to samerge", "passed", "failed", "skipped", "tests that merge", "of these passed"]
    cells = []
    for route, row in results["routes"].items():
        counts = (row["passed"], row["tests"] - row["passed"] - row["skipped"], row["skipped"])
        counts += tuple(row[key] for key in ("tests that merge adapters", "of these passed", "merges by samerge"))
        cells.append([ROUTES[route], *(str(count) for count in counts)])
    commit, _, day = results["peft tests"].partition(" ")
    told = (
        f"{results['routes']['peft']['tests']} tests of commit {commit[:8]} ({day}); peft {results['peft installed']}."
    )
    return f"{tables.rows([*header, 'merges by samerge'], cells)}\n\n{told}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peft-source", type=Path, help="a clone of PEFT; fetched when left out")
    parser.add_argument("--revision", help="of PEFT; the tag of the installed version, or HEAD of --peft-source")
    options = parser.parse_args()
    results: dict[str, Any] = {"peft installed": version("peft"), "routes": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "peft"
        results["peft tests"] = checkout(options.peft_source, options.revision, folder)
        shutil.copy(SUITE / "test_weighted.py", folder / "tests" / "test_samerge_weighted.py")
        theirs: dict[str, str] = {}
        for route in ROUTES:
            outcomes, merges = run(route, folder)
            theirs = theirs or outcomes
            differ = {
                name: difference(text)
                for name, text in sorted(outcomes.items())
                if text.startswith("failed") and theirs[name] == "passed"
            }
            merging = [name for name, by in merges.items() if by]
            row = {
                "tests": len(outcomes),
                "passed": sum(text == "passed" for text in outcomes.values()),
                "skipped": sum(text == "skipped" for text in outcomes.values()),
                "tests that merge adapters": len(merging),
                "of these passed": sum(outcomes[name] == "passed" for name in merging),
                "merges by PEFT": sum(by.count("peft") for by in merges.values()),
                "merges by samerge": sum(by.count("samerge") for by in merges.values()),
                "differences": differ,
            }
            results["routes"][route] = row
            print(route, {key: value for key, value in row.items() if key != "differences"})
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    tables.write(DOC, "peft_tests.py", table(results))
    return int(any("unexplained" in why for r in results["routes"].values() for why in r["differences"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
