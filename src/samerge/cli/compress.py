"""`samerge compress`: an adapter to a smaller one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from samerge.cli.shared_options import Json, Overwrite, Quiet
from samerge.cli.shrunk import check_target, deliver

if TYPE_CHECKING:
    from samerge.merging.merged_adapter import MergedAdapter


def compress(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="A folder or hub id.")],
    rank: Annotated[
        int | None, typer.Option("--rank", "-r", metavar="N", help="No layer gets a larger rank than this.")
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            "--energy",
            "-e",
            metavar="(0,1]",
            help="Every layer gets the smallest rank that keeps this share of its squared norm; with --rank, not more "
            "than that.",
        ),
    ] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", metavar="FOLDER", help="The folder to make.")] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", "-b", metavar="BASE", help="The base model; only for adapters with trained biases or DoRA."
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="NAME", help="float32, bfloat16 or float16. Default: the adapter's own.")
    ] = None,
    modules_to_save: Annotated[
        str | None,
        typer.Option(metavar="drop", help="Leave fully trained modules and token rows out; they are kept by default."),
    ] = None,
    dora: Annotated[str | None, typer.Option(metavar="exact[:RANK]", help="Convert a DoRA adapter on the way.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring an adapter to a smaller rank, exactly through its factors: the best approximation in every layer.

    To rank 8, and to the ranks that keep 95 % of every layer's energy:

        samerge compress ./math-lora --rank 8 --out math-r8/

        samerge compress ./math-lora --energy 0.95 --out math-small/

    Without --out it only says what would be lost.
    """
    check_target(out, overwrite)
    from samerge.merging.conversion.compressing import compress_adapter

    def make() -> MergedAdapter:
        return compress_adapter(
            adapter,
            rank,
            energy=energy,
            base=base,
            dtype=dtype,
            modules_to_save=modules_to_save,
            dora=dora,
            progress=not quiet,
        )

    deliver(make, out, overwrite, as_json, quiet)
