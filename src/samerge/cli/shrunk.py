"""What `compress` and `extract` have in common: where the adapter goes, and what is said of its ranks and losses."""

from __future__ import annotations

import os
import warnings as python_warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samerge.cli.console import show_json, show_warnings, stderr, stdout

if TYPE_CHECKING:
    from rich.table import Table

    from samerge.merging.merged_adapter import MergedAdapter


def check_target(out: str | None, overwrite: bool) -> None:
    """Refuse, before any long work, a folder that may not be written.

    Raises:
        OutputExistsError: it is taken.
    """
    if out is not None:
        from samerge.adapters.atomic import check_free

        check_free(Path(os.path.abspath(Path(out).expanduser())), overwrite)


def deliver(make: Callable[[], MergedAdapter], out: str | None, overwrite: bool, as_json: bool, quiet: bool) -> None:
    """Make an adapter, save it if it has a place to go, and say what it lost.

    Args:
        make: makes it.
        out: folder to write; None writes nothing.
        overwrite: replace an adapter that is there already.
        as_json: print JSON, and nothing else, on stdout.
        quiet: print no table.
    """
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")  # what the user should know is in the report
        made = make()
    show_warnings(made.report.warnings)
    if out is not None:
        made.save(out, overwrite=overwrite)
    record = made.report.record
    if as_json:
        layers = {module: {key: layer[key] for key in ("rank", "lost")} for module, layer in record["layers"].items()}
        parts = {key: record[key] for key in ("samerge", "method", "base", "output", "options")}
        show_json({"out": out, **parts, "layers": layers, "warnings": made.report.warnings})
    elif not quiet:
        stdout().print(_table(record))
        if out is not None:
            stderr().print(f"saved in {out}", markup=False)
            stdout().print(f'Load it:   PeftModel.from_pretrained(base, "{out}")', markup=False, soft_wrap=True)


def _table(record: Mapping[str, Any]) -> Table:
    from rich.table import Table

    from samerge.report.by_layer import layer_ranks

    output = record["output"]
    table = Table(title=f"rank {output['rank']}, {output['parameters']:,} parameters, {output['dtype']}")
    table.add_column("type of layer", overflow="fold")
    for column in ("layers", "rank before", "rank", "energy lost", "most in one layer"):
        table.add_column(column, justify="right")
    for row in layer_ranks(record["layers"]):
        table.add_row(
            row["type"],
            str(row["layers"]),
            _span(row["before"]),
            _span(row["rank"]),
            f"{row['lost']:.2%}",
            f"{row['most']:.2%}",
        )
    return table


def _span(pair: tuple[int, int]) -> str:
    low, high = pair
    return str(low) if low == high else f"{low} to {high}"
