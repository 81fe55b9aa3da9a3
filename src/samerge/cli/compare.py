"""`samerge compare`: the same adapters merged in several ways, side by side."""

from __future__ import annotations

import re
import warnings as python_warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samerge.cli.console import show_json, show_warnings, stderr, stdout
from samerge.cli.exit_codes import BAD_INPUT
from samerge.cli.named_adapter import parse_adapter, unique
from samerge.cli.request import check_folder
from samerge.cli.shared_options import Json, Overwrite, Quiet
from samerge.errors import OptionError
from samerge.report.picture import check_picture

if TYPE_CHECKING:
    from samerge.merging.comparison import Comparison


def compare(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="The base model, a folder or hub id; - where no way reads it.")
    ],
    adapters: Annotated[
        list[str], typer.Argument(metavar="ADAPTER", help="[NAME=]SOURCE[:WEIGHT] each, as for `samerge merge`.")
    ],
    method: Annotated[
        list[str],
        typer.Option(
            "--method",
            "-m",
            metavar="NAME[:OPTION=VALUE,...]",
            help="A way to merge: a method or recipe, with options of `samerge merge` or of its own; once for each.",
        ),
    ],
    save: Annotated[
        list[str] | None,
        typer.Option("--save", metavar="WAY", help="Save this way's merge, named as with --method, under --output."),
    ] = None,
    save_all: Annotated[bool, typer.Option("--save-all", help="Save every merge under --output.")] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "--out",
            "-o",
            metavar="FOLDER",
            help="Where: the folder itself for a single --save, else a folder in it for each.",
        ),
    ] = None,
    picture: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Draw what each way leaves of each adapter (png, svg, pdf)."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="NAME", help="float32, bfloat16 or float16. Default: the adapters' own.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where to compute: cpu (default), cuda, mps.")
    ] = None,
    modules_to_save: Annotated[
        str | None,
        typer.Option(metavar="average|take:ADAPTER|drop", help="What becomes of fully trained modules."),
    ] = None,
    dora: Annotated[str | None, typer.Option(metavar="exact[:RANK]", help="Convert DoRA adapters on the way.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Merge the same adapters in several ways and compare, without any data, what each leaves of them.

    Two adapters in three ways:

        samerge compare meta-llama/Llama-3.1-8B math=ada/math-lora code=./code-lora \\
            --method even --method saliency --method tsv:scaling=0.7 --picture ways.png

    What is expected to be left is 100 % for an adapter itself and 0 % for the base model. It is an estimate from the
    weights and no accuracy, good for leaving out what is hopeless. It makes too little of merges with a flat spectrum
    (even, iso-c) and too much of wudi (docs/diagnostics.md). Two of the ways, saved:

        samerge compare BASE A B -m even -m saliency -m iso-c --save even --save iso-c --output merged/

    `even` is what `samerge merge` does where nothing is named.

    A way that fails is told and does not stop the others; the exit code is then 2.
    """
    specs = unique([parse_adapter(text, option="") for text in adapters])
    targets = _targets(method, save or [], save_all, output)
    for folder in targets.values():
        check_folder(str(folder), overwrite)
    if picture:
        check_picture(picture)
    from samerge.merging.comparison import compare as compare_ways

    common = {"dtype": dtype, "device": device, "modules_to_save": modules_to_save, "dora": dora}
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")  # what the user should know is in the reports
        found = compare_ways(
            None if base == "-" else base,
            {spec.name: spec.source for spec in specs},
            method,
            weights={spec.name: spec.weight for spec in specs} if any(spec.weight != 1 for spec in specs) else None,
            options={name: value for name, value in common.items() if value is not None},
            progress=not quiet,
        )
    saved = {}
    for way, folder in targets.items():
        if way in found.merged:
            saved[way] = str(found.merged[way].save(folder, overwrite=overwrite))
    drawn = str(found.picture(picture)) if picture and found.merged else None
    _show(found, saved, drawn, as_json, quiet)
    if found.failed:
        raise typer.Exit(BAD_INPUT)


def _show(found: Comparison, saved: dict[str, str], drawn: str | None, as_json: bool, quiet: bool) -> None:
    notes = _warnings({way: merged.report.warnings for way, merged in found.merged.items()})
    show_warnings(notes)
    if as_json:
        show_json({"ways": found.rows(), "saved": saved, "picture": drawn, "note": found.note, "warnings": notes})
    elif not quiet:
        stdout().print(found.table())
    for way, reason in found.failed.items():
        stderr().print(f"failed: {way}: {reason}", style="red", markup=False)
    if not quiet:
        for way, folder in saved.items():
            stderr().print(f"saved {way} in {folder}", markup=False)
        if drawn:
            stderr().print(f"drawn in {drawn}", markup=False)


def _warnings(by_way: Mapping[str, Sequence[str]]) -> list[str]:
    """Each warning once: as it is where every way has it, else with the ways that have it in front.

    Example:
        >>> _warnings({"tsv": ["much was lost"], "linear": []})
        ['tsv: much was lost']
    """
    ways: dict[str, list[str]] = {}
    for way, texts in by_way.items():
        for text in texts:
            ways.setdefault(text, []).append(way)
    return [text if len(own) == len(by_way) else f"{', '.join(own)}: {text}" for text, own in ways.items()]


def _targets(ways: list[str], save: list[str], save_all: bool, output: str | None) -> dict[str, Path]:
    """The folder of each way that shall be saved.

    Raises:
        OptionError: a way that is not compared, nowhere to save, or nothing to save.
    """
    for way in save:
        if way not in ways:
            raise OptionError(f"--save {way!r}: it is none of the ways to merge ({', '.join(ways)}); name it alike")
    chosen = list(dict.fromkeys(ways if save_all else save))
    if bool(chosen) != bool(output):
        raise OptionError(
            "--save and --save-all need --output FOLDER" if chosen else "--output needs --save WAY, or --save-all"
        )
    if not output:
        return {}
    if len(chosen) == 1 and not save_all:
        return {chosen[0]: Path(output)}
    folders = {way: Path(output) / re.sub(r"[^\w.=+-]+", "_", way) for way in chosen}
    if len(set(folders.values())) < len(folders):
        raise OptionError(f"two ways would be saved in one folder under {output}; save them one at a time")
    return folders
