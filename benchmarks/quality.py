"""Which merge is best, on real tasks: suites of trained adapters, every method at several scales and output ranks.

    python benchmarks/quality.py --suite minilm                  # measure (hours for all suites on one core; resumable)
    python benchmarks/quality.py --suite minilm --only 'tsv,iso-c' --budgets r
    python benchmarks/quality.py --suite minilm --climb --budgets r     # every merge at its best strength, no more
    SAMERGE_BENCHMARKS_DTYPE=float32 python benchmarks/quality.py --suite minilm --only saliency,even --published
    python benchmarks/quality.py --collect --render              # results/quality.json, docs/evidence.md and pictures

Models and rows are downloaded into a cache (`--cache`, or $SAMERGE_BENCHMARKS_CACHE), adapters are trained there
unless `--adapters` has them ready, and every measurement is kept there at once, so that a run that was cut off goes on.
A merge's score is what it gains over the base, in per cent of what each task's own adapter gains, mean over tasks
(`evidence/scores.py`). `--collect` turns what the cache has into benchmarks/results/quality.json, with intervals;
`--render` turns that, and what `few.py` and `inputs.py` found, into the pages.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evidence.climb import peaks
from evidence.collect import collect
from evidence.long_tables import long_tables
from evidence.page import page
from evidence.pictures import draw
from evidence.runs import Runs, Setting, settings
from evidence.store import dump, load
from evidence.table import FAMILIES
from suites import PUBLIC, SUITES, suite
from suites.base import Part, default_cache

RESULTS = Path(__file__).parent / "results" / "quality.json"
FEW, INPUTS = RESULTS.with_name("few.json"), RESULTS.with_name("inputs.json")
DOCS = Path(__file__).parent.parent / "docs"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", nargs="*", default=[], choices=[*SUITES, *PUBLIC], help="what to measure")
    parser.add_argument("--only", default="*", help="names of merges, a pattern, or several with commas")
    parser.add_argument("--budgets", nargs="*", default=["r", "free", "2r"], help="output ranks")
    parser.add_argument("--published", action="store_true", help="only what a user gets who tunes nothing")
    parser.add_argument("--scales", nargs="*", help="only these, and the published one")
    parser.add_argument("--climb", action="store_true", help="only the strengths around each merge's best one")
    parser.add_argument("--items", type=int, help="rows a task")
    parser.add_argument("--tasks", nargs="*", default=[], help="ask only these; merges are of all adapters")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="downloads, adapters, measurements")
    parser.add_argument("--adapters", type=Path, help="ready-made adapters, one folder a task, for a single suite")
    parser.add_argument("--train", action="store_true", help="train the adapters again")
    parser.add_argument("--minutes", type=float, help="begin no measurement after this time")
    parser.add_argument("--collect", action="store_true", help="make results/quality.json from the cache")
    parser.add_argument("--render", action="store_true", help="make docs/evidence.md and its pictures from it")
    given = parser.parse_args()
    if given.adapters and len(given.suite) != 1:
        parser.error("--adapters goes with one --suite")
    end = time.monotonic() + 60 * given.minutes if given.minutes else None
    for name in given.suite:
        measure(name, given, end)
    if given.collect:
        known = load(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
        RESULTS.write_text(dump(collect(given.cache, known)), encoding="utf-8")
    if given.render:
        results = load(RESULTS.read_text(encoding="utf-8"))
        few, inputs = (json.loads(path.read_text(encoding="utf-8")) for path in (FEW, INPUTS))
        (DOCS / "evidence.md").write_text(page(results, few, inputs), encoding="utf-8")
        (DOCS / "evidence-tables.md").write_text(long_tables(results, few, inputs), encoding="utf-8")
        draw(results, DOCS / "pictures" / "quality-methods.png")


def measure(name: str, given: argparse.Namespace, end: float | None) -> None:
    """All settings of one suite that are not in the cache yet."""
    one = suite(name, given.cache, given.adapters, given.train)
    runs = Runs(one, given.items or one.items, given.cache / name / "measurements.jsonl", given.tasks)
    runs.references(all_tasks=not given.published)
    todo = settings(FAMILIES, given.only, given.budgets)
    if given.climb:
        climb(name, runs, one.parts(), todo, end)
        return
    if given.published or given.scales:
        scales = given.scales or ()
        todo = [setting for setting in todo if setting.published or str(setting.scaling) in scales]
    for number, setting in enumerate(todo, 1):
        if end is not None and time.monotonic() > end:
            print(f"{name}: stopped after {number - 1} of {len(todo)}")
            return
        if runs.measure(setting):
            what = [setting.family.name, setting.budget, setting.density, setting.scaling]
            print(f"{name} {number}/{len(todo)}: {what}", flush=True)


def climb(name: str, runs: Runs, parts: Sequence[Part], todo: Sequence[Setting], end: float | None) -> None:
    """Each merge at its published density, at the strengths around its best one."""
    grids: dict[tuple[Any, ...], list[Setting]] = {}
    for setting in todo:
        if setting.density == setting.family.densities[0] and setting.family.role != "variation":
            grids.setdefault((setting.family.name, setting.budget, setting.seed), []).append(setting)
    for grid in grids.values():
        while missing := peaks(runs.lines(), parts, grid):
            if end is not None and time.monotonic() > end:
                print(f"{name}: stopped before {missing[0].family.name}")
                return
            done = [runs.measure(setting) for setting in missing]
            print(f"{name}: {missing[0].family.name}, {missing[0].budget}: {[s.scaling for s in missing]}", flush=True)
            if not any(done):
                break


if __name__ == "__main__":
    main()
