"""The section of docs/evidence.md on merges of two and three adapters, from results/few.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from tables import rows as table

from evidence.table import DEFAULT

#: samerge's own.
OURS = (DEFAULT, "even")


def few_adapters(records: Sequence[Mapping[str, Any]]) -> str:
    """By output rank a table: a row for each merge, the best on the mean first, a column for each suite and number."""
    if not records:
        return ""
    columns = sorted({(r["adapters"], r["suite"]) for r in records})
    scores = {(r["merge"], r["rank"], r["adapters"], r["suite"]): float(r["score"]) for r in records}
    parts = [
        "## And two or three adapters?",
        "Most people merge few. Groups of a suite's adapters, merged and asked their own tasks, nothing tuned; the "
        "mean over the groups (`benchmarks/few.py`). Every merge is as in the table above.",
    ]
    for rank, told in ((16, "To the adapters' rank"), (None, "As it comes, nothing truncated")):
        found: dict[str, list[float | None]] = {}
        for name in dict.fromkeys(r["merge"] for r in records if r["rank"] == rank):
            found[name] = [scores.get((name, rank, *column)) for column in columns]
        whole = {name: fmean(own) for name, own in _complete(found).items()}
        order = sorted(found, key=lambda name: (name not in whole, -whole.get(name, 0.0)))
        cells = [
            [
                f"**{name}**" if name == DEFAULT else name,
                *("" if one is None else f"{one:.1f}" for one in found[name]),
                f"{whole[name]:.1f}" if name in whole else "",
            ]
            for name in order
        ]
        head = ["merge", *(f"{suite}, {count}" for count, suite in columns), "mean"]
        parts += [f"{told}. {_behind(found, columns)}", table(head, cells)]
    return "\n\n".join(parts)


def _complete(found: Mapping[str, Sequence[float | None]]) -> dict[str, list[float]]:
    """The rows without a gap."""
    rows = {name: [one for one in own if one is not None] for name, own in found.items()}
    return {name: row for name, row in rows.items() if len(row) == len(found[name])}


def _behind(found: Mapping[str, Sequence[float | None]], columns: Sequence[tuple[int, str]]) -> str:
    """Where a rival is ahead, and how the default does to it."""
    told, ours = [], _complete(found)[DEFAULT]
    for at, (count, suite) in enumerate(columns):
        rivals = {name: score for name, row in found.items() if name not in OURS and (score := row[at]) is not None}
        best = max(rivals, key=lambda name: rivals[name])
        if rivals[best] > ours[at] + 0.05:
            told.append(f"{suite}, {count} (`{best}`, {ours[at] - rivals[best]:+.1f})")
    return f"A rival is ahead of the default on: {', '.join(told)}." if told else "No rival is ahead of the default."
