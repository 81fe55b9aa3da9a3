"""`samerge convert`: an adapter in another format, or dtype."""

from __future__ import annotations

from typing import Annotated, Any

from samerge.cli.console import show_json, show_warnings, show_ways, stdout
from samerge.cli.named_adapter import given_one
from samerge.cli.shared_options import Base, Manner, OneAdapter, OnePositional
from samerge.cli.spread import FromTable
from samerge.cli.target import AdapterTarget
from samerge.errors import OptionError
from samerge.options.common import CommonOptions


def convert(
    *,
    one: OnePositional = None,
    adapter: OneAdapter = None,
    base: Base = None,
    options: Annotated[dict[str, Any], FromTable(CommonOptions, ("dtype",), (("dtype", "the adapter's own"),))],
    target: AdapterTarget,
    manner: Manner,
) -> None:
    """Bring an adapter to another format or dtype, exactly: its factors as they are, its scale as alpha.

        samerge convert style.safetensors --format diffusers --out style-diffusers.safetensors

        samerge convert ./math-lora --format gguf --base meta-llama/Llama-3.1-8B --out math.gguf

    The base is read for the names of its modules alone, where the two formats name them otherwise.
    """
    spec = given_one("convert", one, adapter)
    if target.format is None and not options:
        raise OptionError(
            "there is nothing to convert to; give --format peft, kohya, diffusers, mlx or gguf, or --dtype, or both"
        )
    target.check("converted adapter", sources=[spec.source])
    from samerge.merging.conversion.converting import convert_adapter

    adapter_of = {spec.name: spec.source}
    made = convert_adapter(adapter_of, target.format, base, progress=not manner.quiet, **options)
    url = target.deliver(made, manner.quiet or manner.as_json)
    placed = target.place(made)
    notes = made.report.notes
    show_warnings(made.report.warnings)
    if manner.as_json:
        told = made.report.record.json()
        parts = {key: told[key] for key in ("samerge", "base", "inputs", "output")}
        show_json({"out": placed[0] if placed else None, "url": url, **parts, "notes": notes})
    elif not manner.quiet:
        for note in notes:
            stdout().print(note, markup=False, soft_wrap=True)
        show_ways(placed[1] if placed else None, url)
