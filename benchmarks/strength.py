"""How strong a merge should be, by the number of its adapters: `even` without a limit, at multiples of its strength.

    python benchmarks/strength.py --suite language
    python benchmarks/strength.py --suite minilm --adapters ADAPTERS   # ready-made adapters, one folder a task

Groups of tasks are merged, and asked their own tasks only. 1 is the root mean square of the singular values of what is
kept; scores are those of `quality.py`, mean over the groups. Results go to benchmarks/results/strength.json, and from
there to docs/method.md; a record with the same settings replaces the older one.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import tables
from evidence.runs import machine
from evidence.table import FULL
from suites import suite
from suites.base import Evaluator, Suite, Update, default_cache, single

import samerge
from samerge.methods import chain
from samerge.report.origin import versions

RESULTS = tables.RESULTS / "strength.json"
DOC = tables.DOCS / "method.md"
MULTIPLES = (0.5, 0.6, 0.7, 0.85, 1.0, 1.2)
SETTINGS = ("suite", "adapters", "rank", "rows")

#: By suite: rows a task, and (groups of tasks, output ranks; None for as it comes).
MEASURED: dict[str, tuple[int, tuple[tuple[tuple[tuple[str, ...], ...], tuple[int | None, ...]], ...]]] = {
    "language": (
        6,
        (
            ((("c", "french"), ("german", "speeches"), ("perl", "spanish"), ("polish", "sql")), (16,)),
            ((("c", "french", "german", "speeches"), ("perl", "spanish", "polish", "sql")), (16,)),
        ),
    ),
    "minilm": (
        150,
        (
            ((("election", "movies"), ("newsgroups", "reuters"), ("tweets", "election")), (16,)),
            ((("election", "movies", "newsgroups"), ("reuters", "tweets", "movies")), (16,)),
            ((("election", "movies", "newsgroups", "reuters", "tweets"),), (16, 32, None)),
        ),
    ),
}


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", required=True, choices=list(MEASURED))
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--adapters", type=Path)
    given = parser.parse_args()
    chain.LOUDEST = math.inf
    one = suite(given.suite, given.cache, given.adapters)
    evaluator = one.evaluator()
    rows, measured = MEASURED[given.suite]
    for groups, ranks in measured:
        for rank in ranks:
            keep(measure(one, evaluator, groups, rank, rows))
    tables.write(DOC, "strength.py", table(json.loads(RESULTS.read_text(encoding="utf-8"))))


def measure(
    one: Suite, evaluator: Evaluator, groups: Sequence[tuple[str, ...]], rank: int | None, rows: int
) -> dict[str, Any]:
    """Mean scores of merges of the groups, by strength."""
    folders = one.adapters()

    def loss(update: Update | None, task: str) -> float:
        return float(evaluator.answers(update, task, rows).losses.mean())

    tasks = {task for group in groups for task in group}
    ends = {task: (loss(None, task), loss(single(folders[task]), task)) for task in sorted(tasks)}
    scores: dict[float, list[float]] = {multiple: [] for multiple in MULTIPLES}
    for group in groups:
        for multiple in MULTIPLES:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                merged = samerge.merge(
                    None,
                    {task: folders[task] for task in group},
                    method="even",
                    rank=rank or FULL,
                    scaling=multiple,
                    dtype="float32",
                    progress=False,
                )
            update = Update(merged.factors, merged.layouts)
            shares = [(base - loss(update, task)) / (base - own) for task, (base, own) in ends.items() if task in group]
            scores[multiple].append(100 * fmean(shares))
    told = {str(multiple): round(fmean(found), 1) for multiple, found in scores.items()}
    where = {"precision": evaluator.precision, "machine": machine(), "versions": versions()}
    return {
        "suite": one.name,
        "adapters": len(groups[0]),
        "rank": rank,
        "rows": rows,
        "groups": groups,
        "scores": told,
    } | where


def keep(record: dict[str, Any]) -> None:
    """Into the file, in place of one with the same settings."""
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []
    found = [row for row in known if any(row[key] != record[key] for key in SETTINGS)]
    RESULTS.write_text("[\n" + ",\n".join(json.dumps(row) for row in [*found, record]) + "\n]\n", encoding="utf-8")
    print(record["suite"], record["adapters"], record["rank"], record["scores"], flush=True)


def table(records: Sequence[dict[str, Any]]) -> str:
    """As docs/method.md has it."""
    cells = [
        [
            r["suite"],
            str(r["adapters"]),
            "as it comes" if r["rank"] is None else str(r["rank"]),
            *map(str, r["scores"].values()),
        ]
        for r in records
    ]
    return tables.rows(["suite", "adapters", "output rank", *map(str, MULTIPLES)], cells)


if __name__ == "__main__":
    main()
