"""`elementwise`: each adapter keeps its most salient single elements (SA-Merging of full weights), then truncate.

Park, Lee and Sohn, ICML 2026, arXiv 2606.00511.

Every adapter's update tau_n = s_n B_n A_n is taken as a full matrix, a few rows at a time. T times over, the elements
are scored against the state at the start of the iteration and those with the largest score stay; m_n is their mask, and
T = sum_i w_i m_i * tau_i the merge as it stands:

    S_n = dR_n/dtau_n * T                      agreement="paper"
    S_n = |dR_n/dtau_n| * w_n tau_n * T        agreement="task", positive only where the adapter agrees with the merge

After masking an update is no longer of low rank, so every merged layer is brought back to the rank of the result
by a randomised SVD that asks for T some rows at a time. What that loses is in the report, layer by
layer; it can be much, and then a warning says so. Layers in which nothing was masked are truncated exactly, through the
factors.

Modules outside the flow graph have no dR/dtau; they are pruned by w_n tau_n * T (as "task" with alpha = beta = 1).
Cost of an iteration: as `saliency`, and some ten operations more for each element and adapter. Memory: the masks, one
bit an element and adapter, and two float tensors of the largest weight while it is scored; afterwards no merged update
exists as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samerge.graph import FlowGraph
from samerge.linalg.factors import LoraFactors, concatenate, norm, squared_norm
from samerge.linalg.randomised_svd import truncated_svd
from samerge.linalg.sign_conflicts import conflict_among, sample_rows, values_at
from samerge.linalg.triplets import singular, zero
from samerge.linalg.truncation import truncate
from samerge.methods.gamma import check_logs
from samerge.methods.memory import check_memory
from samerge.methods.method import Begun, MergedLayer, Method, Share
from samerge.methods.problem import Part, Problem, Site, each_alone, iterate
from samerge.options.elements import ElementOptions
from samerge.saliency.element_masks import Masks
from samerge.saliency.elements import Pruner
from samerge.saliency.task_vectors import LowRankVectors, entries, oriented, shape_of


@dataclass(frozen=True)
class _Layer:
    """One site: its weight's key, and the updates of the experts that take part, by their place among the active ones.

    Args:
        site: the site.
        key: its weight.
        factors: the updates.
    """

    site: Site
    key: str
    factors: Mapping[int, LoraFactors]


def begin(problem: Problem, options: ElementOptions) -> Begun:
    """Score and prune T times; then every layer is brought to its rank."""
    assert problem.source is not None
    check_memory(problem, held=2, work=_scoring_bytes, masks=True)
    active = [n for n, weight in enumerate(problem.weights) if weight != 0]
    places = {n: place for place, n in enumerate(active)}
    layers = []
    for site in iterate(problem, "preparing"):
        factors = {places[n]: part.factors for n, part in problem.parts(site, hold=True).items()}
        layers.append(_Layer(site, site.key or "", factors))
    vectors = LowRankVectors(
        [
            {
                layer.key: oriented(layer.factors[n], layer.site.layout.transposed)
                for layer in layers
                if n in layer.factors
            }
            for n in range(len(active))
        ]
    )
    weights = [problem.weights[n] for n in active]
    at = {layer.key: [problem.weights_at(layer.site)[n] for n in active] for layer in layers if layer.site.factors}
    pruner = Pruner(problem.source, vectors, weights, Masks(), problem.device, own=at)
    logs = _prune(pruner, layers, problem, options) if active else ()
    check_logs(dict(zip([problem.names[n] for n in active], logs, strict=False)), problem.source.name)
    left = {layer.site.module: layer for layer in layers}

    def merged(site: Site, parts: Mapping[int, Part]) -> MergedLayer:
        return _merged(pruner, left.pop(site.module), active, problem.target)

    return Begun(merged, dict(zip(active, logs, strict=True)) if logs else {})


def _prune(pruner: Pruner, layers: Sequence[_Layer], problem: Problem, options: ElementOptions) -> tuple[float, ...]:
    """Fill the masks; gives log R of every active expert, or nothing where none was needed."""
    inside = [layer for layer in layers if layer.site.inside]
    outside = [layer for layer in layers if not layer.site.inside]
    if options.density == 1:  # nothing needs a score
        return ()
    graphs: list[tuple[FlowGraph, bool]] = []
    if inside and problem.graph is not None:
        graphs.append((problem.graph, options.agreement == "task"))
    if outside:
        graphs.append((each_alone(layer.site for layer in outside), True))
    logs: tuple[float, ...] = ()
    size = sum(2 * options.iterations * entries(pruner.source, graph.edges) for graph, _ in graphs)
    with problem.progress.task("scoring", size) as advance:
        for number, (graph, task) in enumerate(graphs):
            found = pruner.run(graph, options.density, options.iterations, task, advance)
            if number == 0 and inside:
                logs = found
    return logs


def _scoring_bytes(shape: tuple[int, int], components: int) -> int:
    """Bytes for the merge of a weight and for the scores of each thread."""
    return 4 * shape[0] * shape[1] * (1 + torch.get_num_threads())


def _merged(pruner: Pruner, layer: _Layer, active: Sequence[int], rank: int) -> MergedLayer:
    """The layer's merged update of its rank, what that lost, and what each expert kept before."""
    if not layer.factors:
        return MergedLayer(zero(layer.site.shape), {})
    found = {active[n]: _share(pruner, layer, n) for n in layer.factors}
    shares = {n: share for n, (share, _) in found.items()}
    conflict = conflict_among([looked for _, looked in found.values()])
    if all(pruner.masks.count(n, layer.key) is None for n in layer.factors):
        update, lost = truncate(
            concatenate(list(layer.factors.values()), [pruner.weight(n, layer.key) for n in layer.factors]), rank
        )
        return MergedLayer(singular(update), shares, lost, conflict)

    def rows(start: int, stop: int) -> Tensor:
        merged = _blank(pruner, layer.key, start, stop).zero_()
        for n in layer.factors:
            merged.add_(pruner.task_vector(n, layer.key, start, merged), alpha=pruner.weight(n, layer.key))
        return merged

    shape = shape_of(pruner.source, layer.key)
    update, _, lost = truncated_svd(rows, shape, rank, device=pruner.device, dtype=pruner.dtype)
    if layer.site.layout.transposed:
        update = update.turned()
    return MergedLayer(singular(update), shares, lost, conflict)


def _share(pruner: Pruner, layer: _Layer, n: int) -> tuple[Share, Tensor]:
    """What an expert kept, and its part on the rows that are looked at for signs, (m, in)."""
    rows, across = sample_rows(layer.site.shape), layer.site.layout.transposed
    factors, kept = layer.factors[n], pruner.masks.count(n, layer.key)
    size, count = float(norm(factors)), math.prod(layer.site.shape)
    if kept is None or not size:
        share = Share(factors.rank, elements=(count if kept is None else kept, count))
        return share, values_at(factors, rows)
    left, looked = 0.0, []
    for start, stop in pruner.tiles(layer.key):
        tau = pruner.task_vector(n, layer.key, start, _blank(pruner, layer.key, start, stop))
        left += squared_norm(tau)
        own = rows if across else rows[(rows >= start) & (rows < stop)] - start
        looked.append(tau[:, own.to(tau.device)].T if across else tau[own.to(tau.device)])
    share = Share(factors.rank, energy=min(1.0, left / size**2), elements=(kept, count))
    return share, torch.cat(looked, dim=1 if across else 0)


def _blank(pruner: Pruner, key: str, start: int, stop: int) -> Tensor:
    """A tile in place of the base's, whose values low-rank updates do not need."""
    return torch.empty(stop - start, shape_of(pruner.source, key)[1], dtype=pruner.dtype, device=pruner.device)


METHOD = Method("elementwise", begin, ElementOptions, base="needed", scaling="auto", by_site=False)
