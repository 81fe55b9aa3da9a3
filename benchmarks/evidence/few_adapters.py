"""What docs say of merges of two and three adapters, from results/few.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from tables import rows as table

from evidence.table import DEFAULT, OURS

Records = Sequence[Mapping[str, Any]]

RANKS: Mapping[int | None, str] = {16: "To the adapters' rank", None: "As it comes, nothing truncated"}


class _Scores(NamedTuple):
    """At one output rank: by merge a score for each number of adapters and suite, and the mean of whole rows."""

    columns: list[tuple[int, str]]
    found: dict[str, list[float | None]]

    @property
    def whole(self) -> dict[str, float]:
        rows = {name: [one for one in own if one is not None] for name, own in self.found.items()}
        return {name: fmean(row) for name, row in rows.items() if len(row) == len(self.columns)}

    def best_rival(self) -> tuple[str, float]:
        """The best on the mean of those that are not samerge's own."""
        rivals = {name: mean for name, mean in self.whole.items() if name not in OURS}
        best = max(rivals, key=lambda name: rivals[name])
        return best, rivals[best]

    def behind(self) -> str:
        """Where a rival is ahead, and how the default does to it."""
        told = []
        for at, (count, suite) in enumerate(self.columns):
            own = self.found[DEFAULT][at]
            rivals = {n: one for n, row in self.found.items() if n not in OURS and (one := row[at]) is not None}
            best = max(rivals, key=lambda name: rivals[name])
            if own is not None and rivals[best] > own + 0.05:
                told.append(f"{suite}, {count} (`{best}`, {own - rivals[best]:+.1f})")
        return f"a rival is ahead of it on {', '.join(told)}" if told else "no rival is ahead of it on any"


def _scores(records: Records, rank: int | None) -> _Scores:
    columns = sorted({(r["adapters"], r["suite"]) for r in records})
    scores = {(r["merge"], r["adapters"], r["suite"]): float(r["score"]) for r in records if r["rank"] == rank}
    names = dict.fromkeys(r["merge"] for r in records if r["rank"] == rank)
    return _Scores(columns, {name: [scores.get((name, *column)) for column in columns] for name in names})


def few_adapters(records: Records) -> str:
    """What the default keeps on the mean, the best rival that saw all, and where one is ahead."""
    if not records:
        return ""
    told = []
    for rank, name in RANKS.items():
        one = _scores(records, rank)
        best, score = one.best_rival()
        told.append(
            f"{name}, the default keeps {one.whole[DEFAULT]:.1f} on the mean of {len(one.columns)} sets of groups, the "
            f"best rival that all were asked of, `{best}`, {score:.1f}; {one.behind()}."
        )
    return (
        "## And two or three adapters?\n\nMost people merge few. Groups of two and three of a suite's adapters, merged "
        f"and asked their own tasks, nothing tuned (`benchmarks/few.py`). {' '.join(told)} "
        "[Tables](evidence-tables.md#two-and-three-adapters)."
    )


def few_in_short(records: Records) -> str:
    """The default and the best rival at the adapters' rank."""
    one = _scores(records, next(iter(RANKS)))
    best, score = one.best_rival()
    return f"the default keeps {one.whole[DEFAULT]:.1f} %, the best rival, `{best}`, {score:.1f}"


def few_tables(records: Records) -> str:
    """By output rank a table: a row for each merge, the best on the mean first, a column for each suite and number."""
    if not records:
        return ""
    parts = [
        "## Two and three adapters",
        "Means over groups of a suite's adapters; every merge is as in the table of untuned scores.",
    ]
    for rank, told in RANKS.items():
        one = _scores(records, rank)
        whole = one.whole
        order = sorted(one.found, key=lambda name: (name not in whole, -whole.get(name, 0.0)))
        cells = [
            [
                f"**{name}**" if name == DEFAULT else name,
                *("" if score is None else f"{score:.1f}" for score in one.found[name]),
                f"{whole[name]:.1f}" if name in whole else "",
            ]
            for name in order
        ]
        head = ["merge", *(f"{suite}, {count}" for count, suite in one.columns), "mean"]
        parts += [f"{told}:", table(head, cells)]
    return "\n\n".join(parts)
