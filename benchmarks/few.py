"""Which merge for two or three adapters? Groups of a suite's adapters, merged by every leading method, nothing tuned.

    python benchmarks/few.py --suite language smollm2 exact
    python benchmarks/few.py --suite minilm --adapters ADAPTERS   # ready-made adapters, one folder a task

The suites of `quality.py` merge six to eight at once. Here groups of two and three are merged, and asked their own
tasks only; scores are those of `quality.py`, mean over the groups, with every method at what it comes with
(`evidence/table.py`). Results go to benchmarks/results/few.json, and from there to docs/evidence.md, by `quality.py
--render`; a record with the same settings replaces the older one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import records
import tables
from evidence.runs import machine
from evidence.table import FAMILIES, Family
from suites import suite
from suites.base import default_cache
from suites.kept import Kept

from samerge.report.origin import versions

RESULTS = tables.RESULTS / "few.json"
SETTINGS = ("suite", "adapters", "rank", "merge")
RANK = 16

#: The default, `even`, and those that lead somewhere.
NAMES = (
    "saliency",
    "even",
    *("tsv", "knots-ties", "core-ties", "iso-c", "ties", "star", "ctm", "pico", "consensus", "svc", "linear"),
)

Groups = tuple[tuple[str, ...], ...]

#: By suite: rows a task, and the groups by size.
MEASURED: dict[str, tuple[int, tuple[Groups, ...]]] = {
    "language": (
        4,
        (
            (("c", "french"), ("german", "speeches"), ("perl", "spanish"), ("polish", "sql")),
            (("c", "french", "german"), ("speeches", "perl", "spanish")),
        ),
    ),
    "minilm": (
        150,
        (
            (("election", "movies"), ("newsgroups", "reuters"), ("tweets", "election")),
            (("election", "movies", "newsgroups"), ("reuters", "tweets", "movies")),
        ),
    ),
    "exact": (
        40,
        (
            (("dates", "json"), ("languages", "order"), ("roman", "sums")),
            (("dates", "json", "languages"), ("order", "roman", "sums")),
        ),
    ),
    "smollm2": (
        40,
        (
            (("bbc", "mail"), ("movies", "newsgroups"), ("reuters", "tweets")),
            (("bbc", "mail", "movies"), ("newsgroups", "reuters", "tweets")),
        ),
    ),
    "vision": (
        60,
        (
            (("cifar10", "digits"), ("fashion", "mnist"), ("rotation", "cifar10")),
            (("cifar10", "digits", "fashion"), ("mnist", "rotation", "cifar10")),
        ),
    ),
}


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", nargs="+", choices=list(MEASURED), default=[])
    parser.add_argument("--only", help="names of merges, with commas")
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--adapters", type=Path)
    given = parser.parse_args()
    wanted = given.only.split(",") if given.only else NAMES
    for name in given.suite:
        rows, sizes = MEASURED[name]
        one = suite(name, given.cache, given.adapters)
        kept = Kept(one, rows, sorted({task for groups in sizes for group in groups for task in group}))
        for groups in sizes:
            for family in (family for family in FAMILIES if family.name in wanted):
                for budget in ("r", "free"):
                    if budget in family.budgets:
                        keep(measure(name, kept, groups, family, budget))


def measure(name: str, kept: Kept, groups: Groups, family: Family, budget: Any) -> dict[str, Any]:
    """The mean score of a method's merges of the groups."""
    options = family.arguments(budget, RANK, family.densities[0], family.seeds[0])
    return {
        "suite": name,
        "adapters": len(groups[0]),
        "rank": RANK if budget == "r" else None,
        "merge": family.name,
        "score": round(kept.mean(groups, scaling=family.published, **options), 1),
        "rows": kept.rows,
        "groups": groups,
        "precision": kept.evaluator.precision,
        "machine": machine(),
        "versions": versions(),
    }


def keep(record: dict[str, Any]) -> None:
    """Into the file, in place of one with the same settings."""
    records.write(RESULTS, records.replaced(RESULTS, record, SETTINGS))
    print(*(record[key] for key in (*SETTINGS, "score")), flush=True)


if __name__ == "__main__":
    main()
