"""How many components a selection keeps of every expert in every layer, and which ones, given their scores.

With a density p, an expert with r components in a layer keeps max(1, round(r p^(t/T))) after step t of T; an adaptive
density is spread over the layers first (`samerge.linalg.adaptive_density`). With a rank, the number in all is fixed:
shared among the experts in proportion to their ranks, or, where there are more experts than places, ranked together
in the last step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samerge.linalg.adaptive_density import adaptive_densities, evenness
from samerge.linalg.factors import LoraFactors, component_norms
from samerge.methods.criteria import READ_BASE, kind_of
from samerge.methods.problem import Problem, Site, by_module
from samerge.options.merge_options import MergeOptions
from samerge.saliency.scores import agreement, kept_count, shares, top


@dataclass(frozen=True)
class Layer:
    """The state of one site: surviving components of every expert, in the order of `experts`.

    Args:
        site: the site.
        experts: numbers of the experts that take part.
        factors: their surviving components; on the meta device where another process holds the site.
        kept: original numbers of those, one tensor for each expert.
        before: for each expert, number of components and norm before any pruning.
    """

    site: Site
    experts: tuple[int, ...]
    factors: tuple[LoraFactors, ...]
    kept: tuple[Tensor, ...]
    before: tuple[tuple[int, float], ...]

    def eta(self, weights: Sequence[float]) -> list[Tensor]:
        """eta of every expert's components."""
        return agreement(self.factors, [weights[n] for n in self.experts])

    def prune(self, chosen: Sequence[Tensor]) -> Layer:
        """Keep the `chosen` ones among the survivors of each expert."""
        return replace(
            self,
            factors=tuple(f.select(pick) for f, pick in zip(self.factors, chosen, strict=True)),
            kept=tuple(k[pick] for k, pick in zip(self.kept, chosen, strict=True)),
        )


@dataclass(frozen=True)
class Budget:
    """How far a layer is pruned: the share that each expert keeps at the end, and perhaps a pooled number."""

    fractions: tuple[float, ...]
    pooled: int | None = None

    @property
    def prunes(self) -> bool:
        """Whether anything is dropped."""
        return self.pooled is not None or any(fraction < 1 for fraction in self.fractions)


def budgets(layers: Sequence[Layer], problem: Problem, options: MergeOptions) -> list[Budget]:
    """The budget of every layer."""
    free = [options.prune_outside or within(layer.site, options) for layer in layers]
    if not isinstance(options.density, str):
        return [_budget(layer, problem, options, free=pruned) for layer, pruned in zip(layers, free, strict=True)]
    fractions = [[1.0] * len(layer.factors) for layer in layers]
    number = {layer.site.module: i for i, layer in enumerate(layers)}
    evennesses = by_module(problem.sites, lambda site: _evennesses(layers[number[site.module]]))
    for n in range(len(problem.names)):
        places = [(i, layer.experts.index(n)) for i, layer in enumerate(layers) if free[i] and n in layer.experts]
        sizes = [layers[i].factors[j].rank for i, j in places]
        even = [evennesses[layers[i].site.module][j] for i, j in places]
        found = adaptive_densities(even, sizes, options.mean_density or 1.0)
        for (i, j), density in zip(places, found, strict=True):
            fractions[i][j] = density
    return [Budget(tuple(own)) for own in fractions]


def _evennesses(layer: Layer) -> list[float]:
    """How even the components of every expert are."""
    norms = [component_norms(factors) for factors in layer.factors]
    return [evenness(float(own.sum()), float(own.square().sum()), len(own)) for own in norms]


def _budget(layer: Layer, problem: Problem, options: MergeOptions, free: bool) -> Budget:
    ranks = [f.rank for f in layer.factors]
    if not free:
        return Budget((1.0,) * len(ranks))
    if options.mean_density is not None:
        return Budget((options.mean_density,) * len(ranks))
    rank = options.rank or problem.rank
    if sum(ranks) > rank and sum(r > 0 for r in ranks) > rank:
        return Budget((rank / sum(ranks),) * len(ranks), pooled=rank)
    return Budget(tuple(k / r if r else 1.0 for k, r in zip(shares(ranks, rank), ranks, strict=True)))


def choose(
    layers: Sequence[Layer],
    budgets: Sequence[Budget],
    scores: Sequence[list[Tensor]],
    step: int,
    options: MergeOptions,
) -> list[list[Tensor]]:
    """For every layer and expert, which survivors stay after this step."""
    chosen = [
        _choose_pooled(own, budget.pooled)
        if budget.pooled is not None and step == options.iterations
        else [
            top(one, kept_count(count, fraction, step, options.iterations))
            for one, fraction, (count, _) in zip(own, budget.fractions, layer.before, strict=True)
        ]
        for layer, budget, own in zip(layers, budgets, scores, strict=True)
    ]
    if options.scope == "global" and options.mean_density is not None:
        for n in sorted({n for layer in layers for n in layer.experts}):
            places = [
                (i, layer.experts.index(n))
                for i, layer in enumerate(layers)
                if n in layer.experts and within(layer.site, options)
            ]
            _choose_over_layers(places, layers, scores, chosen, (options.mean_density, step, options.iterations))
    return chosen


def _choose_pooled(scores: Sequence[Tensor], budget: int) -> list[Tensor]:
    """The components of all experts ranked together."""
    return _split(top(torch.cat(list(scores)), budget), [len(one) for one in scores])


def within(site: Site, options: MergeOptions) -> bool:
    """Whether a site is ranked with the others: those of the graph, or all where the criterion asks for no graph."""
    return site.inside or kind_of(options.selection) not in READ_BASE


def _choose_over_layers(
    places: Sequence[tuple[int, int]],
    layers: Sequence[Layer],
    scores: Sequence[list[Tensor]],
    chosen: list[list[Tensor]],
    kept_share: tuple[float, int, int],
) -> None:
    """One expert's components in several layers ranked together; fills `chosen`.

    Args:
        places: number of the layer, and of the expert in it.
        layers: all layers.
        scores: of the survivors.
        chosen: by layer and expert.
        kept_share: the share of the expert's components kept in the end, the step, and the number of steps.
    """
    if not places:
        return
    pool = [scores[i][j] for i, j in places]
    total = sum(layers[i].before[j][0] for i, j in places)
    picks = _split(top(torch.cat(pool), kept_count(total, *kept_share)), [len(one) for one in pool])
    for (i, j), pick in zip(places, picks, strict=True):
        chosen[i][j] = pick


def _split(index: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Indices into a concatenation as indices into each of its parts."""
    parts, start = [], 0
    for size in sizes:
        parts.append(index[(index >= start) & (index < start + size)] - start)
        start += size
    return parts
