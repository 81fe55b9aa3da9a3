"""What `compress` and `extract` have in common: the size, and what is said of ranks and losses."""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samerge.cli.console import show_json, show_warnings, show_ways, stdout
from samerge.cli.shared_options import Manner
from samerge.cli.target import AdapterTarget
from samerge.options.kinds import share, whole

if TYPE_CHECKING:
    from samerge.merging.merged_adapter import MergedAdapter

Rank = Annotated[str | None, typer.Option("--rank", "-r", metavar="N", help="No layer gets a larger rank than this.")]
Energy = Annotated[
    str | None,
    typer.Option(
        "--energy",
        metavar="(0,1]",
        help="Every layer gets the smallest rank that keeps this share of its squared norm; with --rank, not more than "
        "that.",
    ),
]


def size(rank: str | None, energy: str | None) -> dict[str, Any]:
    """The size, read from text."""
    return {
        "rank": None if rank is None else whole().read("rank", rank),
        "energy": None if energy is None else share().read("energy", energy),
    }


def deliver(make: Callable[[], MergedAdapter], target: AdapterTarget, manner: Manner) -> None:
    """Make an adapter, save and push it if it has a place to go, and say what it lost."""
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")  # what the user should know is in the report
        made = make()
    show_warnings(made.report.warnings)
    url = target.deliver(made, manner.quiet or manner.as_json)
    record = made.report.record
    if manner.as_json:
        layers = {module: {"rank": layer.rank, "lost": layer.lost} for module, layer in record.layers.items()}
        told = record.json()
        parts = {key: told[key] for key in ("samerge", "method", "base", "output", "options")}
        show_json({"out": target.out, "url": url, **parts, "layers": layers, "warnings": made.report.warnings})
    elif not manner.quiet:
        stdout().print(made.report.layers_table())
        size = f"{record.output.size}, {record.output.parameters:,} parameters"
        left = "" if target.out or target.push_to_hub else "; nothing was written, give --out FOLDER"
        stdout().print(f"The adapter is of {size}{left}.", markup=False, soft_wrap=True)
        placed = target.place(made)
        show_ways(placed[1] if placed else None, url)
