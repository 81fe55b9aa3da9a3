"""`samerge inspect A B ...`: how several adapters agree with each other, before any merge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from samerge.cli.console import percent, show_json, stderr, stdout
from samerge.cli.named_adapter import AdapterSpec
from samerge.errors import OptionError
from samerge.report.facts import Column, Facts, number
from samerge.report.picture import check_picture

if TYPE_CHECKING:
    from samerge.merging.between_adapters import Conflicts

#: Pairs in the table, those that work against each other most.
_MOST_PAIRS = 12


def compared(specs: Sequence[AdapterSpec], worst: int, picture: str | None, as_json: bool) -> None:
    """Read the adapters, compare each with each, and show it.

    Raises:
        OptionError: a weight where none is used.
    """
    for spec in specs:
        if spec.weight != 1:
            raise OptionError(f"comparing adapters knows no weights: {spec.name} has {spec.weight:g}; leave it out")
    from samerge.merging.between_adapters import conflicts
    from samerge.merging.inputs import open_adapters
    from samerge.merging.reading_conflicts import reading

    if picture:
        check_picture(picture)
    found = conflicts(open_adapters(None, {spec.name: spec.source for spec in specs}))
    if picture:
        stderr().print(f"drawn in {found.picture(picture)}", markup=False)
    if as_json:
        show_json({**found.record(), "worst_layers": found.worst(worst), "reading": reading(found)})
        return
    console = stdout()
    console.print(_cosines(found))
    console.print(_pairs(found))
    if worst and found.layers:
        console.print(_worst(found, worst))
    console.print(reading(found), markup=False)


def _cosines(found: Conflicts) -> Facts:
    columns = [Column("adapter", name=True), Column("norm"), *(Column(name) for name in found.names)]
    rows = [
        [name, f"{norm:.3g}", *(number(value) for value in row)]
        for name, norm, row in zip(found.names, found.norms, found.cosine, strict=True)
    ]
    note = "1 is the same direction, 0 nothing in common, -1 the opposite."
    return Facts("Cosine between the adapters' updates", columns, rows, note)


def _pairs(found: Conflicts) -> Facts:
    """One row for each two adapters, those that work against each other most first."""
    looked, all_ = found.sampled
    left = len(found.pairs()) - _MOST_PAIRS
    columns = (
        Column("adapters", name=True),
        Column("cosine"),
        Column("sign conflicts", f"elements with opposite signs, on {looked:,} of {all_:,}; by chance 50%."),
        Column("inputs in common", f"overlap of the inputs that both react to; by chance {percent(found.chance)}."),
        Column("outputs in common", "the same of what they write to."),
        Column("norms", "the first adapter's norm to the second's."),
    )
    values = {pair: found.cosine[pair[0]][pair[1]] for pair in found.pairs()}
    order = sorted(values, key=lambda pair: (values[pair] is None, values[pair] or 0.0, pair))
    rows = []
    for i, j in order[:_MOST_PAIRS]:
        ratio = found.norms[i] / found.norms[j] if found.norms[j] else None
        rows.append(
            [
                f"{found.names[i]}, {found.names[j]}",
                number(found.cosine[i][j]),
                percent(found.sign_conflict[i][j]),
                percent(found.rows[i][j]),
                percent(found.columns[i][j]),
                "-" if ratio is None else f"{ratio:.2g} : 1",
            ]
        )
    return Facts("Each with each", columns, rows, f"{left} more pairs with --json." if left > 0 else "")


def _worst(found: Conflicts, count: int) -> Facts:
    columns = (Column("layer", name=True), Column("adapters", name=True), Column("cosine"))
    rows = [[row["module"], ", ".join(row["adapters"]), number(row["cosine"])] for row in found.worst(count)]
    return Facts("Layers most in conflict", columns, rows)
