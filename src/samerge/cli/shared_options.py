"""Options that more than one command has."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated

import typer

from samerge.cli.spread import methods_offered


def _use_token(token: str | None) -> str | None:
    if token:
        os.environ["HF_TOKEN"] = token  # where huggingface_hub looks for it, for reading and for pushing
    return token


def _hush(quiet: bool) -> bool:
    if quiet:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # what huggingface_hub, imported later, looks for
    return quiet


ADAPTER = "[NAME=]SOURCE[:WEIGHT]"

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Token = Annotated[
    str | None,
    typer.Option(
        "--token",
        metavar="TEXT",
        callback=_use_token,
        help="Access token of the Hub; better in HF_TOKEN, or from `hf auth login`.",
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        "--base",
        "-b",
        metavar="BASE",
        help="The base model: a folder with safetensors, or a Hub id, with @REVISION if wanted.",
    ),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        "-a",
        metavar=ADAPTER,
        help="A folder, or USER/NAME[/FOLDER@REVISION] on the Hub; once for each adapter. The "
        "weight is its strength: 1 (default) full, 0.5 half, negative subtracts.",
    ),
]
Positional = Annotated[
    list[str] | None, typer.Argument(metavar="[ADAPTER]...", help="The same as --adapter.", show_default=False)
]
OneAdapter = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        "-a",
        metavar="[NAME=]SOURCE",
        help="The adapter: a folder, a file, or USER/NAME[/FOLDER@REVISION] on the Hub.",
    ),
]
OnePositional = Annotated[
    list[str] | None, typer.Argument(metavar="[ADAPTER]", help="The same as --adapter.", show_default=False)
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        "-w",
        metavar="W,W,...|nan",
        help="Instead of weights behind the adapters: one for each, in order; or nan, in proportion to the adapters' "
        "inverse norms.",
    ),
]
MethodName = Annotated[
    str | None,
    typer.Option(
        "--method",
        "-m",
        metavar="NAME",
        autocompletion=methods_offered,
        help="A method from `samerge methods`, or what PEFT or mergekit call it. Default: saliency.",
    ),
]
Picture = Annotated[str | None, typer.Option("--picture", metavar="FILE", help="Draw it (.png, .svg, .pdf).")]

ReportPage = Annotated[
    str | None,
    typer.Option(
        "--report", metavar="FILE.html", help="Write a page about it: what was merged, kept and lost, with pictures."
    ),
]


Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is already there.")]
ShardSize = Annotated[str, typer.Option(metavar="SIZE", help="Of a file of weights.")]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Copy the base's own code (*.py) into the output, too.")
]


@dataclass(frozen=True)
class Manner:
    """How a command speaks.

    Args:
        token: access token of the Hub, already in use.
        as_json: JSON on stdout, and nothing else there.
        quiet: no table, no notes and no progress; warnings and errors still come.
    """

    token: Token = None
    as_json: Json = False
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", callback=_hush, help="No table and no progress; warnings and errors still come."),
    ] = False
