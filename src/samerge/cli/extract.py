"""`samerge extract`: a full fine-tuning to an adapter of its base."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from samerge.cli.shared_options import Base, Manner
from samerge.cli.shrunk import Energy, Rank, deliver, size
from samerge.cli.spread import FromTable
from samerge.cli.target import AdapterTarget
from samerge.errors import OptionError
from samerge.options.common import CommonOptions


def extract(
    *,
    base: Base = None,
    model: Annotated[
        str | None,
        typer.Option(
            *("--model", "--expert", "-e", "--adapter", "-a"),
            metavar="SOURCE",
            help="The fine-tuned model: a folder or Hub id.",
        ),
    ] = None,
    rank: Rank = None,
    energy: Energy = None,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="Take embeddings, too.")] = False,
    options: Annotated[dict[str, Any], FromTable(CommonOptions, ("dtype", "device"), (("dtype", "the model's own"),))],
    target: AdapterTarget,
    manner: Manner,
) -> None:
    """Make an adapter of what a full fine-tuning changed in the linear weights. Both models are streamed, never built.

        samerge extract --base meta-llama/Llama-3.1-8B --model ./my-fine-tune --rank 32 --out my-lora/

    Norms, biases and embeddings that changed are left out, and named in a warning. Without --out it only says what
    would be lost.
    """
    if base is None or model is None:
        raise OptionError("extracting needs two models: give --base BASE and --model SOURCE, the fine-tuned one")
    target.check()
    from samerge.merging.conversion.extracting import extract_adapter

    made = lambda: extract_adapter(  # noqa: E731
        base, model, embeddings=embeddings, progress=not manner.quiet, **size(rank, energy), **options
    )
    deliver(made, target, manner)
