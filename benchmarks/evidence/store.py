"""results/quality.json: a list of records, one a line, that is read without knowing this package.

Every record has `suite`, `merge`, `role` (default, comparator, reference, ablation), `rank` of the output, `scaling`,
`seed`, `score` (test rows, per cent of the experts' accuracy, mean over tasks), `tasks` (accuracy on each, per cent),
`items` (rows in all) and `versions`. References are the base without any adapter, and every single expert on all tasks;
the base's record also says what its suite is (`about`). `kind` is a finer role, which the page goes by.

The suites of `definitions` "earlier" in `about`, "... (earlier)" by name, were measured before the default was what it
is now. Of their merges, "even (earlier)" balanced the adapters, decorrelated them, truncated to the rank and made the
spectrum flat; "components (earlier)", then called saliency, added up each adapter's most salient components, to 1.3
times the mean norm. Their ablations are of selections that samerge no longer has; comparators are what they are now.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Results = dict[str, Any]

#: What the merges of a suite are: those that samerge has now, or those of before.
NOW, EARLIER = "now", "earlier"

#: Finer roles of the table of merges, and what they are in the file; the last were of the earlier table.
_ROLES: Mapping[str, str] = {
    "default": "default",
    **dict.fromkeys(("own", "published", "comparator", "rule"), "comparator"),
    **dict.fromkeys(("ablation", "chain", "shares"), "ablation"),
}
#: What every record repeats of its suite.
_REPEATED = ("items", "versions")


def dump(results: Results) -> str:
    """The text of the file.

    Args:
        results: `suites`, what is said of each by name, and `records` of merges.
    """
    rows = []
    for name, about in results["suites"].items():
        repeated = {key: about[key] for key in _REPEATED}
        rows += _references(name, about, repeated)
        for record in results["records"]:
            if record["suite"] == name:
                told = {key: value for key, value in record.items() if key not in ("role", "test")}
                rows.append({**told, "role": _ROLES[record["role"]], "kind": record["role"], "score": record["test"]})
                rows[-1] |= repeated
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"


def load(text: str) -> Results:
    """What `dump` was given."""
    rows = json.loads(text)
    suites, records = {}, []
    for row in rows:
        if row["role"] != "reference":
            told = {key: value for key, value in row.items() if key not in ("kind", "score", *_REPEATED)}
            records.append({**told, "role": row["kind"], "test": row["score"]})
        elif row["merge"] == "base":
            suites[row["suite"]] = {
                **row["about"],
                **{key: row[key] for key in _REPEATED},
                "base": {"test": row["score"], "interval": row["interval"], "tasks": row["tasks"]},
                "individuals": {},
            }
        else:
            task = row["merge"].removeprefix("expert ")
            suites[row["suite"]]["individuals"][task] = {"test": row["score"], "tasks": row["tasks"]}
    return {"suites": suites, "records": records}


def part(results: Results, definitions: str) -> Results:
    """The suites of one set of definitions, and their records."""
    suites = {name: about for name, about in results["suites"].items() if about["definitions"] == definitions}
    return {"suites": suites, "records": [record for record in results["records"] if record["suite"] in suites]}


def _references(name: str, about: Mapping[str, Any], repeated: Mapping[str, Any]) -> list[dict[str, Any]]:
    told = {key: value for key, value in about.items() if key not in ("base", "individuals", *_REPEATED)}
    common = {"suite": name, "role": "reference", "scaling": None, "seed": None, **repeated}
    base = about["base"]
    rows = [{**common, "merge": "base", "rank": 0, "score": base["test"], "interval": base["interval"]}]
    rows[0] |= {"tasks": base["tasks"], "about": told}
    for task, own in about["individuals"].items():
        row = {**common, "merge": f"expert {task}", "rank": about["rank"], "scaling": 1.0, "score": own["test"]}
        rows.append({**row, "tasks": own["tasks"]})
    return rows
