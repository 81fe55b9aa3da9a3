"""How well the figures that a report shows without data order merges by their measured scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tables import rows as table

from evidence.query import Results, select
from evidence.scores import spearman

#: Of the record of a merge, the mean over the adapters: what reports show.
FIGURES = ("cosine", "interference")

_OVER = {
    "methods": "every untuned merge at the adapters' rank",
    "settings": "every merge, rank and scale",
}


def orders(results: Results) -> list[dict[str, Any]]:
    """Spearman's rank correlation of each figure with the scores, for each suite that has them.

    Args:
        results: with the suites of before, whose figures were recorded.
    """
    found = []
    for suite in results["suites"]:
        known = [record for record in select(results, suite=suite) if record.get("foretold")]
        for over in _OVER:
            chosen = [r for r in known if over == "settings" or (r["published"] and r["budget"] == "r")]
            if len(chosen) > 3:
                scores = [record["test"] for record in chosen]
                row = {key: round(spearman([r["foretold"][key] for r in chosen], scores), 3) for key in FIGURES}
                found.append({"suite": suite, "over": over, "merges": len(chosen), **row})
    return found


def sentence(found: list[dict[str, Any]]) -> str:
    """What it comes to."""

    def listed(over: str, key: str) -> str:
        return ", ".join(f"{row[key]:+.2f}" for row in found if row["over"] == over)

    suites = ", ".join(f"`{row['suite']}`" for row in found if row["over"] == "methods")
    return (
        f"On {suites}, in this order (merges as they were before today's default), the rank correlation (Spearman) "
        f"with the measured score, over every untuned merge at the adapters' rank, is {listed('methods', 'cosine')} "
        f"for the mean cosine and {listed('methods', 'interference')} for the mean interference (less is better, so "
        f"minus is right); over all merges, ranks and scales {listed('settings', 'cosine')} and "
        f"{listed('settings', 'interference')}. Neither orders methods well enough to choose by: use them to see what "
        "a merge did, and decide by tasks."
    )


def rows(found: list[Mapping[str, Any]]) -> str:
    """A table."""
    cells = [
        [row["suite"], _OVER[row["over"]], str(row["merges"]), *(f"{row[key]:+.2f}" for key in FIGURES)]
        for row in found
    ]
    return table(["suite", "over", "merges", *FIGURES], cells)


def section(results: Results) -> str:
    """For the evidence."""
    found = orders(results)
    if not found:
        return ""
    return "\n\n".join(["## How well a report's figures order merges", sentence(found), rows(found)])
