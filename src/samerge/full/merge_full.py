"""`merge_full`: checkpoints in, one model out. Thin: it reads, prunes, measures, and hands over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from typing_extensions import Unpack

from samerge.errors import OptionError
from samerge.full.assembly import Assembly
from samerge.full.full_keywords import FullKeywords
from samerge.full.full_options import FullOptions, resolve
from samerge.full.full_record import record
from samerge.full.given_models import ModelLike, Opened, open_experts, open_model
from samerge.full.inside import graph_for
from samerge.full.measure import measure, measure_outside
from samerge.full.merged_model import MergedModel
from samerge.graph import FlowGraph
from samerge.merging.alignment.checkpoints import Mismatch, mismatches, refuse, same_names
from samerge.merging.alignment.views import RenamedSource
from samerge.merging.inputs import device_of, dtype_of, weights_of
from samerge.parallel.progress import Progress
from samerge.report.origin import seconds_of
from samerge.report.report import Report
from samerge.saliency.element_masks import Masks
from samerge.saliency.elements import Pruner
from samerge.saliency.flows import live_weights
from samerge.saliency.task_vectors import CheckpointVectors, entries
from samerge.saliency.work_folder import WorkFolder
from samerge.weights import WeightSource
from samerge.weights.quantised import quantization


def merge_full(
    base: ModelLike,
    experts: Mapping[str, ModelLike] | Sequence[ModelLike],
    *,
    weights: Mapping[str, float] | Sequence[float] | None = None,
    method: str = "elementwise",
    work_dir: str | Path | None = None,
    progress: bool = True,
    **options: Unpack[FullKeywords],
) -> MergedModel:
    """Merge several fully fine-tuned checkpoints of one base model into one, element by element.

    Everything is streamed, a few rows of a weight at a time: no model is built, and memory holds the masks (one bit
    for each element and expert) and two float tensors of the largest weight.

    Args:
        base: a folder with `config.json` and safetensors, a hub id, or a loaded model.
        experts: name -> folder, hub id or loaded model, or a list of these (named after their last path part).
        weights: by name, or in order; 1.0 each by default. May be negative; 0 leaves an expert out.
        method: "elementwise" (default), or "paper", SA-Merging as published: scaling 1.0, no residual edges, tensors
            outside the graph summed.
        work_dir: keep the masks in files below this folder instead of in memory.
        progress: show progress bars when on a terminal.
        **options: see `FullKeywords`; `samerge full --help` tells what each means.

    Returns:
        The merged model: `.save(path)`, `.as_lora(rank)`, `.tensor(name)`, `.report`, `.push_to_hub(repo_id)`. It
        reads the checkpoints again when it is saved.

    Raises:
        OptionError: an option is out of its range or does not go with another.
        BaseModelError: the base or an expert cannot be read, or they do not fit each other.
        GraphError: the base's architecture is not known; says the ways on.
        HubError: a download failed.

    Formula (Park, Lee and Sohn, ICML 2026, arXiv 2606.00511): keep the elements with the largest S_n among those that
    survive, ten times; theta* = theta0 + lambda sum_n w_n tau_n. See docs/full.md.

    Example:
        ```python
        merged = samerge.merge_full("ada/base", {"math": "ada/base-math", "code": "./base-code"})
        merged.save("merged/")
        merged.as_lora(rank=32).save("merged-lora/")
        ```
    """
    resolved = resolve(method, options)
    bars = Progress(progress)
    with bars.task("reading", 1):
        opened = open_experts(experts)
        values = weights_of(weights, [expert.name for expert in opened], "expert")
        root = open_model("base", base, companions=True)
        active = [n for n, weight in enumerate(values) if weight != 0]
        if not active:
            raise OptionError("every expert has the weight 0, so that there is nothing to merge; give other weights")
        sources, found = _aligned(root, [opened[n] for n in active], resolved)
    work = None if work_dir is None else WorkFolder(work_dir)
    try:
        return _merged(root, opened, values, active, sources, found, method, resolved, work, bars, progress)
    except BaseException:
        if work is not None:
            work.close()
        raise


def _aligned(
    base: Opened, experts: Sequence[Opened], options: FullOptions
) -> tuple[list[WeightSource], list[Mismatch]]:
    """The experts under the base's names, and where they differ from it."""
    sources: list[WeightSource] = []
    found: list[Mismatch] = []
    for expert in experts:
        names = same_names(base.source.shapes, expert.source.shapes)
        found += mismatches(base.source, expert.source, names, expert.name)
        sources.append(RenamedSource(expert.source, names))
    if options.mismatched == "error":
        refuse(found, base.source.name)
    return sources, found


def _merged(
    base: Opened,
    experts: Sequence[Opened],
    weights: tuple[float, ...],
    active: Sequence[int],
    sources: Sequence[WeightSource],
    found: Sequence[Mismatch],
    method: str,
    options: FullOptions,
    work: WorkFolder | None,
    bars: Progress,
    progress: bool,
) -> MergedModel:
    source = base.source
    kept = frozenset(item.tensor for item in found if item.base is not None)
    kept |= {tensor for tensor in source.shapes if any(tensor not in expert.shapes for expert in sources)}  # buffers
    graph = graph_for(source, options.connectivity, options.residual, kept)
    edges = {edge.key: edge for edge in live_weights(graph)}
    pruned = frozenset(key for key, edge in edges.items() if edge.tensor not in kept)
    pruner = Pruner(
        source,
        CheckpointVectors(sources, [pruned] * len(sources)),
        [weights[n] for n in active],
        Masks(None if work is None else work.path),
        device_of(options.device, base.device),
        torch.float64 if base.dtype == torch.float64 else torch.float32,
    )
    logs = _prune(pruner, graph, options, bars)
    names = tuple(experts[n].name for n in active)
    with bars.task("measuring", entries(source, edges.values())) as advance:
        measured = measure(pruner, sorted(edges), options.scaling, names, advance)
    inside = {edge.tensor for edge in edges.values()}
    outside = [t for t in source.shapes if t not in inside and t not in kept and source.dtype(t).is_floating_point]
    assembly = Assembly(
        pruner,
        sources,
        {key: item.scale for key, item in measured.items()},
        options.outside,
        1.0 if options.scaling == "auto" else float(options.scaling),
        kept,
        {t: _dtype(source, t, options) for t in source.shapes},
    )
    with bars.task("measuring what is outside the graph", 1):
        beside = measure_outside(assembly, outside, names)
    with bars.task("hashing", 1):
        told = record(
            *(base, experts, weights, method, options, pruner, active, measured, beside, found, logs, bars),
            _warnings(base, experts, weights, found),
        )
    told = replace(told, timings=seconds_of(bars))
    turned = {key: edge.transposed for key, edge in sorted(edges.items()) if edge.tensor not in kept}
    folders = {expert.name: expert.folder for expert in experts if expert.folder is not None}
    return MergedModel(
        *(Report(told), assembly, base, folders, dtype_of(options.dtype), progress), transposed=turned, work=work
    )


def _prune(pruner: Pruner, graph: FlowGraph, options: FullOptions, bars: Progress) -> tuple[float, ...]:
    # Nothing is pruned at density 1, and one walk tells log R.
    iterations = options.iterations if options.density < 1 else 1
    with bars.task("pruning", 2 * iterations * entries(pruner.source, graph.edges)) as advance:
        return pruner.run(graph, options.density, iterations, options.agreement == "task", advance)


def _dtype(source: WeightSource, tensor: str, options: FullOptions) -> torch.dtype:
    own, chosen = source.dtype(tensor), dtype_of(options.dtype)
    return chosen if chosen is not None and own.is_floating_point else own


def _warnings(
    base: Opened, experts: Sequence[Opened], weights: Sequence[float], found: Sequence[Mismatch]
) -> list[str]:
    told = []
    ignored = [expert.name for expert, weight in zip(experts, weights, strict=True) if weight == 0]
    if ignored:
        told.append(f"weight 0 leaves these experts out: {', '.join(ignored)}")
    stays = sorted({item.tensor for item in found if item.base is not None})
    if stays:
        told.append(f"{len(stays)} tensors differ between the checkpoints and stay the base's: {', '.join(stays[:5])}")
    added = sorted({f"{item.tensor} of {item.expert}" for item in found if item.base is None})
    if added:
        told.append(f"{len(added)} tensors that the base does not have are left out: {', '.join(added[:5])}")
    kinds = {str(model.source.config.get("model_type")) for model in (base, *experts)}
    if len(kinds) > 1:
        told.append(f"the checkpoints name different model types: {', '.join(sorted(kinds))}")
    if quantization(base.source.config):
        told.append("the base is quantised; the merged model is written in full precision")
    return told
