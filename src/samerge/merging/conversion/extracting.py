"""`extract_adapter`: a fully trained checkpoint as a LoRA adapter of its base, streamed (`linalg.randomised_svd`)."""

from __future__ import annotations

import math
import warnings as python_warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samerge.adapters import AdaptedModule, Adapter
from samerge.adapters.model import at_hand
from samerge.errors import BaseModelError
from samerge.linalg.factors import LoraFactors
from samerge.linalg.randomised_svd import truncated_svd
from samerge.linalg.triplets import singular
from samerge.merging.alignment.checkpoints import same_names
from samerge.merging.alignment.memory import in_memory
from samerge.merging.alignment.views import RenamedSource
from samerge.merging.conversion.changes import Change, changes
from samerge.merging.conversion.compressing import Size, alone
from samerge.merging.conversion.extractable import Candidate, candidates
from samerge.merging.finish import Finisher
from samerge.merging.inputs import BaseLike, default_name_of, device_of, open_base
from samerge.merging.merged_adapter import MergedAdapter
from samerge.methods.method import Begun, MergedLayer, Share
from samerge.methods.problem import Problem, Site
from samerge.options.module_names import module_type
from samerge.parallel.progress import Progress
from samerge.report.report import Report
from samerge.report.stored import LayerRecord
from samerge.weights import FolderSource, WeightSource, matrix_shape

#: The rank that is looked for first where only the energy is given; doubled until the energy is there.
_FIRST_RANK = 64

#: Types of tensors that a warning lists.
_SHOWN = 24


def extract_adapter(
    base: BaseLike,
    expert: BaseLike,
    rank: int | None = None,
    *,
    energy: float | None = None,
    embeddings: bool = False,
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
    progress: bool = True,
) -> MergedAdapter:
    """Make a LoRA adapter of what a full fine-tuning changed: in every linear weight the best approximation, nearly.

    Every two-dimensional weight that differs from the base's is taken, but for embeddings and routers of experts. Both
    models are streamed, some rows of a weight at a time; neither is built or changed, and the difference never exists
    as a whole. The truncated SVD is a randomised one, within a percent of the best (exact for small matrices).

    What changed and cannot be in a LoRA (norms, biases, embeddings) is left out: a warning names it, with the largest
    relative change, and the record lists every tensor (`left_out`).

    Args:
        base: the model that the fine-tuning started from: a folder, a hub id, or a loaded model.
        expert: the fine-tuned model, likewise.
        rank: no layer gets a larger one.
        energy: every layer gets the smallest rank that keeps this share of its difference's squared norm, in (0, 1];
            together with `rank`, not more than that.
        embeddings: take embeddings, too; not every server can load an adapter that has them.
        dtype: of the output; the expert's own by default. Computed in float32.
        device: where to compute; the CPU by default, or where the base lies if it is a loaded model.
        progress: show progress bars when on a terminal.

    Returns:
        The adapter, as `samerge.merge` returns its own: `.report`, `.save(path)`, `.apply_to(model, adapter_name)`.

    Raises:
        OptionError: neither rank nor energy, or one is out of its range.
        BaseModelError: a model cannot be read, they do not belong together, or no linear weight differs.
        HubError: a download failed.

    Example:
        ```python
        adapter = samerge.extract_adapter("meta-llama/Llama-3.1-8B", "./my-fine-tune", rank=32)
        adapter.save("my-lora/")
        ```
    """
    size = Size(rank, energy, "extracting an adapter")
    layers: dict[str, MergedLayer] = {}  # taken off the checkpoint below

    def begin(problem: Problem, options: object) -> Begun:
        return Begun(lambda site, parts: layers[site.module])

    planned = alone("extract", begin, size, {"dtype": dtype, "device": device})
    bars = Progress(progress)
    with bars.task("reading", 1):
        (source, _), (other, files) = _open(base), _open(expert)
        names = same_names(source.shapes, other.shapes)
    called = default_name_of(expert)
    place = device_of(planned.common.device, getattr(source, "device", "cpu"))
    with bars.task("comparing", sum(torch.Size(source.shapes[name]).numel() for name in names)) as advance:
        found = changes(source, other, names, called, place, advance)
    taken, left = candidates(source, found, embeddings)
    if not taken:
        other_shape = [name for name in names if tuple(source.shapes[name]) != tuple(other.shapes[name])]
        shapes = "".join(
            f"; {len(other_shape)} have other shapes, such as {name!r}, {tuple(source.shapes[name])} in the base and "
            f"{tuple(other.shapes[name])} in the expert"
            for name in other_shape[:1]
        )
        raise BaseModelError(
            f"extracting an adapter from {called!r}: no linear weight differs from the base {source.name!r} "
            f"({len(names)} of the base's {len(source.shapes)} tensors are in the expert, "
            f"{sum(change.norm > 0 for change in found)} differ{shapes}). "
            f"Is it the model that the expert was trained from?"
        )
    sites, taken_off, adapter = _extract(source, other, names, taken, size, called, place, bars)
    layers.update(taken_off)
    problem = Problem((called,), (1.0,), sites, adapter.rank, source, None, torch.device("cpu"), bars)
    begun = planned.method.begin(problem, planned.own)
    finisher = Finisher(problem, [adapter], planned, begun, compare=False)
    for site in sites:
        parts = problem.parts(site)
        finisher.add(site, parts, begun.layer(site, parts))
    result = finisher.done()
    with bars.task("hashing", 1):
        digests = None if files is None else files.sha256()
    strays = _strays(source, other, names)
    return replace(result, report=_report(result.report, embeddings, left, strays, digests))


def _open(model: BaseLike) -> tuple[WeightSource, FolderSource | None]:
    """A model's weights, under the names that they have in memory: adapters are named after those; and its folder."""
    source = open_base(model, required=True)
    assert source is not None
    memory = in_memory(source) if isinstance(model, (str, Path)) else None
    folder = source if isinstance(source, FolderSource) else None
    return source if memory is None else RenamedSource(source, memory.names), folder


def _extract(
    source: WeightSource,
    other: WeightSource,
    names: Mapping[str, str],
    taken: list[Candidate],
    size: Size,
    called: str,
    device: torch.device,
    bars: Progress,
) -> tuple[tuple[Site, ...], dict[str, MergedLayer], Adapter]:
    """The sites, their layers, and what stands for an adapter in the record."""
    layers: dict[str, MergedLayer] = {}
    modules: dict[str, AdaptedModule] = {}
    sites = []
    with bars.task("extracting", len(taken)) as advance:
        for one in taken:
            factors, norm, lost = _factors(source, other, names[one.tensor], one, size, called, device)
            dtype = other.dtype(names[one.tensor])
            shape = factors.shape
            modules[one.module] = AdaptedModule(one.layout, factors.rank, shape, dtype, at_hand(factors))
            sites.append(Site(one.module, one.key, one.layout, shape, {0: modules[one.module]}, inside=True))
            layers[one.module] = MergedLayer(singular(factors), {0: Share(min(shape), norm=norm)}, lost)
            advance(1)
    config = {"base_model_name_or_path": source.name, "task_type": _task(source.config)}
    return tuple(sites), layers, Adapter(called, other.name, config, modules)


def _factors(
    source: WeightSource,
    other: WeightSource,
    theirs: str,
    one: Candidate,
    size: Size,
    called: str,
    device: torch.device,
) -> tuple[LoraFactors, float, float]:
    """The update of one weight as (out, in) factors on the CPU, its norm before the truncation, what that lost."""
    shape = matrix_shape(source.shapes[one.tensor], one.expert)

    def rows(start: int, stop: int) -> Tensor:
        tile = other.read(theirs, start, stop, one.expert).to(device, torch.float32)
        base = source.read(one.tensor, start, stop, one.expert).to(device, torch.float32)
        return (tile - base).reshape(-1, shape[1])

    most = min(size.rank or min(shape), *shape)
    rank = most if size.energy is None else min(most, _FIRST_RANK)
    while True:
        try:
            factors, values, lost = truncated_svd(rows, shape, rank, energy=size.energy, device=device)
        except ValueError as error:
            raise BaseModelError(
                f"extracting an adapter from {called!r}, tensor {one.tensor!r}: {error}; it was probably saved after "
                f"training had diverged"
            ) from error
        if rank == most or (size.energy is not None and lost <= 1 - size.energy):
            break
        rank = min(most, 2 * rank)
    kept = float(values.square().sum()) ** 0.5
    norm = kept / (1 - lost) ** 0.5 if lost < 1 else kept
    factors = factors.to(torch.device("cpu"))
    if one.layout.transposed:
        factors = factors.turned()
    return factors, norm, lost


def _task(config: Mapping[str, Any]) -> str | None:
    """PEFT's task type where it changes nothing but the class that PEFT wraps the model in."""
    names = " ".join(config.get("architectures") or ())
    if "ForCausalLM" in names or "LMHeadModel" in names:
        return "CAUSAL_LM"
    return None


def _strays(source: WeightSource, other: WeightSource, names: Mapping[str, str]) -> dict[str, str]:
    """Tensors that only one of the two has, or whose shapes differ, and which of these it is."""
    lacking = {tensor: "not in the expert" for tensor in source.shapes if tensor not in names}
    added = {tensor: "not in the base" for tensor in other.shapes if tensor not in set(names.values())}
    shapes = {
        tensor: f"{tuple(source.shapes[tensor])} in the base, {tuple(other.shapes[theirs])} in the expert"
        for tensor, theirs in names.items()
        if tuple(source.shapes[tensor]) != tuple(other.shapes[theirs])
    }
    return dict(sorted({**lacking, **added, **shapes}.items()))


def _report(
    report: Report,
    embeddings: bool,
    left: list[Change],
    strays: Mapping[str, str],
    digests: Mapping[str, str] | None,
) -> Report:
    """The report with what was left out, which is warned of, too."""
    found = []
    if left:
        found.append(
            f"changed, but not in the adapter, which holds linear weights{' and embeddings' if embeddings else ''} "
            f"only: {_listed(left)}. Merge or serve the whole checkpoint if these matter"
        )
    if strays:
        named = [f"{tensor} ({what})" for tensor, what in strays.items()]
        more = f"; and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
        found.append(f"not compared, and not in the adapter: {'; '.join(named[:_SHOWN])}{more}")
    for text in found:
        python_warnings.warn(text, stacklevel=3)
    record = report.record
    return Report(
        replace(
            record,
            inputs=tuple(replace(one, sha256=digests) for one in record.inputs),
            options={"embeddings": embeddings, **record.options},
            layers={module: _compared(layer) for module, layer in record.layers.items()},
            left_out={**{change.tensor: change.relative for change in left}, **strays},
            warnings=(*record.warnings, *found),
        )
    )


def _compared(layer: LayerRecord) -> LayerRecord:
    """How a truncated difference compares with the whole, which follows from what it lost: it is a projection of it."""
    kept, off = math.sqrt(1 - layer.lost), math.sqrt(layer.lost)
    own = {
        name: replace(one, cosine=kept if one.norm else None, interference=off if one.norm else None)
        for name, one in layer.adapters.items()
    }
    return replace(layer, adapters=own)


def _listed(left: list[Change]) -> str:
    """Tensors by type, those that changed most first."""
    kinds: dict[str, list[float]] = {}
    for change in left:
        kinds.setdefault(module_type(change.tensor), []).append(change.relative)
    order = sorted(kinds, key=lambda kind: (-max(kinds[kind]), kind))
    shown = []
    for kind in order[:_SHOWN]:
        most, count = max(kinds[kind]), len(kinds[kind])
        how = "from zero" if math.isinf(most) else f"by {'up to ' if count > 1 else ''}{most:.2g} of its norm"
        shown.append(f"{kind} ({f'{count} x, ' if count > 1 else ''}{how})")
    more = f"; and {len(order) - _SHOWN} more types" if len(order) > _SHOWN else ""
    return "; ".join(shown) + more
