"""How strong a merge should be, by the number of its adapters and the output rank: `even` at given sizes.

    python benchmarks/strength.py --suite language
    python benchmarks/strength.py --suite minilm --adapters ADAPTERS   # ready-made adapters, one folder a task

Groups of tasks are merged, and asked their own tasks only. A size of 1 makes the kept components of a layer, all
together and before weights, as large as one adapter (the root mean square of theirs); scores are those of `quality.py`,
mean over the groups. Results go to benchmarks/results/strength.json, and from there to docs/method.md; a record with
the same settings replaces the older one.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import records
import tables
from evidence.runs import machine
from evidence.table import FULL
from suites import suite
from suites.base import default_cache
from suites.kept import Kept
from torch import Tensor

from samerge.methods import chain
from samerge.report.origin import versions

RESULTS = tables.RESULTS / "strength.json"
DOC = tables.DOCS / "method.md"
SIZES = (1.0, 1.4, 1.7, 2.0, 2.4, 2.8)
SETTINGS = ("suite", "adapters", "rank", "rows")

LANGUAGE = ("c", "french", "german", "speeches", "perl", "spanish", "polish", "sql")
CLASSES = ("election", "movies", "newsgroups", "reuters", "tweets")
ANSWERS = ("dates", "json", "languages", "order", "roman", "sums")

#: By suite: rows a task, and (groups of tasks, output ranks; None for as it comes).
MEASURED: dict[str, tuple[int, tuple[tuple[tuple[tuple[str, ...], ...], tuple[int | None, ...]], ...]]] = {
    "language": (
        4,
        (
            (tuple(zip(LANGUAGE[::2], LANGUAGE[1::2], strict=True)), (16, None)),
            ((LANGUAGE[:4], LANGUAGE[4:]), (16, 32, None)),
            ((LANGUAGE,), (16, 32, None)),
        ),
    ),
    "minilm": (
        150,
        (
            ((CLASSES[:2], CLASSES[2:4], (CLASSES[4], CLASSES[0])), (4, 16, None)),
            ((CLASSES[:3], (*CLASSES[3:], CLASSES[1])), (16, None)),
            ((CLASSES,), (4, 16, 32, None)),
        ),
    ),
    "exact": (
        40,
        (
            (tuple(zip(ANSWERS[::2], ANSWERS[1::2], strict=True)), (16, None)),
            ((ANSWERS,), (16, 32, None)),
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
    one = suite(given.suite, given.cache, given.adapters)
    rows, measured = MEASURED[given.suite]
    kept = Kept(one, rows, sorted({task for groups, _ in measured for group in groups for task in group}))
    for groups, ranks in measured:
        for rank in ranks:
            keep(measure(one.name, kept, groups, rank))
    tables.write(DOC, "strength.py", table(json.loads(RESULTS.read_text(encoding="utf-8"))))


def sized(size: float) -> Callable[[Tensor, Tensor, int, float], float]:
    """A stand-in for `chain.strength` that makes every merge of a size."""

    def strength(sigma: Tensor, kept: Tensor, adapters: int, heard: float, *loudness: float) -> float:
        return size * math.sqrt(float(sigma.square().sum()) / adapters / len(kept))

    return strength


def measure(name: str, kept: Kept, groups: Sequence[tuple[str, ...]], rank: int | None) -> dict[str, Any]:
    """Mean scores of merges of the groups, by size."""
    scores = {}
    for size in SIZES:
        with mock.patch.object(chain, "strength", sized(size)):
            scores[str(size)] = round(kept.mean(groups, method="even", rank=rank or FULL), 1)
    return {
        "suite": name,
        "adapters": len(groups[0]),
        "rank": rank,
        "rows": kept.rows,
        "groups": groups,
        "scores": scores,
        "precision": kept.evaluator.precision,
        "machine": machine(),
        "versions": versions(),
    }


def keep(record: dict[str, Any]) -> None:
    """Into the file, in place of one with the same settings."""
    records.write(RESULTS, records.replaced(RESULTS, record, SETTINGS))
    print(record["suite"], record["adapters"], record["rank"], record["scores"], flush=True)


def table(found: Sequence[dict[str, Any]]) -> str:
    """As docs/method.md has it."""
    cells = [
        [
            r["suite"],
            str(r["adapters"]),
            "as it comes" if r["rank"] is None else str(r["rank"]),
            *map(str, r["scores"].values()),
        ]
        for r in found
    ]
    return tables.rows(["suite", "adapters", "output rank", *map(str, SIZES)], cells)


if __name__ == "__main__":
    main()
