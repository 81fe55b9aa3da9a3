"""`convert_adapter`: one adapter in another format, exactly: the factors as they are, with the scale that they have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from samerge.adapters import Adapter
from samerge.adapters.formats.header import carried
from samerge.adapters.formats.table import named
from samerge.adapters.layouts import Layout
from samerge.errors import AdapterError
from samerge.linalg.factors import LoraFactors, norm
from samerge.merging.alignment import assemble
from samerge.merging.alignment.spelling import together
from samerge.merging.configuration import settings_of
from samerge.merging.conversion.dora import check_dora
from samerge.merging.inputs import AdapterLike, BaseLike, dtype_of, open_adapters, open_base
from samerge.merging.merged_adapter import MergedAdapter
from samerge.merging.trained_parts import check_extras
from samerge.methods.problem import Problem
from samerge.parallel.progress import Progress
from samerge.report.origin import adapter_output, base_of, input_of, origin
from samerge.report.record import Record
from samerge.report.report import Report
from samerge.report.stored import AdapterInLayer, LayerRecord
from samerge.weights.stored import name_of


def convert_adapter(
    adapter: AdapterLike | Mapping[str, AdapterLike],
    format: str | None = None,
    base: BaseLike | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    progress: bool = True,
) -> MergedAdapter:
    """Bring an adapter to another format, exactly: its factors are written as they are, its scale as alpha.

    Args:
        adapter: a folder, a file, or a hub id, of any format that is read; as a mapping, with its name.
        format: "peft", "kohya", "diffusers", "mlx" or "gguf"; what `.save` then writes. By default that which it has,
            with the names that it has there.
        base: the model that it is of, whose names decide where the formats name modules otherwise: kohya's "_" for "."
            to PEFT's names, or anything to GGUF.
        dtype: of the output; that of the factors by default.
        progress: show progress bars when on a terminal.

    Returns:
        The adapter, as `samerge.merge` returns its own: `.save(path)`, `.push_to_hub(repo_id)`.

    Raises:
        OptionError: there is no such format.
        AdapterError: the adapter cannot be read, or carries what no other format has a place for.
        BaseModelError: the base cannot be read, or the adapter does not fit it.
        HubError: a download failed.

    Example:
        ```python
        samerge.convert_adapter("style.safetensors", "diffusers").save("style-diffusers/")
        ```
    """
    if format is not None:
        named(format)
    bars = Progress(progress)
    with bars.task("reading", 1):
        [opened] = open_adapters(base, adapter if isinstance(adapter, Mapping) else [adapter])
        came = opened.format
        live = base if isinstance(base, nn.Module) else None
        spelled = together([opened], open_base(base, required=False), live)
        [opened], source = spelled.adapters, spelled.source
        way = (
            f"No other format has a place for it here. Make a plain LoRA of it, in this format: samerge compress "
            f"ADAPTER --rank {opened.rank} --base BASE --dora exact --format {format or came} --out OUT (in Python "
            f"compress_adapter), which says what that loses"
        )
        check_dora([opened], None, None, "converting", way)
        _refuse_trained(opened)
        check_extras([opened], None, source)
    sites = assemble.align([opened], source)
    chosen = dtype_of(dtype)
    factors: dict[str, LoraFactors] = {}
    with bars.task("converting", len(sites)) as advance:
        for site in sites:
            loaded = site.experts[0].load()
            factors[site.module] = loaded if chosen is None else loaded.to(dtype=chosen)
            advance(1)
    layouts = {site.module: site.layout for site in sites}
    rank = max(one.rank for one in factors.values())
    problem = Problem((opened.name,), (1.0,), sites, rank, source, None, torch.device("cpu"), bars)
    factors, patterns = _of_one_kind(factors, layouts)
    settings = {**settings_of(problem, [opened], factors, layouts, rank, None), **patterns}
    report = Report(_record(opened, problem, factors, chosen, spelled.notes, settings))
    return MergedAdapter(
        factors,
        layouts,
        settings,
        report,
        format=format or came,
        metadata=carried([opened.metadata]),
        base={} if source is None else source.config,
        asked=format is not None and not format == came == "peft",
    )


def _refuse_trained(adapter: Adapter) -> None:
    modules = [*adapter.extras.saved, *adapter.extras.tokens]
    if modules:
        raise AdapterError(
            f"converting adapter {adapter.name!r}: it carries fully trained modules or token rows "
            f"({', '.join(modules)}), which only PEFT's format has a place for; merge it alone (samerge merge) into "
            f"this format, with modules_to_save='drop', which leaves them out"
        )
    biases = [*adapter.extras.biases, *(name for name, one in adapter.modules.items() if one.bias is not None)]
    if biases:
        raise AdapterError(
            f"converting adapter {adapter.name!r}: it trained biases ({biases[0]!r}), which only PEFT's format has a "
            f"place for; merge it alone (samerge merge), which keeps them"
        )


def _of_one_kind(
    factors: Mapping[str, LoraFactors], layouts: Mapping[str, Layout]
) -> tuple[dict[str, LoraFactors], dict[str, Any]]:
    """The factors, and what PEFT's configuration says of their ranks and scales.

    PEFT keeps the experts of a stack in one tensor, with one scale: there it is folded in.
    """
    stacked = {module for module, layout in layouts.items() if layout.kind == "parameter"}
    made = {module: one.folded() if module in stacked else one for module, one in factors.items()}
    rank = Counter(one.rank for one in made.values()).most_common(1)[0][0]
    alphas = {module: one.scale * one.rank for module, one in made.items()}
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return made, {
        "r": rank,
        "lora_alpha": _whole(alpha),
        "rank_pattern": {module: one.rank for module, one in made.items() if one.rank != rank},
        "alpha_pattern": {module: _whole(own) for module, own in alphas.items() if own != alpha},
    }


def _whole(number: float) -> float | int:
    """As people write it: 16 and not 16.0."""
    return int(number) if number == int(number) else number


def _record(
    adapter: Adapter,
    problem: Problem,
    factors: Mapping[str, LoraFactors],
    dtype: torch.dtype | None,
    notes: tuple[str, ...],
    settings: Mapping[str, Any],
) -> Record:
    layers = {}
    for module, one in factors.items():
        size = float(norm(one))
        own = AdapterInLayer(size, cosine=1.0 if size else None, interference=0.0 if size else None)
        layers[module] = LayerRecord({adapter.name: own}, size, rank=one.rank)
    return Record(
        method="convert",
        base=base_of(problem.source),
        inputs=(input_of(adapter, 1.0),),
        options={} if dtype is None else {"dtype": name_of(dtype)},
        output=adapter_output(factors, dtype or adapter.dtype, problem.rank, settings),
        layers=layers,
        notes=(*adapter.notes, *notes),
        **origin(),
    )
