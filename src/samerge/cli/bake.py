"""`samerge bake`: a base and its adapters in, one full checkpoint out."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from samerge.cli.console import show_json, show_warnings, show_ways, stdout
from samerge.cli.named_adapter import given_adapters, given_weights
from samerge.cli.shared_options import Adapters, Base, Manner, Positional, RemoteCode, ShardSize, Weights
from samerge.cli.shell_words import said
from samerge.cli.spread import FromTable
from samerge.cli.target import Target
from samerge.errors import OptionError
from samerge.options.common import CommonOptions

_DEFAULTS = (("dtype", "the base's own"), ("modules_to_save", "update"))


def bake(
    *,
    base: Base = None,
    more: Positional = None,
    adapter: Adapters = None,
    weights: Weights = None,
    options: Annotated[dict[str, Any], FromTable(CommonOptions, ("dtype", "modules_to_save", "modules"), _DEFAULTS)],
    dequantise: Annotated[
        bool,
        typer.Option("--dequantise", "--dequantize", help="Write a quantised base's weights in full precision."),
    ] = False,
    max_shard_size: ShardSize = "5GB",
    trust_remote_code: RemoteCode = False,
    target: Target,
    manner: Manner,
) -> None:
    """Add adapters to their base's weights: a full checkpoint that needs no PEFT. Everything is streamed.

    A merged adapter:

        samerge bake --base meta-llama/Llama-3.1-8B --adapter merged/ --out llama-merged/

    The exact sum of two, the second at four fifths of its strength:

        samerge bake --base ada/base --adapter ada/math-lora --adapter ./code-lora:0.8 --out baked/

    Fully trained modules become base + the sum of the weighted changes, unless --modules-to-save says otherwise.
    """
    specs = given_adapters(more, adapter)
    if base is None:
        raise OptionError("adapters are baked into what they were trained on; give --base BASE")
    values = given_weights(weights, specs)
    if isinstance(values, str):
        raise OptionError(f"--weights {values}: baking takes numbers, one for each; other rules are for samerge merge")
    target.check("baked model", "config.json")
    from samerge.full.bake import bake as baked
    from samerge.full.shards import shard_bytes

    saving = {"max_shard_size": shard_bytes(max_shard_size), "trust_remote_code": trust_remote_code}
    start = time.perf_counter()
    result = baked(
        base,
        {spec.name: spec.source for spec in specs},
        weights=values,
        dequantise=dequantise,
        progress=not manner.quiet,
        **options,
    )
    show_warnings(result.report.warnings)
    url = target.deliver(result, manner.quiet, **saving)
    record = result.report.record
    if manner.as_json:
        told = record.json()
        shown = ("samerge", "method", "base", "output", "options", "inputs", "timings", "notes", "warnings")
        show_json({"out": target.out, "url": url, **{key: told.get(key) for key in shown}})
    elif not manner.quiet:
        from samerge.report.loading import model_class

        console = stdout()
        many = f"{len(specs)} adapters" if len(specs) > 1 else "1 adapter"
        done = f"{many} baked into {record.output.modules:,} weights of {record.output.size}"
        console.print(f"{done} in {time.perf_counter() - start:.1f} s.", markup=False)
        for note in record.notes:
            console.print(f"Note: {said(note)}", markup=False, soft_wrap=True)
        loader = model_class(record)
        show_ways(f'{loader}.from_pretrained("{target.out}")' if target.out else None, url)
