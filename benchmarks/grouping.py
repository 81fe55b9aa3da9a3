"""Do figures of the weights tell which adapters go together? All ways to put a suite's adapters into equal groups.

    python benchmarks/grouping.py --suite minilm minilm-same-init --adapters FOLDER  # FOLDER/minilm/TASK/...
    python benchmarks/grouping.py --suite language smollm2 exact

A server that holds K adapters could hold K merges. Every group is merged by the default (`even`, which reads no base)
and asked its own tasks; a partition's score is the mean over all tasks of what a merge gains over the base, in per cent
of what the task's own adapter gains. For each figure that samerge has of two adapters, the partition with the least (or
most) of it inside its groups is held against all others: its place among them is 50 where the figure knows nothing, 100
for the best partition. Results go to benchmarks/results/grouping.json; docs/questions.md says what they come to.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import records
import tables
from evidence.runs import machine
from evidence.scores import spearman
from suites import suite
from suites.base import Suite, default_cache
from suites.kept import Kept

from samerge.adapters.files import read_adapter
from samerge.merging.between_adapters import Conflicts, conflicts
from samerge.report.origin import versions

RESULTS = tables.RESULTS / "grouping.json"
Group = tuple[str, ...]

#: The tasks whose held-out rows the ready-made adapters of MiniLM are known not to know.
KNOWN = ("drugs", "election", "movies", "newsgroups", "reuters", "tweets")
#: By suite: rows a task, the sizes of groups, and the tasks that are scored; () for all.
MEASURED: dict[str, tuple[int, tuple[int, ...], Group]] = {
    "minilm": (200, (2, 4), KNOWN),
    "minilm-same-init": (200, (2, 4), KNOWN),
    "language": (8, (2,), ()),
    "smollm2": (60, (2,), ()),
    "exact": (50, (2,), ()),
}


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", nargs="+", required=True, choices=list(MEASURED))
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--adapters", type=Path, help="a folder that holds ready-made sets, by the suite's name")
    given = parser.parse_args()
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []
    for name in given.suite:
        ready = given.adapters / name if given.adapters and (given.adapters / name).is_dir() else None
        known = [row for row in known if row["suite"] != name] + measure(suite(name, given.cache, ready))
        records.write(RESULTS, known)


def measure(one: Suite) -> list[dict[str, Any]]:
    """What each size of group gives."""
    rows, sizes, scored = MEASURED[one.name]
    kept = Kept(one, rows, scored or one.tasks)
    figures = of_pairs(conflicts([read_adapter(kept.folders[task], task) for task in one.tasks]))
    where = {
        "scored": list(kept.ends),
        "precision": kept.evaluator.precision,
        "machine": machine(),
        "versions": versions(),
    }
    found = []
    for size in sizes:
        groups = itertools.combinations(one.tasks, size)
        shares = {group: kept.shares(group, method="even") for group in groups}
        told = {"suite": one.name, "rows": rows, "groups of": size, **judged(one.tasks, size, shares, figures), **where}
        print(told, flush=True)
        found.append(told)
    return found


def of_pairs(found: Conflicts) -> dict[str, dict[frozenset[str], float]]:
    """By figure and pair of adapters its value: what is called less together is the value with its sign turned."""
    told: dict[str, dict[frozenset[str], float]] = {}
    for name in ("cosine", "rows", "columns", "sign_conflict"):
        matrix = getattr(found, name)
        values = {frozenset((found.names[i], found.names[j])): float(matrix[i][j] or 0.0) for i, j in found.pairs()}
        told[f"least {name}"] = values
        told[f"most {name}"] = {pair: -value for pair, value in values.items()}
    return told


def judged(
    tasks: Sequence[str],
    size: int,
    shares: Mapping[Group, Mapping[str, float]],
    figures: Mapping[str, Mapping[frozenset[str], float]],
) -> dict[str, Any]:
    """Scores of all partitions, and where each figure's choice stands among them.

    Args:
        tasks: all.
        size: of a group.
        shares: by group and task what its merge keeps.
        figures: by figure and pair what is to be small.
    """
    every = list(partitions(tuple(tasks), size))
    scores = [fmean(share for group in partition for share in shares[group].values()) for partition in every]
    rules = {}
    for name, cost in figures.items():
        costs = [
            fmean(cost[frozenset(pair)] for group in partition for pair in itertools.combinations(group, 2))
            for partition in every
        ]
        own = scores[costs.index(min(costs))]
        below, level = sum(score < own for score in scores), sum(score == own for score in scores)
        place = 100 * (below + 0.5 * level) / len(scores)
        rules[name] = {"score": round(own, 1), "place": round(place), "spearman": round(-spearman(costs, scores), 2)}
    ends = {"least": min(scores), "mean": fmean(scores), "most": max(scores)}
    return {"partitions": len(every), **{name: round(value, 1) for name, value in ends.items()}, "rules": rules}


def partitions(tasks: Group, size: int) -> Iterator[tuple[Group, ...]]:
    """All ways to put tasks into groups of one size.

    Example:
        >>> list(partitions(("a", "b", "c", "d"), 2))[0]
        (('a', 'b'), ('c', 'd'))
    """
    if not tasks:
        yield ()
        return
    first, rest = tasks[0], tasks[1:]
    for others in itertools.combinations(rest, size - 1):
        left = tuple(task for task in rest if task not in others)
        for more in partitions(left, size):
            yield ((first, *others), *more)


if __name__ == "__main__":
    main()
