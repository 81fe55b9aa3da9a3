"""results/quality.json: what is known of the suites, and one record a line for every merge that was measured.

    {"suites": {NAME: {...}}, "records": [{"suite", "merge", "budget", "scaling", "score", "interval", ...}, ...],
     "overall": [{"merge", "budget", "score", "to_default"}, ...]}

`score` is the smooth score (`evidence.scores`), `accuracy` the same of right answers where a suite has answers; each
with its 95 % interval, and its paired difference to the default at the same output rank. `overall` are means over the
suites that judge. Nothing in the file is by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Record = Mapping[str, Any]
Results = Mapping[str, Any]


def dump(results: Results) -> str:
    """The text of the file: a suite, a record, a mean on each line."""
    suites = ",\n".join(f" {json.dumps(name)}: {json.dumps(about)}" for name, about in results["suites"].items())
    lists = [
        f'"{key}": [\n' + ",\n".join(f" {json.dumps(row)}" for row in results[key]) + "\n]"
        for key in ("overall", "records")
    ]
    return '{"suites": {\n' + suites + "\n},\n" + ",\n".join(lists) + "}\n"


def load(text: str) -> Results:
    """What `dump` was given."""
    results: Results = json.loads(text)
    return results


def select(results: Results, **wanted: Any) -> list[Record]:
    """The records with these values."""
    return [record for record in results["records"] if all(record[key] == value for key, value in wanted.items())]


def untuned(results: Results, suite: str, merge: str, budget: str) -> Record | None:
    """A merge as a user gets it who tunes nothing."""
    return next(iter(select(results, suite=suite, merge=merge, budget=budget, published=True)), None)


def best(results: Results, suite: str, merge: str, budget: str) -> Record | None:
    """A merge at its best strength, by the very rows it is scored on: an upper bound that nobody can choose."""
    found = select(results, suite=suite, merge=merge, budget=budget)
    return max(found, key=lambda record: float(record["score"]), default=None)


def merges(results: Results) -> list[str]:
    """Names of the merges, in the table's order."""
    return list(dict.fromkeys(record["merge"] for record in results["records"]))
