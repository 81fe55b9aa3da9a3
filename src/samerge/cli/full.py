"""`samerge full`: fully trained checkpoints in, one model or one adapter out."""

from __future__ import annotations

import time
import warnings as python_warnings
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samerge.cli.console import show_json, show_warnings, show_ways, stdout
from samerge.cli.named_adapter import given_weights, parse_adapter, unique
from samerge.cli.shared_options import ADAPTER, Base, Manner, RemoteCode, ShardSize, Weights
from samerge.cli.spread import FromTable, completion
from samerge.cli.target import Target
from samerge.errors import OptionError
from samerge.full.full_options import METHODS, FullOptions
from samerge.options.kinds import share, whole

if TYPE_CHECKING:
    from samerge.full.merged_model import MergedModel
    from samerge.merging.merged_adapter import MergedAdapter


def full(
    *,
    base: Base = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            *("--model", "--expert", "-e", "--adapter", "-a"),
            metavar=ADAPTER,
            help="A fine-tuned checkpoint: a folder or Hub id, with a name and a weight if wanted; once for each.",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method", "-m", metavar="NAME", autocompletion=completion(*METHODS), help="elementwise, or paper."
        ),
    ] = "elementwise",
    weights: Weights = None,
    options: Annotated[dict[str, Any], FromTable(FullOptions)],
    as_lora: Annotated[
        str | None, typer.Option(metavar="RANK", help="Write the merge as one LoRA adapter of this rank instead.")
    ] = None,
    energy: Annotated[
        str | None,
        typer.Option(
            metavar="(0,1]",
            help="As an adapter whose ranks keep this share of every update's energy; --as-lora is then the most.",
        ),
    ] = None,
    max_shard_size: ShardSize = "5GB",
    trust_remote_code: RemoteCode = False,
    work_dir: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Keep the survivor masks there instead of in memory.")
    ] = None,
    target: Target,
    manner: Manner,
) -> None:
    """Merge fully fine-tuned checkpoints of one base model, element by element. Everything is streamed.

    Two checkpoints, the second at four fifths of its strength:

        samerge full --base ada/base --model math=ada/base-math --model ./base-code:0.8 --out merged/

    The same as one LoRA adapter of rank 32:

        samerge full --base ada/base --model ada/base-math --model ./base-code --as-lora 32 --out merged-lora/
    """
    models = unique([parse_adapter(text, option="--model") for text in model or ()], "model")
    if base is None:
        raise OptionError("a merge of checkpoints needs what they were trained from; give --base BASE")
    rank = None if as_lora is None else whole().read("as_lora", as_lora)
    kept = None if energy is None else share().read("energy", energy)
    adapter = rank is not None or kept is not None
    target.check("merged model", None if adapter else "config.json")
    from samerge.full.merge_full import merge_full
    from samerge.full.shards import shard_bytes

    saving = {"max_shard_size": shard_bytes(max_shard_size), "trust_remote_code": trust_remote_code}
    values = given_weights(weights, models)
    if isinstance(values, str):
        raise OptionError(f"--weights {values}: a merge of checkpoints takes numbers, one for each")
    start = time.perf_counter()
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")  # what the user should know is in the report
        merged = merge_full(
            base,
            {item.name: item.source for item in models},
            weights=values,
            method=method,
            work_dir=work_dir,
            progress=not manner.quiet,
            **options,
        )
    result = merged.as_lora(rank=rank, energy=kept) if adapter else merged
    show_warnings(result.report.warnings)
    url = target.deliver(result, manner.quiet, **({} if adapter else saving))
    merged.close()
    if manner.as_json:
        told = result.report.record.json()
        shown = ("samerge", "method", "base", "output", "options", "adapters", "outside", "mismatched", "timings")
        parts = {key: told.get(key) for key in (*shown, "notes", "warnings")}
        show_json({"out": target.out, "url": url, **parts})
    elif not manner.quiet:
        from samerge.report.loading import model_class

        call = (
            "PeftModel.from_pretrained(base, " if adapter else f"{model_class(result.report.record)}.from_pretrained("
        )
        how = f'{call}"{target.out}")'
        _show(result, target.out, url, how, f"{len(models)} models merged in {time.perf_counter() - start:.1f} s.")


def _show(result: MergedModel | MergedAdapter, out: str | None, url: str | None, load: str, said: str) -> None:
    console = stdout()
    console.print(result.report.table())
    console.print(said, markup=False)
    show_ways(load if out else None, url, f"samerge inspect {out}" if out else None)
