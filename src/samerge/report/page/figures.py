"""The tables that only the page has: agreement before and after, blocks, every layer, options, timings."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import groupby
from typing import Any

from samerge.report.by_layer import Block, blocks
from samerge.report.facts import Column, Facts, number, percent
from samerge.report.record import Record
from samerge.report.stored import AdapterInLayer, LayerRecord

#: With more cells than this, every layer by itself is not shown.
_MOST_CELLS = 4000


def balance_sheet(record: Record) -> Facts | None:
    """Agreement and interference before and after the merge; None where nothing of it is known."""
    whole = record.whole
    rows = []
    if whole.cosine is not None:
        bound = "1" if whole.best_cosine is None else number(whole.best_cosine)
        rows.append(["cosine of the merge with an adapter, the mean", "0", number(whole.cosine), bound])
    if whole.interference is not None:
        rows.append(["interference, the mean", "1", number(whole.interference), "0"])
    if whole.sign_conflict is not None:
        after = percent(whole.sign_conflict_after)
        rows.append(["opposite signs, where two adapters change one element", percent(whole.sign_conflict), after, "-"])
    if whole.sign_conflict is not None and whole.signs_left is not None:
        rows.append(["pairs of signs that are left to compare", percent(1.0), percent(whole.signs_left), "-"])
    if not rows:
        return None
    columns = [
        Column("figure", name=True),
        Column("before", "without any merge: the base alone, or the adapters as they came."),
        Column("after", "with the merge, or among what it kept of the adapters."),
        Column(
            "at best",
            "what no merge of these adapters at this rank can do better than. Of signs, 50% are opposite by chance.",
        ),
    ]
    return Facts("Before the merge and after it", columns, rows)


def blocks_table(record: Record) -> Facts:
    """One row for each block of the model."""
    rows = blocks(record.layers)
    columns: list[tuple[Column, Callable[[Block], str]]] = [
        (Column("layers"), lambda row: str(row.layers)),
        (Column("norm", "of the merged update there."), lambda row: f"{row.norm:.3g}"),
    ]
    if any(row.effective_rank is not None for row in rows):
        told = "how many directions a merged layer really uses, the mean; its rank where all are equally strong."
        columns.append((Column("effective rank", told), lambda row: number(row.effective_rank, 1)))
    told = "share of the merged update's squared norm that truncation lost."
    columns.append((Column("lost", told), lambda row: percent(row.lost)))
    if any(row.sign_conflict is not None for row in rows):
        told = "where two adapters change one element, as they came; by chance 50%."
        columns.append((Column("opposite signs", told), lambda row: percent(row.sign_conflict)))
    if any(row.sign_conflict_after is not None for row in rows):
        told = "the same of what pruning left."
        columns.append((Column("after pruning", told), lambda row: percent(row.sign_conflict_after)))
    cells = [[row.name, *(cell(row) for _, cell in columns)] for row in rows]
    return Facts("By block of the model", [Column("block", name=True), *(column for column, _ in columns)], cells)


def layers_table(record: Record) -> Facts | None:
    """Every layer, with which components of which adapter were kept; None where that is too much to read."""
    names = [one.name for one in record.inputs]
    if len(record.layers) * (len(names) + 4) > _MOST_CELLS:
        return None
    columns = [
        *(Column("layer", name=True), Column("rank"), Column("effective rank"), Column("norm"), Column("lost")),
        *(Column(name, name=True) for name in names),
    ]
    rows = [[module, *_layer(layer), *_shares(layer, names)] for module, layer in record.layers.items()]
    note = "Below each adapter: which of its components were kept, 1 the largest, of how many; or how many elements."
    if record.options.get("basis") == "native":
        note = note.replace("1 the largest", "as they were stored")
    return Facts("Every layer", columns, rows, note)


def options_table(record: Record) -> Facts:
    """All options, as they were filled in."""
    rows = [[key, _value(value)] for key, value in sorted(record.options.items())]
    weights = [[f"weight of {one.name}", f"{one.weight:g}"] for one in record.inputs if one.weight != 1]
    return Facts("Options", [Column("option", name=True), Column("value", name=True)], [*rows, *weights])


def _value(value: Any) -> str:
    """A value of an option: a word as it is, a dash for none, all else as JSON."""
    return value if isinstance(value, str) else "-" if value is None else json.dumps(value, ensure_ascii=False)


def timings_table(record: Record) -> Facts:
    """Seconds of each stage."""
    rows = [[stage, f"{seconds:.2f}"] for stage, seconds in record.timings.items()]
    return Facts("Timings", [Column("stage", name=True), Column("seconds")], rows)


def _layer(layer: LayerRecord) -> list[str]:
    rank = "-" if layer.rank is None else str(layer.rank)
    return [rank, number(layer.effective_rank, 1), f"{layer.norm:.3g}", percent(layer.lost)]


def _shares(layer: LayerRecord, names: list[str]) -> list[str]:
    return [kept(layer.adapters[name]) if name in layer.adapters else "" for name in names]


def kept(one: AdapterInLayer) -> str:
    """What is left of an adapter in a layer, in few letters.

    Example:
        >>> kept(AdapterInLayer(1.0, components=16, kept=(0, 1, 2, 5)))
        '1-3, 6 of 16'
    """
    if one.elements:
        return percent(one.elements[0] / max(1, one.elements[1]))
    if one.kept is None:
        return "all"
    runs = [
        [place for _, place in run] for _, run in groupby(enumerate(sorted(one.kept)), lambda pair: pair[1] - pair[0])
    ]
    spans = (f"{run[0] + 1}" if len(run) == 1 else f"{run[0] + 1}-{run[-1] + 1}" for run in runs)
    return f"{', '.join(spans) or 'none'} of {one.components}"
