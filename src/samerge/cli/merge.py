"""`samerge merge`: adapters in, one adapter out."""

from __future__ import annotations

from typing import Annotated

import typer

from samerge.cli.name_value import pairs
from samerge.cli.named_adapter import parse_adapter
from samerge.cli.request import Request, carry_out
from samerge.cli.shared_options import Json, Overwrite, Private, PushToHub, Quiet, number_or_word

_SELECTION = "What is kept"
_OUTPUT = "Output"


def merge(
    adapter: Annotated[
        list[str],
        typer.Option(
            "--adapter",
            "-a",
            metavar="[NAME=]SOURCE[:WEIGHT]",
            help="A folder or hub id, with a name and a weight if wanted; once for each adapter. The weight is 1 by "
            "default and may be negative.",
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            "-b",
            metavar="BASE",
            help="The base model: a folder with safetensors, or a hub id. Merges that read no weights of it, the "
            "default among them, only check names and shapes by it and fill in layers, and can do without.",
        ),
    ] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", metavar="FOLDER", help="The folder to make.")] = None,
    method: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A method from `samerge methods`. Where nothing is named: --recipe even."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="paper|even",
            help="A named set of defaults; explicit options win over it. even, the default: no weights of the base are "
            "read; paper: SA-Merging as published.",
        ),
    ] = None,
    balance: Annotated[
        str | None,
        typer.Option(
            metavar="norm|global|none",
            help="Bring the adapters to their mean norm first, layer by layer or as a whole. Default: none; "
            "in the recipe even, norm.",
            rich_help_panel=_SELECTION,
        ),
    ] = None,
    selection: Annotated[
        str | None,
        typer.Option(
            metavar="CRITERION",
            help="Which rank-1 components take part: saliency, sensitivity, agreement, norm, random[:SEED], or none.",
            rich_help_panel=_SELECTION,
        ),
    ] = None,
    aggregation: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How what was selected is combined: sum, or a method from `samerge methods`.",
            rich_help_panel=_SELECTION,
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Rank of the result. Default of even and with a selection: the largest rank of any adapter.",
            rich_help_panel=_SELECTION,
        ),
    ] = None,
    density: Annotated[
        str | None,
        typer.Option(
            metavar="(0,1]|adaptive[:MEAN]",
            help="Instead of --rank: the share of its components (elementwise: elements, 0.1 by default) that each "
            "adapter keeps in each layer; adaptive spreads it over the layers, 0.1 on the mean. Beside --rank where "
            "the aggregation is not the sum: 0.75 by default. Needs a --method or --selection, as what follows.",
            rich_help_panel=_SELECTION,
        ),
    ] = None,
    iterations: Annotated[
        int | None,
        typer.Option(metavar="N", help="Scoring and pruning steps. Default: 10.", rich_help_panel=_SELECTION),
    ] = None,
    refresh: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Read the base for the sensitivities in every N-th step (default: 1), or in the first alone (0), "
            "which is faster and near the same.",
            rich_help_panel=_SELECTION,
        ),
    ] = None,
    basis: Annotated[
        str | None,
        typer.Option(
            metavar="svd|native",
            help="Components of what: singular triplets (default), or the factors as trained.",
            rich_help_panel=_SELECTION,
        ),
    ] = None,
    agreement: Annotated[
        str | None,
        typer.Option(
            metavar="absolute|signed|paper|task",
            help="Whether components that disagree with the merge go first (signed). Default: absolute. For "
            "elementwise: paper (default), or task, under which elements that disagree go first.",
            rich_help_panel=_SELECTION,
        ),
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(
            metavar="layer|global",
            help="Rank components in each layer (default), or over all layers.",
            rich_help_panel=_SELECTION,
        ),
    ] = None,
    connectivity: Annotated[
        str | None,
        typer.Option(
            metavar="flow|local",
            help="Through the model family's graph (default), or every layer by itself, for any architecture.",
            rich_help_panel=_SELECTION,
        ),
    ] = None,
    residual: Annotated[
        bool | None,
        typer.Option(
            "--residual/--no-residual",
            help="Whether the graph has the residual edges. Default: yes.",
            rich_help_panel=_SELECTION,
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="float32|float64",
            help="What the sensitivities are computed in. Default: float32; float64 is for checks.",
            rich_help_panel=_SELECTION,
        ),
    ] = None,
    scaling: Annotated[
        str | None,
        typer.Option(
            metavar="auto[:C]|unit|FLOAT|lines:A:B|interference[:layer]",
            help="The strength of the merged update. Default: unit for the recipe even, auto with a selection and for "
            "elementwise, 1.0 for the exact methods.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    svd_rank: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Truncate every merged layer to this rank. Default of svd and elementwise: the largest rank of any "
            "adapter.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    spectrum: Annotated[
        str | None,
        typer.Option(
            metavar="kept|flat",
            help="flat: make the singular values of every merged layer equal. Default: kept; in the recipe even, flat.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="float32, bfloat16 or float16. Default: the adapters' own.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Where to compute: cpu (default), cuda, mps.", rich_help_panel=_OUTPUT),
    ] = None,
    modules_to_save: Annotated[
        str | None,
        typer.Option(
            metavar="average|take:ADAPTER|drop",
            help="What becomes of fully trained modules and token rows that adapters carry; an error without it.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    dora: Annotated[
        str | None,
        typer.Option(
            metavar="exact[:RANK]",
            help="Convert DoRA adapters on the way: the exact update, truncated to their rank or to RANK.",
            rich_help_panel=_SELECTION,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="nan|auto",
            help="Instead of weights of the single adapters: nan, in proportion to their inverse norms; auto, those "
            "whose sum changes the adapters' own outputs least.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    method_option: Annotated[
        list[str] | None,
        typer.Option(
            "--method-option",
            metavar="NAME=VALUE",
            help="An option that only this method has (see `samerge methods`); once for each.",
            rich_help_panel=_SELECTION,
        ),
    ] = None,
    overwrite: Overwrite = False,
    push_to_hub: PushToHub = None,
    private: Private = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Merge LoRA adapters of one base model into one. The base is streamed, never built.

    Two adapters, the second at four fifths of its strength, by the recipe `even`:

        samerge merge --base meta-llama/Llama-3.1-8B --out merged/ \\
            --adapter math=ada/math-lora --adapter code=./code-lora:0.8

    By saliency (SA-Merging), which reads the base:

        samerge merge --base BASE --adapter ./a --adapter ./b --method saliency --rank 16 --out salient/

    Their exact sum:

        samerge merge --adapter ./a --adapter ./b --method linear --out sum/

    The links one by one (balance, selection, aggregation, rank, spectrum, scaling):

        samerge merge --base BASE --adapter ./a --adapter ./b --out mixed/ \\
            --balance norm --selection saliency --aggregation tsv --spectrum flat
    """
    options = {
        "method": method,
        "recipe": recipe,
        "balance": balance,
        "selection": selection,
        "aggregation": aggregation,
        "rank": rank,
        "density": None if density is None else number_or_word(density),
        "iterations": iterations,
        "refresh": refresh,
        "basis": basis,
        "scaling": None if scaling is None else number_or_word(scaling),
        "agreement": agreement,
        "scope": scope,
        "connectivity": connectivity,
        "residual": residual,
        "precision": precision,
        "svd_rank": svd_rank,
        "spectrum": spectrum,
        "dtype": dtype,
        "device": device,
        "modules_to_save": modules_to_save,
        "dora": dora,
        "method_options": pairs(method_option),
    }
    request = Request(
        base=base,
        adapters=tuple(parse_adapter(text) for text in adapter),
        options={name: value for name, value in options.items() if value is not None},
        out=out,
        overwrite=overwrite,
        push_to_hub=push_to_hub,
        private=private,
        weights=weights,
    )
    carry_out(request, as_json=as_json, quiet=quiet)
