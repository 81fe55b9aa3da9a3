"""`saliency`: Saliency-Aware Model Merging of LoRA adapters (Park, Lee and Sohn, ICML 2026, arXiv 2606.00511).

Every expert's update is a sum of rank-1 components b_k a_k^T. T times over: score every component against the state at
the start of the iteration,

    gamma_k = b_k^T (dR_n / dW) a_k          structural sensitivity: what it does for the expert's connectivity
    eta_k   = b_k^T (sum_i w_i tau_i) a_k    agreement with the merge
    s_k     = |gamma_k eta_k|

keep the top components of every expert in every layer, drop the rest. At the end the kept components of all experts
stand side by side: tau* = sum_n w_n sum_{k kept} b_k a_k^T.

Here is the loop. What it gives is again a problem, whose experts have only what was kept; `samerge.methods.chain` hands
it to the aggregation, for which SA-Merging takes the sum. Other criteria than the saliency are in
`samerge.methods.criteria`; those without gamma need no base.

gamma is taken relative to R_n (d log R_n / dW), which changes no ranking within an expert and makes experts comparable.
Scales s_n are folded into B, so that s_k is the same for (c B, s) and (B, c s).

Cost of an iteration: two reads of the base, 6 r + 4 operations for each of its weights and each expert.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from samerge.errors import BaseModelError
from samerge.linalg.factors import LoraFactors, norm
from samerge.linalg.sign_conflicts import Conflict, conflict_among, sample_rows, values_at
from samerge.linalg.truncation import svd_basis
from samerge.methods import criteria
from samerge.methods.budgets import Layer, budgets, choose
from samerge.methods.problem import Problem, Share, Site, by_module, iterate
from samerge.options.merge_options import MergeOptions
from samerge.parallel.processes import group
from samerge.parallel.progress import Advance
from samerge.parallel.supply import elsewhere
from samerge.saliency.connectivity import Connectivity, connectivity
from samerge.weights.resident import on_device


@dataclass(frozen=True)
class Selected:
    """What a selection leaves.

    Args:
        problem: the problem with the surviving components as the experts' factors.
        shares: what became of the experts, by module and number; of this process's sites.
        conflicts: signs of the surviving parts, by module; of this process's sites.
        log_connectivity: log R by expert number, where it was computed: when gamma was for the last time.
        kernel: the kernel that swept over the base, likewise.
    """

    problem: Problem
    shares: Mapping[str, Mapping[int, Share]]
    conflicts: Mapping[str, Conflict]
    log_connectivity: Mapping[int, float]
    kernel: str | None = None


def select(problem: Problem, options: MergeOptions) -> Selected:
    """Score and prune T times."""
    layers = _prepare(problem, options)
    limits = budgets(layers, problem, options)
    found: Connectivity | None = None
    if any(limit.prunes for limit in limits):  # at density 1 nothing needs a score
        fresh = {step for step in range(1, options.iterations + 1) if _is_fresh(step, options.refresh)}
        with problem.progress.task("scoring", len(fresh) * 2 * _graph_size(problem)) as advance:
            near = _near(problem)
            for step in range(1, options.iterations + 1):
                if found is None or step in fresh:
                    found = _connectivity(near, layers, options, advance)
                scores = _scored(layers, found, problem, options)
                chosen = choose(layers, limits, scores, step, options)
                found = _restricted(found, layers, chosen)
                layers = [layer.prune(pick) for layer, pick in zip(layers, chosen, strict=True)]
    own = {site.module for site in problem.own}
    here = [layer for layer in layers if layer.site.module in own]
    return Selected(
        replace(problem, sites=tuple(_left(layer) for layer in layers)),
        {layer.site.module: _shares(layer) for layer in here},
        {layer.site.module: _conflict(layer) for layer in here},
        dict(enumerate(found.log_connectivity)) if found is not None else {},
        found.kernel if found is not None else None,
    )


def _is_fresh(step: int, refresh: int) -> bool:
    """Whether gamma is computed anew in a step, from 1: in every `refresh`-th, or in the first alone."""
    return step == 1 or (refresh > 0 and (step - 1) % refresh == 0)


def _restricted(found: Connectivity, layers: Sequence[Layer], chosen: Sequence[Sequence[Tensor]]) -> Connectivity:
    """What was found, for the chosen components alone."""
    gamma = tuple(dict(one) for one in found.gamma)
    for layer, picks in zip(layers, chosen, strict=True):
        for n, pick in zip(layer.experts, picks, strict=True):
            known = gamma[n].get(layer.site.key or "") if layer.site.inside else None
            if known is not None:
                gamma[n][layer.site.key or ""] = replace(known, values=known.values[pick])
    return replace(found, gamma=gamma)


def _prepare(problem: Problem, options: MergeOptions) -> list[Layer]:
    """All layers as they are before any pruning; the components are only of this process's sites."""
    basis = svd_basis if options.basis == "svd" else LoraFactors.existing
    held: dict[str, dict[int, LoraFactors]] = {}

    def load(site: Site) -> dict[int, tuple[int, float]]:
        held[site.module] = {n: basis(f) for n, f in problem.factors(site).items()}
        return {n: (f.rank, float(norm(f))) for n, f in held[site.module].items()}

    before = by_module(problem.sites, load, iterate(problem, "preparing"))
    layers = []
    for site in problem.sites:
        sizes = before[site.module]
        factors = held.get(site.module) or {n: elsewhere(rank, site.shape) for n, (rank, _) in sizes.items()}
        layers.append(
            Layer(
                site,
                tuple(factors),
                tuple(factors.values()),
                tuple(torch.arange(f.rank, device=problem.device) for f in factors.values()),
                tuple(sizes.values()),
            )
        )
    return layers


def _graph_size(problem: Problem) -> int:
    if problem.graph is None or problem.source is None:
        return 0
    return sum(math.prod(problem.source.shapes[tensor]) for tensor in problem.graph.tensors)


def _near(problem: Problem) -> Problem:
    """The problem with the graph's weights where they are computed with, for as long as iterations read them."""
    if problem.graph is None or problem.source is None:
        return problem
    return replace(problem, source=on_device(problem.source, problem.graph.tensors, problem.device))


def _connectivity(problem: Problem, layers: Sequence[Layer], options: MergeOptions, advance: Advance) -> Connectivity:
    experts: list[dict[str, LoraFactors]] = [{} for _ in problem.names]
    for layer in layers:
        if layer.site.inside and layer.site.key is not None:
            for n, factors in zip(layer.experts, layer.factors, strict=True):
                experts[n][layer.site.key] = factors
    if problem.graph is None or problem.source is None or not any(experts):
        return Connectivity(tuple({} for _ in experts), ())
    dtype = {"float32": torch.float32, "float64": torch.float64}[options.precision]
    owners = {site.key: site.owner for site in problem.sites if site.key is not None and site.owner is not None}
    found = connectivity(
        problem.graph,
        problem.source,
        experts,
        device=problem.device,
        dtype=dtype,
        advance=advance,
        owners=owners or None,
    )
    for name, log in zip(problem.names, found.log_connectivity, strict=True):
        if math.isnan(log) or log == math.inf:
            raise BaseModelError(
                f"scoring adapter {name!r} on the base model {problem.source.name!r}: the connectivity R comes out "
                f"with log R = {log}; a weight of the base holds NaN, infinite or huge values. Check the checkpoint, "
                f'or pass connectivity="local" where that weight is not adapted'
            )
    return found


def _scores(layer: Layer, found: Connectivity, problem: Problem, options: MergeOptions) -> list[Tensor]:
    """The scores of the survivors of every expert."""
    criterion = criteria.kind_of(options.selection)
    if criterion == "random":
        return [
            criteria.drawn(options.selection, problem.names[n], layer.site.module, count).to(kept.device)[kept]
            for n, kept, (count, _) in zip(layer.experts, layer.kept, layer.before, strict=True)
        ]
    etas: Sequence[Tensor | None] = [None] * len(layer.experts)
    if criterion in criteria.AGREE:
        etas = layer.eta(problem.weights)
    result = []
    for n, eta, factors in zip(layer.experts, etas, layer.factors, strict=True):
        gamma = None
        sensitivity = found.gamma[n].get(layer.site.key or "") if layer.site.inside else None
        if sensitivity is not None and found.log_connectivity[n] > -math.inf:  # R = 0 tells nothing apart
            gamma = criteria.relative(sensitivity.values, sensitivity.log, found.log_connectivity[n])
        signed = options.agreement == "signed"
        result.append(criteria.scores(criterion, factors, gamma, eta, problem.weights[n], signed))
    return result


def _scored(
    layers: Sequence[Layer], found: Connectivity, problem: Problem, options: MergeOptions
) -> list[list[Tensor]]:
    """The scores of all layers; with several processes each layer's from one of them, so that all choose alike."""
    together = group()
    if together.size == 1:
        return [_scores(layer, found, problem, options) for layer in layers]
    ranks = [[factors.rank for factors in layer.factors] for layer in layers]
    sizes = [sum(own) for own in ranks]

    def fill(flat: Tensor) -> None:
        for layer, part in zip(layers, torch.split(flat, sizes), strict=True):
            if (layer.site.owner or 0) == together.rank and len(part):
                part.copy_(torch.cat(_scores(layer, found, problem, options)))

    flat = together.summed((sum(sizes),), torch.empty(0, dtype=torch.float64, device=problem.device), fill)
    return [list(torch.split(part, own)) for part, own in zip(torch.split(flat, sizes), ranks, strict=True)]


def _left(layer: Layer) -> Site:
    """The site with the surviving components in place of the experts' factors."""
    adapted = {
        n: replace(layer.site.experts[n], rank=factors.rank, load=partial(_itself, factors))
        for n, factors in zip(layer.experts, layer.factors, strict=True)
    }
    return replace(layer.site, experts=adapted)


def _itself(factors: LoraFactors) -> LoraFactors:
    return factors


def _conflict(layer: Layer) -> Conflict:
    rows = sample_rows(layer.site.shape)
    return conflict_among([values_at(factors, rows) for factors in layer.factors])


def _shares(layer: Layer) -> dict[int, Share]:
    fates = {}
    for n, factors, kept, (count, before) in zip(layer.experts, layer.factors, layer.kept, layer.before, strict=True):
        energy = float(norm(factors) / before) ** 2 if before else 1.0
        fates[n] = Share(count, tuple(kept.tolist()), before, energy)
    return fates
