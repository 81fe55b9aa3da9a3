"""`samerge inspect A B ...`: how several adapters agree with each other, before any merge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from samerge.cli.console import percent, show_json, stderr, stdout, two
from samerge.cli.named_adapter import parse_adapter, unique
from samerge.errors import OptionError
from samerge.report.picture import check_picture

if TYPE_CHECKING:
    from rich.table import Table

    from samerge.merging.between_adapters import Conflicts

#: Pairs in the table, those that work against each other most.
_MOST_PAIRS = 12


def compared(folders: Sequence[str], worst: int, picture: str | None, as_json: bool) -> None:
    """Read the adapters, compare each with each, and show it.

    Raises:
        OptionError: a name twice, or a weight where none is used.
    """
    specs = unique([parse_adapter(text, option="") for text in folders])
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


def _cosines(found: Conflicts) -> Table:
    from rich.table import Table

    table = Table(title="Cosine between the adapters' updates", title_justify="left")
    table.add_column("adapter")
    table.add_column("norm", justify="right")
    for name in found.names:
        table.add_column(name, justify="right")
    for name, norm, row in zip(found.names, found.norms, found.cosine, strict=True):
        table.add_row(name, f"{norm:.3g}", *(two(value) for value in row))
    return table


def _pairs(found: Conflicts) -> Table:
    """One row for each two adapters, those that work against each other most first."""
    from rich.table import Table

    looked, all_ = found.sampled
    caption = f"Chance: rows {percent(found.chance)}, signs 50%. Signs on {looked:,} of {all_:,} elements."
    more = f" {len(found.pairs()) - _MOST_PAIRS} more pairs with --json." if len(found.pairs()) > _MOST_PAIRS else ""
    table = Table(title="Each with each", title_justify="left", caption=caption + more, caption_justify="left")
    for column in ("adapters", "cosine", "sign conflicts", "inputs in common", "outputs in common", "norms"):
        table.add_column(column, justify="left" if column == "adapters" else "right")
    values = {pair: found.cosine[pair[0]][pair[1]] for pair in found.pairs()}
    order = sorted(values, key=lambda pair: (values[pair] is None, values[pair] or 0.0, pair))
    for i, j in order[:_MOST_PAIRS]:
        ratio = found.norms[i] / found.norms[j] if found.norms[j] else None
        table.add_row(
            f"{found.names[i]}, {found.names[j]}",
            two(found.cosine[i][j]),
            percent(found.sign_conflict[i][j]),
            percent(found.rows[i][j]),
            percent(found.columns[i][j]),
            "-" if ratio is None else f"{ratio:.2g} : 1",
        )
    return table


def _worst(found: Conflicts, count: int) -> Table:
    from rich.table import Table

    table = Table(title="Layers most in conflict", title_justify="left")
    for column in ("layer", "adapters"):
        table.add_column(column, overflow="fold")
    table.add_column("cosine", justify="right")
    for row in found.worst(count):
        table.add_row(row["module"], ", ".join(row["adapters"]), two(row["cosine"]))
    return table
