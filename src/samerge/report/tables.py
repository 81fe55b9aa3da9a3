"""The tables of a record, for terminals, notebooks and the card: the same figures everywhere, each with its legend."""

from __future__ import annotations

from collections.abc import Callable

from samerge.report.by_layer import TypeOfLayer, WorstLayer, chosen, layer_types, worst_layers
from samerge.report.facts import Column, Facts, number, percent, span
from samerge.report.record import AdapterRecord, Record

#: With more adapters than this, the table by type of layer has no column for each.
_MOST_COLUMNS = 3

#: Shares below this are rounding.
_ROUNDING = 5e-4


def adapters_table(record: Record) -> Facts:
    """One row for each adapter: what it brought, what was kept of it, how the merged update compares with its own."""
    rows = record.adapters
    shares = [one for layer in record.layers.values() for one in layer.adapters.values()]
    columns: list[tuple[Column, Callable[[AdapterRecord], str]]] = [
        (Column("weight", "how strongly it was merged; 1 is as trained."), lambda one: f"{one.weight:g}"),
        (
            Column("norm", "Frobenius norm of its whole update, as trained."),
            lambda one: "-" if one.norm is None else f"{one.norm:.3g}",
        ),
    ]
    if len({one.layers for one in rows.values()}) > 1:
        columns.append((Column("layers", "how many of its own are in the merge."), lambda one: str(one.layers or "-")))
    if any(abs(one.balance - 1) > _ROUNDING for one in shares):
        told = "what its norm was multiplied with, so that each adapter has one voice."
        columns.append((Column("balance", told), lambda one: number(one.balance)))
    if chosen(shares):
        parts = "elements" if any(one.elements for one in shares) else "components"
        columns.append((Column("kept", f"how many of its {parts} the method kept."), _kept))
        told = "share of its squared norm that was kept, before the adapters were combined and truncated."
        columns.append((Column("energy kept", told, bar=True), lambda one: percent(one.energy_kept)))
    if any(one.cosine is not None for one in rows.values()):
        told = "between the merged update, as written, and its own: 1 the same direction, 0 nothing in common."
        columns.append((Column("cosine", told, bar=True), lambda one: number(one.cosine)))
    if any(one.interference is not None for one in rows.values()):
        told = "error of the merge on the inputs that it reacts to, relative to what it does there; without it, 1."
        columns.append((Column("inter\u00adference", told), lambda one: number(one.interference)))
    made = f"{record.method}: {record.output.size}, {record.output.modules:,} modules, {record.output.dtype}"
    cells = [[name, *(cell(one) for _, cell in columns)] for name, one in rows.items()]
    return Facts(
        made, [Column("adapter", name=True), *(column for column, _ in columns)], cells, "\n".join(remarks(record))
    )


def remarks(record: Record) -> list[str]:
    """What is to be said of the whole merge, a sentence each; the record's notes are among it."""
    whole, told = record.whole, []
    if whole.cosine is not None and len(record.inputs) > 1:
        text = f"Cosine with the adapters: {number(whole.cosine)} on the mean"
        if whole.best_cosine is not None:
            text += f"; no update of {record.output.size} can have more than {number(whole.best_cosine)}"
        told.append(f"{text}.")
    if whole.lost is not None and whole.most_lost > _ROUNDING:
        told.append(
            f"Truncation lost {percent(whole.lost)} of the merged update's energy, {percent(whole.most_lost)} in "
            f"{whole.most_lost_in}, which lost most."
        )
    if whole.sign_conflict is not None and whole.sign_conflict_after is not None and whole.signs_left is not None:
        text = f"Opposite signs, where two adapters change one element: {percent(whole.sign_conflict)}, by chance 50%"
        after, left = percent(whole.sign_conflict_after), percent(whole.signs_left)
        if whole.signs_left < 1 - _ROUNDING:
            text += f"; after pruning {after} of the {left} that are left"
        elif abs(whole.sign_conflict_after - whole.sign_conflict) > _ROUNDING:
            text += f"; after pruning {after}"
        told.append(f"{text}.")
    return [*told, *(f"{note[:1].upper()}{note[1:].rstrip('.')}." for note in record.notes)]


def inputs_table(record: Record) -> Facts:
    """Where the adapters came from."""
    columns = [Column("adapter", name=True), Column("source", name=True), Column("rank"), Column("dtype")]
    columns.append(Column("sha256", "the first digits of the hash of its weights."))
    flows = any(value is not None for value in record.log_connectivity.values())
    if flows:
        columns.append(Column("log R", "logarithm of the base's connectivity with this adapter on it."))
    rows = []
    for one in record.inputs:
        digest = next(iter((one.sha256 or {}).values()), "")
        rank = "" if one.rank is None else str(one.rank)
        flow = [number(record.log_connectivity.get(one.name))] if flows else []
        rows.append([one.name, one.source or "", rank, one.dtype or "", digest[:12], *flow])
    return Facts("Where they came from", columns, rows)


def types_table(record: Record) -> Facts:
    """One row for each type of layer."""
    rows = layer_types(record.layers)
    columns: list[tuple[Column, Callable[[TypeOfLayer], str]]] = [
        (Column("layers", "how many of this type."), lambda row: str(row.layers))
    ]
    if any(row.kept_of or row.elements for row in rows):
        told = "how many components or elements the method kept, of all adapters."
        columns.append((Column("kept", told), _kept))
        if 1 < len(record.inputs) <= _MOST_COLUMNS and any(row.kept_of for row in rows):
            for one in record.inputs:
                columns.append((Column(f"of {one.name}"), lambda row, name=one.name: str(row.kept_of.get(name, ""))))  # type: ignore[misc]
        told = "share of the adapters' squared norm that was kept."
        columns.append((Column("energy kept", told), lambda row: percent(row.energy_kept)))
    elif any(row.before for row in rows):
        told = "components of an adapter's update."
        columns.append((Column("rank before", told), lambda row: span(*row.before) if row.before else "-"))
    if any(row.ranks for row in rows):
        columns.append((Column("rank", "of the merged update."), lambda row: span(*row.ranks) if row.ranks else "-"))
    told = "share of the merged update's squared norm that truncation lost."
    columns.append((Column("lost", told), lambda row: percent(row.lost)))
    columns.append((Column("at most", "the same in the layer that lost most."), lambda row: percent(row.most_lost)))
    if any(row.scales != (1.0, 1.0) for row in rows):
        told = "what the merged update was multiplied with in the end."
        columns.append((Column("scale", told), lambda row: span(*row.scales)))
    cells = [
        [row.type + (" (outside the graph)" if row.outside else ""), *(cell(row) for _, cell in columns)]
        for row in rows
    ]
    head = [Column("type of layer", name=True), *(column for column, _ in columns)]
    return Facts("By type of layer", head, cells)


def worst_table(record: Record, count: int) -> Facts | None:
    """The layers that lost most; None where none lost anything."""
    picked = chosen(one for layer in record.layers.values() for one in layer.adapters.values())
    rows = worst_layers(record.layers, count)
    if not any(row.lost > _ROUNDING or row.energy_kept < 1 - _ROUNDING for row in rows):
        return None
    columns: list[tuple[Column, Callable[[WorstLayer], str]]] = [(Column("layer", name=True), lambda row: row.module)]
    if picked:
        told = "share of the adapters' squared norm that the method kept."
        columns.append((Column("energy kept", told), lambda row: percent(row.energy_kept)))
    told = "share of the merged update's squared norm that truncation lost."
    columns.append((Column("lost", told), lambda row: percent(row.lost)))
    if picked and len(record.inputs) > 1:
        told = "of which adapter the least was kept, and how much."
        columns.append((Column("least", told, name=True), lambda row: f"{row.least} {percent(row.least_kept)}"))
    cells = [[cell(row) for _, cell in columns] for row in rows]
    return Facts("Layers that lost most", [column for column, _ in columns], cells)


def _kept(one: AdapterRecord | TypeOfLayer) -> str:
    if not one.layers:  # an adapter of weight 0: it was not read, and nothing of it is in the merge
        return "-"
    if one.elements:
        return percent(one.elements[0] / max(1, one.elements[1]))
    return "all" if one.kept is None else f"{one.kept}/{one.components}"
