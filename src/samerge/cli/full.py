"""`samerge full`: fully trained checkpoints in, one model or one adapter out."""

from __future__ import annotations

import time
import warnings as python_warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samerge.cli.console import show_json, show_warnings, stderr, stdout
from samerge.cli.named_adapter import parse_adapter, unique
from samerge.cli.request import check_folder, check_repository
from samerge.cli.shared_options import Json, Private, PushToHub, Quiet
from samerge.errors import OptionError

if TYPE_CHECKING:
    from samerge.full.merged_model import MergedModel
    from samerge.merging.merged_adapter import MergedAdapter

_SELECTION = "What is kept"
_OUTPUT = "Output"


def full(
    base: Annotated[
        str,
        typer.Option("--base", "-b", metavar="BASE", help="The base model: a folder with safetensors, or a hub id."),
    ],
    expert: Annotated[
        list[str],
        typer.Option(
            "--expert",
            "-e",
            metavar="[NAME=]SOURCE[:WEIGHT]",
            help="A fine-tuned checkpoint: a folder or hub id, with a name and a weight if wanted; once for each.",
        ),
    ],
    out: Annotated[str | None, typer.Option("--out", "-o", metavar="FOLDER", help="The folder to make.")] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="paper", help="A named set of defaults; explicit options win over it.")
    ] = None,
    density: Annotated[
        str | None,
        typer.Option(
            metavar="(0,1]|adaptive",
            help="The share of its elements that each expert keeps in each weight. Default: 0.1.",
            rich_help_panel=_SELECTION,
        ),
    ] = None,
    iterations: Annotated[
        int | None,
        typer.Option(metavar="N", help="Scoring and pruning steps. Default: 10.", rich_help_panel=_SELECTION),
    ] = None,
    agreement: Annotated[
        str | None,
        typer.Option(
            metavar="paper|task",
            help="Score as published (default), or by agreement with the merge (task).",
            rich_help_panel=_SELECTION,
        ),
    ] = None,
    connectivity: Annotated[
        str | None,
        typer.Option(
            metavar="flow|local",
            help="Through the model family's graph (default), or every weight by itself, for any architecture.",
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
    outside: Annotated[
        str | None,
        typer.Option(
            metavar="average|sum|base",
            help="What becomes of norms, biases, embeddings and heads. Default: average.",
            rich_help_panel=_SELECTION,
        ),
    ] = None,
    mismatched: Annotated[
        str | None,
        typer.Option(
            metavar="error|base",
            help="What becomes of tensors that an expert lacks, adds or resized. Default: error.",
            rich_help_panel=_SELECTION,
        ),
    ] = None,
    scaling: Annotated[
        str | None,
        typer.Option(
            metavar="auto|FLOAT", help="The strength of the merged update. Default: auto.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    as_lora: Annotated[
        int | None,
        typer.Option(
            metavar="RANK", help="Write the merge as one LoRA adapter of this rank instead.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            metavar="(0,1]",
            help="As an adapter whose ranks keep this share of every update's energy; --as-lora is then the most.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Of a file of weights.", rich_help_panel=_OUTPUT)
    ] = "5GB",
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="Copy the base's own code (*.py) into the output, too.", rich_help_panel=_OUTPUT
        ),
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="float32, bfloat16 or float16. Default: the base's own.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Where to compute: cpu (default), cuda, mps.", rich_help_panel=_OUTPUT),
    ] = None,
    work_dir: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="Keep the survivor masks there instead of in memory.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is already there.")] = False,
    push_to_hub: PushToHub = None,
    private: Private = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Merge fully fine-tuned checkpoints of one base model, element by element. Everything is streamed.

    Two checkpoints, the second at four fifths of its strength:

        samerge full --base ada/base --expert math=ada/base-math --expert ./base-code:0.8 --out merged/

    The same as one LoRA adapter of rank 32:

        samerge full --base ada/base --expert ada/base-math --expert ./base-code --as-lora 32 --out merged-lora/
    """
    experts = unique([parse_adapter(text, option="--expert") for text in expert], "expert")
    if not out and not push_to_hub:
        raise OptionError("nowhere to put the merged model; give --out FOLDER, --push-to-hub USER/NAME, or both")
    if private and not push_to_hub:
        raise OptionError("--private is for a new repository on the Hub; give --push-to-hub USER/NAME, too")
    adapter = as_lora is not None or energy is not None
    if out:
        check_folder(out, overwrite, None if adapter else "config.json")
    if push_to_hub:
        check_repository(push_to_hub)
    options: dict[str, Any] = {
        "recipe": recipe,
        "density": None if density is None else _number(density),
        "iterations": iterations,
        "scaling": None if scaling is None else _number(scaling),
        "agreement": agreement,
        "connectivity": connectivity,
        "residual": residual,
        "outside": outside,
        "mismatched": mismatched,
        "dtype": dtype,
        "device": device,
        "work_dir": work_dir,
    }
    from samerge.full.merge_full import merge_full
    from samerge.full.shards import shard_bytes

    limit = shard_bytes(max_shard_size)
    start = time.perf_counter()
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")  # what the user should know is in the report
        model = merge_full(
            base,
            {item.name: item.source for item in experts},
            weights={item.name: item.weight for item in experts},
            progress=not quiet,
            **options,
        )
    result = model.as_lora(rank=as_lora, energy=energy) if adapter else model
    show_warnings(result.report.warnings)
    saving = {"max_shard_size": limit, "trust_remote_code": trust_remote_code}
    url = _hand_over(result, out, overwrite, {} if adapter else saving, push_to_hub, private, quiet)
    model.close()
    if as_json:
        record = result.report.record
        parts = ("samerge", "method", "recipe", "base", "output", "options", "outside", "mismatched", "timings")
        told = {key: record[key] for key in parts}
        show_json(
            {"out": out, "url": url, **told, "experts": result.report.experts(), "warnings": result.report.warnings}
        )
    elif not quiet:
        _show(result, out, url, len(experts), time.perf_counter() - start)


def _hand_over(
    result: MergedModel | MergedAdapter,
    out: str | None,
    overwrite: bool,
    saving: Mapping[str, Any],
    repository: str | None,
    private: bool,
    quiet: bool,
) -> str | None:
    """Save and push; the address of what was pushed."""
    if out:
        result.save(out, overwrite=overwrite, **saving)
        if not quiet:
            stderr().print(f"saved in {out}", markup=False)
    if not repository:
        return None
    if quiet:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    return result.push_to_hub(repository, private=True if private else None, **saving)


def _show(result: MergedModel | MergedAdapter, out: str | None, url: str | None, count: int, seconds: float) -> None:
    from samerge.full.merged_model import MergedModel

    console = stdout()
    console.print(result.report.table())
    console.print(f"{count} experts merged in {seconds:.1f} s.", markup=False)
    if out:
        how = f'AutoModel.from_pretrained("{out}")'
        if not isinstance(result, MergedModel):
            how = f'PeftModel.from_pretrained(base, "{out}")'
        console.print(f"Load it:   {how}", markup=False, soft_wrap=True)
        console.print(f"Look in:   samerge inspect {out}", markup=False, soft_wrap=True)
    if url:
        console.print(f"Pushed to: {url}", markup=False, soft_wrap=True)


def _number(text: str) -> float | str:
    """A number where the text is one, else the word as it is: `merge_full` says what it may be."""
    try:
        return float(text)
    except ValueError:
        return text
