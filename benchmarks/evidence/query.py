"""Finding records in results/quality.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
Results = Mapping[str, Any]

BUDGETS = {"r": "the adapters' rank", "2r": "twice that rank", "free": "as it comes"}
MAIN = ("default", "own", "published", "comparator", "rule")


def select(results: Results, **wanted: Any) -> list[Record]:
    """The records with these values."""
    return [record for record in results["records"] if all(record[key] == value for key, value in wanted.items())]


def marked(results: Results, merge: str, suite: str, budget: str, mark: str) -> Record | None:
    """The record of a merge that has a mark ("published" too), or None."""
    for record in select(results, merge=merge, suite=suite, budget=budget):
        if record["published"] if mark == "published" else mark in record["marks"]:
            return record
    return None


def merges(results: Results, roles: Sequence[str] = MAIN) -> list[str]:
    """Names of the merges with one of these roles, in the table's order."""
    return list(dict.fromkeys(record["merge"] for record in results["records"] if record["role"] in roles))


def mean_over_suites(
    results: Results, merge: str, budget: str, mark: str, suites: Sequence[str], field: str = "test"
) -> float | None:
    """Mean score over suites, None where one is missing."""
    found = [marked(results, merge, suite, budget, mark) for suite in suites]
    if not found or any(record is None for record in found):
        return None
    return sum(float(record[field]) for record in found if record is not None) / len(found)


def ranking(results: Results, budget: str, mark: str, suites: Sequence[str]) -> list[tuple[str, float]]:
    """Merges by their mean over suites, best first."""
    means = [(merge, mean_over_suites(results, merge, budget, mark, suites)) for merge in merges(results)]
    return sorted(((merge, mean) for merge, mean in means if mean is not None), key=lambda pair: -pair[1])


def judges(results: Results) -> list[str]:
    """Suites that defaults were not chosen on, or all while there are none of these."""
    names = [name for name, about in results["suites"].items() if about["judge"]]
    return names or list(results["suites"])


def default_name(results: Results) -> str:
    """The merge that a user gets who says nothing."""
    return next(record["merge"] for record in results["records"] if record["role"] == "default")
