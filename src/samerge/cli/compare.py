"""`samerge compare`: the same adapters merged in several ways, side by side."""

from __future__ import annotations

import re
import warnings as python_warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samerge.cli.console import show_json, show_warnings, stderr, stdout
from samerge.cli.exit_codes import BAD_INPUT
from samerge.cli.named_adapter import given_adapters, given_weights
from samerge.cli.shared_options import Adapters, Base, Manner, Overwrite, Picture, Positional, Weights
from samerge.cli.shell_words import said
from samerge.cli.spread import FromTable, methods_offered
from samerge.cli.target import check_folder
from samerge.errors import OptionError
from samerge.options.common import CommonOptions
from samerge.report.picture import check_picture

if TYPE_CHECKING:
    from samerge.merging.comparison import Comparison


def compare(
    *,
    base: Base = None,
    more: Positional = None,
    adapter: Adapters = None,
    weights: Weights = None,
    ways: Annotated[
        list[str],
        typer.Option(
            "--method",
            "-m",
            metavar="NAME[:OPTION=VALUE,...]",
            autocompletion=methods_offered,
            help="A way to merge: a method, with options of `samerge merge` or of its own; once for each.",
        ),
    ],
    options: Annotated[dict[str, Any], FromTable(CommonOptions)],
    save: Annotated[
        list[str] | None,
        typer.Option("--save", metavar="WAY", help="Save this way's merge, named as with --method, under --out."),
    ] = None,
    save_all: Annotated[bool, typer.Option("--save-all", help="Save every merge under --out.")] = False,
    out: Annotated[
        str | None,
        typer.Option(
            *("--out", "--output", "-o"),
            metavar="FOLDER",
            help="Where: the folder itself for a single --save, else a folder in it for each.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    picture: Picture = None,
    manner: Manner,
) -> None:
    """Merge the same adapters in several ways and measure each merge, without any data.

    Two adapters in three ways:

        samerge compare --base meta-llama/Llama-3.1-8B --adapter math=ada/math-lora --adapter code=./code-lora \\
            --method saliency --method even --method tsv:scaling=0.7 --picture ways.png

    The figures say what each merge is, and none says how well it does on a task. Two of the ways, saved:

        samerge compare -b BASE -a A -a B -m saliency -m even -m iso-c --save even --save iso-c --out merged/

    Options given here are for all ways. A way that fails is told and does not stop the others; the exit code is then 2.
    """
    specs = given_adapters(more, adapter)
    values = given_weights(weights, specs)
    targets = _targets(ways, save or [], save_all, out)
    for folder in targets.values():
        check_folder(str(folder), overwrite)
    if picture:
        check_picture(picture)
    from samerge.merging.comparison import compare as compare_ways

    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")  # what the user should know is in the reports
        sources = {spec.name: spec.source for spec in specs}
        found = compare_ways(base, sources, ways, weights=values, options=options, progress=not manner.quiet)
    saved = {}
    for way, folder in targets.items():
        if way in found.merged:
            saved[way] = str(found.merged[way].save(folder, overwrite=overwrite))
    drawn = str(found.picture(picture)) if picture and found.merged else None
    _show(found, saved, drawn, manner)
    if found.failed:
        raise typer.Exit(BAD_INPUT)


def _show(found: Comparison, saved: dict[str, str], drawn: str | None, manner: Manner) -> None:
    notes = _warnings({way: merged.report.warnings for way, merged in found.merged.items()})
    show_warnings(notes)
    if manner.as_json:
        show_json({"ways": found.rows(), "saved": saved, "picture": drawn, "warnings": notes})
    elif not manner.quiet:
        stdout().print(found.table())
    for way, reason in found.failed.items():
        stderr().print(f"failed: {way}: {said(reason)}", style="red", markup=False)
    if not manner.quiet:
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


def _targets(ways: list[str], save: list[str], save_all: bool, out: str | None) -> dict[str, Path]:
    """The folder of each way that shall be saved.

    Raises:
        OptionError: a way that is not compared, nowhere to save, or nothing to save.
    """
    for way in save:
        if way not in ways:
            raise OptionError(f"--save {way!r}: it is none of the ways to merge ({', '.join(ways)}); name it alike")
    chosen = list(dict.fromkeys(ways if save_all else save))
    if bool(chosen) != bool(out):
        raise OptionError(
            "--save and --save-all need --out FOLDER" if chosen else "--out needs --save WAY, or --save-all"
        )
    if not out:
        return {}
    if len(chosen) == 1 and not save_all:
        return {chosen[0]: Path(out)}
    folders = {way: Path(out) / re.sub(r"[^\w.=+-]+", "_", way) for way in chosen}
    if len(set(folders.values())) < len(folders):
        raise OptionError(f"two ways would be saved in one folder under {out}; save them one at a time")
    return folders
