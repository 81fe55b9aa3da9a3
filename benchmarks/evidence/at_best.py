"""The default as it comes against every rival at its best strength, from results/quality.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from tables import rows as table

from evidence.store import Record, Results, best, merges, untuned
from evidence.table import DEFAULT
from evidence.words import BUDGETS, score, setting

#: A default that loses no more than this, in points, leaves little to tune.
MARGIN = 0.5
#: Roles of merges that are no rivals.
OUR_ROLES = ("default", "own", "variation")


class Row(NamedTuple):
    """One suite at one output rank."""

    rank: str
    suite: str
    own: Record
    tuned: Record
    rival: Record

    @property
    def gap(self) -> float:
        """What the default has before the rival."""
        return float(self.own["score"]) - float(self.rival["score"])


def _rows(results: Results) -> Iterator[Row]:
    for budget, rank in BUDGETS.items():
        for suite in results["suites"]:
            own, tuned = untuned(results, suite, DEFAULT, budget), best(results, suite, DEFAULT, budget)
            found = (best(results, suite, merge, budget) for merge in merges(results))
            rivals = [record for record in found if record and record["role"] not in OUR_ROLES]
            if own and tuned and rivals:
                yield Row(rank, suite, own, tuned, max(rivals, key=lambda record: float(record["score"])))


def at_best(results: Results) -> str:
    """On how many rows the default is level or ahead, and where it is behind."""
    rows = list(_rows(results))
    if not rows:
        return ""
    behind = [
        f"{row.suite} at {row.rank} ({row.gap:+.1f}, `{row.rival['merge']}`)" for row in rows if row.gap < -MARGIN
    ]
    told = f"It is behind by more than {MARGIN} on {len(behind)} of {len(rows)} rows: {'; '.join(behind)}."
    return (
        "## Is something left to tune?\n\nThe default as it comes, against the best of the rivals (all merges but "
        "samerge's own), each at the strength that is best for it on the very rows it is scored on: a bound that "
        f"nobody can choose. {told if behind else f'Nowhere is it behind by more than {MARGIN}.'} "
        "[Row by row](evidence-tables.md#every-rival-at-its-best-strength)."
    )


def at_best_table(results: Results) -> str:
    """Row by row."""
    cells = [
        [
            *(row.rank, row.suite, "judges" if results["suites"][row.suite]["judge"] else "design", score(row.own)),
            *(f"{score(row.tuned)} at {setting(row.tuned)}", row.rival["merge"], setting(row.rival)),
            *(score(row.rival), f"{row.gap:+.1f}"),
        ]
        for row in _rows(results)
    ]
    if not cells:
        return ""
    own: list[Any] = ["output rank", "suite", "role", "default", "default tuned"]
    head = [*own, "best rival", "at", "its score", "default to it"]
    return f"## Every rival at its best strength\n\n{table(head, cells)}"
