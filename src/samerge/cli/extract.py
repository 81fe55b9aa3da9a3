"""`samerge extract`: a full fine-tuning to an adapter of its base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from samerge.cli.shared_options import Json, Overwrite, Quiet
from samerge.cli.shrunk import check_target, deliver

if TYPE_CHECKING:
    from samerge.merging.merged_adapter import MergedAdapter


def extract(
    base: Annotated[
        str,
        typer.Option("--base", "-b", metavar="BASE", help="The model that it was trained from: a folder or hub id."),
    ],
    expert: Annotated[
        str, typer.Option("--expert", "-e", metavar="EXPERT", help="The fine-tuned model: a folder or hub id.")
    ],
    rank: Annotated[
        int | None, typer.Option("--rank", "-r", metavar="N", help="No layer gets a larger rank than this.")
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            metavar="(0,1]",
            help="Every layer gets the smallest rank that keeps this share of its difference's squared norm; with "
            "--rank, not more than that.",
        ),
    ] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", metavar="FOLDER", help="The folder to make.")] = None,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="Take embeddings, too.")] = False,
    dtype: Annotated[
        str | None, typer.Option(metavar="NAME", help="float32, bfloat16 or float16. Default: the expert's own.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where to compute: cpu (default), cuda, mps.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make an adapter of what a full fine-tuning changed in the linear weights. Both models are streamed, never built.

        samerge extract --base meta-llama/Llama-3.1-8B --expert ./my-fine-tune --rank 32 --out my-lora/

    Norms, biases and embeddings that changed are left out, and named in a warning. Without --out it only says what
    would be lost.
    """
    check_target(out, overwrite)
    from samerge.merging.conversion.extracting import extract_adapter

    def make() -> MergedAdapter:
        return extract_adapter(
            base,
            expert,
            rank,
            energy=energy,
            embeddings=embeddings,
            dtype=dtype,
            device=device,
            progress=not quiet,
        )

    deliver(make, out, overwrite, as_json, quiet)
