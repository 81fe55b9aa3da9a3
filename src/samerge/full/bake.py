"""`bake`: a base and its adapters in, one full checkpoint out. Thin: it reads, plans, and hands over."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from samerge.adapters import Adapter
from samerge.errors import AdapterError, BaseModelError, OptionError
from samerge.full.baked_tensors import BakedTensors
from samerge.full.baking import plan_baking, site_norms
from samerge.full.given_models import ModelLike, Opened, open_model
from samerge.full.streamed_model import StreamedModel
from samerge.merging.alignment import assemble
from samerge.merging.alignment.views import replication
from samerge.merging.inputs import AdapterLike, dtype_of, open_adapters, weights_of
from samerge.merging.merged_adapter import MergedAdapter
from samerge.merging.module_weights import factor_of, fitted, with_factors
from samerge.merging.saved_modules import SavedParts
from samerge.merging.trained_parts import check_extras
from samerge.methods.problem import Site
from samerge.options.common import CommonOptions
from samerge.options.option import filled
from samerge.parallel.progress import Progress
from samerge.report.origin import base_of, input_of, origin, seconds_of
from samerge.report.record import Record
from samerge.report.report import Report
from samerge.report.stored import AdapterInLayer, LayerRecord, Output
from samerge.weights import FolderSource, WeightSource
from samerge.weights.quantised import quantization
from samerge.weights.stored import InFile, name_of


@dataclass(frozen=True)
class BakedModel(StreamedModel):
    """A base with adapters baked in, not in memory: `.save(path)`, `.tensor(name)`, `.push_to_hub(repo_id)`."""


def bake(
    base: ModelLike,
    adapters: Mapping[str, AdapterLike] | Sequence[AdapterLike] | AdapterLike,
    *,
    weights: Mapping[str, float] | Sequence[float] | None = None,
    modules: Mapping[str, float | Mapping[str, float]] | None = None,
    modules_to_save: str | None = None,
    dtype: torch.dtype | str | None = None,
    dequantise: bool = False,
    progress: bool = True,
) -> BakedModel:
    """Add adapters to the weights of their base: a full checkpoint that needs no PEFT, written shard by shard.

    Each tensor becomes W + sum_n w_n s_n B_n A_n, in float32, rounded once to the base's dtype; those that no adapter
    changes are copied. No model is built: in memory is a tile of one tensor, the factors of one layer, and what was
    trained whole of it. To bake another merge than the sum, merge first, and bake what `samerge.merge` returned.

    Args:
        base: a folder with `config.json` and safetensors, a hub id, or a loaded model.
        adapters: one, or several of this base: name -> folder, hub id or merged adapter, or a list of these.
        weights: by name, or in order; 1.0 each by default. Weights multiply the exact updates.
        modules: strengths by module, as in `samerge.merge`.
        modules_to_save: what becomes of fully trained modules and token rows: "update" (default), base + sum of
            w_n (trained_n - base), of one adapter its own; "average", "take:<adapter>" or "drop", as in
            `samerge.merge`.
        dtype: of the output; the base's own by default.
        dequantise: write a quantised base's weights in full precision: in `dtype`, or what its configuration says.
        progress: show progress bars when on a terminal.

    Returns:
        The model: `.save(path)`, `.tensor(name)`, `.report`, `.push_to_hub(repo_id)`. It reads base and adapters again
        when it is saved.

    Raises:
        OptionError: an option is out of its range.
        AdapterError: an adapter cannot be read, or has what a checkpoint of this base has no place for.
        BaseModelError: the base cannot be read, is quantised, or an adapter does not fit it.
        HubError: a download failed.

    Example:
        ```python
        samerge.bake("meta-llama/Llama-3.1-8B", "./math-lora").save("llama-math/")
        ```
    """
    single = isinstance(adapters, (str, Path, Adapter, MergedAdapter))
    bars = Progress(progress)
    given: dict[str, Any] = {"modules": modules, "modules_to_save": modules_to_save or "update", "dtype": dtype}
    options = filled(CommonOptions, given)
    with bars.task("reading", 1):
        live = base if isinstance(base, nn.Module) else None
        opened = open_adapters(live, [adapters] if single else adapters)  # type: ignore[arg-type,list-item]
        names = [adapter.name for adapter in opened]
        strengths = weights_of(weights, names)
        root = open_model("base", base, companions=True)
        dtypes = _dtypes(root, dtype_of(options.dtype), dequantise)
        active = [(a, w) for a, w in zip(opened, strengths, strict=True) if w]
        if not active:
            raise OptionError("every adapter has the weight 0, so that there is nothing to bake; give other weights")
        if replication([adapter for adapter, _ in active]):
            raise AdapterError(
                f"baking adapter {active[0][0].name!r}: it was trained on replicated layers (layer_replication), which "
                f"share their weights in the base; a checkpoint of the base has no place for what each of them gets. "
                f"Load it with PEFT and save the model that it makes"
            )
        one = fitted([adapter for adapter, _ in active], names, root.source, live, options.modules)
        kept = one.adapters
        check_extras(kept, options.modules_to_save, one.source)
        taking_part = [adapter.name for adapter in kept]
        sites = with_factors(assemble.align(kept, one.source), taking_part, options.modules)
        own = [w for _, w in active]
        assert one.source is not None

        factor = factor_of(options.modules)
        whole = options.modules_to_save != "drop"
        pairs = list(zip(kept, own, strict=True))
        saved = SavedParts(pairs, str(options.modules_to_save), 1.0, None, one.source, factor) if whole else None
        planned = plan_baking(root.source, one.source, kept, own, sites, saved, factor)
    tensors = BakedTensors(
        root.source,
        planned.recipes,
        {**dtypes, **{name: dtypes[recipe.base] for name, recipe in planned.recipes.items()}},
    )
    with bars.task("measuring", 1):
        layers = {site.module: _layer(site, taking_part, own, one.source) for site in sites}
    record = Record(
        method="bake",
        base=base_of(root.source),
        inputs=tuple(input_of(adapter, weight) for adapter, weight in zip(opened, strengths, strict=True)),
        options={
            "dequantise": dequantise,
            **{key: options.record()[key] for key in ("dtype", "modules", "modules_to_save")},
        },
        output=Output(
            kind="model",
            dtype=name_of(dtype_of(options.dtype) or root.dtype),
            modules=len(layers),
            parameters=sum(math.prod(shape) for shape in tensors.shapes.values()),
            tensors=len(tensors.shapes),
        ),
        layers=layers,
        timings=seconds_of(bars),
        notes=(*one.notes, *planned.notes),
        warnings=_warnings(opened, strengths, not whole),
        **origin(),
    )
    folders = {a.name: Path(a.source) for a in opened if Path(a.source).is_dir()}
    return BakedModel(Report(record), tensors, root, folders, dtype_of(options.dtype), progress, planned.settings)


def _dtypes(base: Opened, chosen: torch.dtype | None, dequantise: bool) -> dict[str, torch.dtype]:
    """The output's dtype of every tensor of the base.

    Raises:
        BaseModelError: the base is quantised, and nobody asked for it otherwise.
    """
    source = base.source
    packed = _packed(source)
    if (packed or quantization(source.config)) and not dequantise:
        raise BaseModelError(
            f"baking into {source.name!r}: it is quantised ({', '.join(sorted(packed)[:2]) or 'by its configuration'}"
            f"{' ...' if len(packed) > 2 else ''}), and an update cannot be added to packed weights without rounding "
            f"them once more. Bake into the unquantised model, or write it in full precision with dequantise=True"
        )
    said = source.config.get("dtype") or source.config.get("torch_dtype")
    own = dtype_of(str(said).removeprefix("torch.")) if said else None
    found = {}
    for tensor in source.shapes:
        kind = (own or torch.float32) if tensor in packed else source.dtype(tensor)
        found[tensor] = chosen if chosen is not None and kind.is_floating_point else kind
    return found


def _packed(source: WeightSource) -> frozenset[str]:
    """The tensors that are stored in another way than they are read."""
    if not isinstance(source, FolderSource):
        return frozenset(source.shapes) if quantization(source.config) else frozenset()
    return frozenset(tensor for tensor in source.shapes if not isinstance(source.stored(tensor), InFile))


def _layer(site: Site, names: Sequence[str], weights: Sequence[float], view: WeightSource) -> LayerRecord:
    norms, total = site_norms(site, weights, names, view)
    found = {
        names[n]: AdapterInLayer(norms[names[n]], weight=weights[n] * site.factors[n] if site.factors else None)
        for n in site.experts
    }
    return LayerRecord(found, total)


def _warnings(adapters: Sequence[Adapter], weights: Sequence[float], dropped: bool) -> tuple[str, ...]:
    found = [note for adapter in adapters for note in adapter.notes]
    ignored = [adapter.name for adapter, weight in zip(adapters, weights, strict=True) if weight == 0]
    if ignored:
        found.append(f"weight 0 leaves these adapters out: {', '.join(ignored)}")
    for adapter in adapters:
        if adapter.companions:
            files = ", ".join(path.name for path in adapter.companions)
            found.append(f"files of weights beside the adapter {adapter.name} are not part of a checkpoint: {files}")
        left = [*adapter.extras.saved, *adapter.extras.tokens]
        if dropped and left:
            found.append(f"dropped, as modules_to_save='drop' asks: {', '.join(left)} of {adapter.name}")
    return tuple(found)
