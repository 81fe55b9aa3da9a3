"""`paper`: SA-Merging as published: each adapter keeps its most salient components in every layer, side by side.

Saliency-Aware Model Merging of LoRA adapters (Park, Lee and Sohn, ICML 2026, arXiv 2606.00511), Algorithm 2. Every
adapter's update is a sum of rank-1 components b_k a_k^T, the columns of B and rows of A as trained. T times over: score
every component against the state at the start of the iteration,

    gamma_k = b_k^T (dR_n / dW) a_k          structural sensitivity: what it does for the adapter's connectivity
    eta_k   = b_k^T (sum_i w_i tau_i) a_k    agreement with the merge
    s_k     = |gamma_k eta_k|

and keep the top max(1, round(r density^(t/T))) of each adapter in each layer. At the end the kept components of all
adapters stand side by side: tau* = lambda sum_n w_n sum_{k kept} b_k a_k^T. Modules outside the flow graph are not
pruned. `basis="svd"` takes the singular triplets in place of the trained columns and rows, which depend on the gauge;
`residual` adds the residual edges to the graph.

Cost of an iteration: two reads of the base, 6 r + 4 operations for each of its weights and each adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samerge.graph import FlowGraph
from samerge.linalg.agreement import agreement
from samerge.linalg.factors import LoraFactors, concatenate, norm
from samerge.linalg.sign_conflicts import conflict_among, sample_rows, values_at
from samerge.linalg.stack import stacked
from samerge.linalg.triplets import from_factors, zero
from samerge.linalg.truncation import svd_basis
from samerge.methods.gamma import NO_GAMMAS, Gammas, gammas, near, work
from samerge.methods.memory import check_memory, factor_bytes
from samerge.methods.method import Begun, MergedLayer, Method, Share
from samerge.methods.problem import Part, Problem, Site, iterate
from samerge.options.connectivity import HELP, connectivity
from samerge.options.kinds import flag, rounds, share, word
from samerge.options.option import Options, option
from samerge.parallel.shared_work import everywhere
from samerge.parallel.supply import elsewhere
from samerge.saliency.scores import kept_count, score, top


@dataclass(frozen=True)
class PaperOptions(Options):
    """Options of `paper`."""

    density: float = option(share(), 0.1, "Share of its components that each adapter keeps in each layer.")
    iterations: int = option(rounds(), 10, "Scoring and pruning steps.")
    basis: str = option(
        word("native", "svd"),
        "native",
        "Components of what: columns of B and rows of A as trained, or singular triplets.",
    )
    connectivity: str | FlowGraph = option(connectivity(), "flow", HELP)
    residual: bool = option(flag(), False, "Whether the flow graph has the residual edges.")


@dataclass(frozen=True)
class _Layer:
    """The components of every adapter that are left at a site, by number.

    Args:
        site: the site.
        factors: the components; on the meta device where another process holds the site.
        kept: their original numbers.
        before: how many there were, and the norm of all.
    """

    site: Site
    factors: Mapping[int, LoraFactors]
    kept: Mapping[int, Tensor]
    before: Mapping[int, tuple[int, float]]

    def prune(self, chosen: Mapping[int, Tensor]) -> _Layer:
        """Keep the chosen ones among those that are left."""
        return replace(
            self,
            factors={n: f.select(chosen[n]) for n, f in self.factors.items()},
            kept={n: k[chosen[n]] for n, k in self.kept.items()},
        )


def begin(problem: Problem, options: PaperOptions) -> Begun:
    """Score and prune T times."""
    check_memory(problem, held=1, work=factor_bytes)
    layers = _prepared(problem, options)
    found = NO_GAMMAS
    scored = options.density < 1 and any(layer.site.inside and layer.factors for layer in layers)
    if scored:  # at density 1 nothing needs a score
        with problem.progress.task("scoring", options.iterations * work(problem)) as advance:
            ready = near(problem)
            for step in range(1, options.iterations + 1):
                found = gammas(ready, {layer.site.module: layer.factors for layer in layers}, advance)
                chosen = _chosen(problem, layers, found, options.density, step, options.iterations)
                layers = [layer.prune(chosen[layer.site.module]) for layer in layers]
    left = {layer.site.module: layer for layer in layers}

    def merged(site: Site, parts: Mapping[int, Part]) -> MergedLayer:
        return _merged(left.pop(site.module), problem.weights_at(site))

    return Begun(merged, found.log_connectivity, found.kernel)


def _prepared(problem: Problem, options: PaperOptions) -> list[_Layer]:
    """All layers as they are before any pruning; the components only of this process's sites."""
    basis = svd_basis if options.basis == "svd" else LoraFactors.existing
    held: dict[str, dict[int, LoraFactors]] = {}

    def load(site: Site) -> dict[int, tuple[int, float]]:
        held[site.module] = {n: basis(part.factors) for n, part in problem.parts(site).items()}
        return {n: (f.rank, float(norm(f))) for n, f in held[site.module].items()}

    before = everywhere(problem.sites, load, iterate(problem, "preparing"))
    layers = []
    for site in problem.sites:
        sizes = before[site.module]
        factors = held.get(site.module) or {n: elsewhere(rank, site.shape) for n, (rank, _) in sizes.items()}
        kept = {n: torch.arange(f.rank, device=problem.device) for n, f in factors.items()}
        layers.append(_Layer(site, factors, kept, sizes))
    return layers


def _chosen(
    problem: Problem,
    layers: list[_Layer],
    found: Gammas,
    density: float,
    step: int,
    steps: int,
) -> dict[str, dict[int, Tensor]]:
    """Which of the components that are left stay after a step, by module and adapter."""
    by_site = {layer.site.module: layer for layer in layers}

    def choose(site: Site) -> dict[int, list[int]]:
        layer = by_site[site.module]
        if not layer.factors:
            return {}
        stack = stacked({n: from_factors(factors) for n, factors in layer.factors.items()})
        own = problem.weights_at(site)
        weights = torch.cat([torch.full((f.rank,), own[n]).double() for n, f in layer.factors.items()])
        etas = torch.split(agreement(stack, weights.to(stack.S)), [f.rank for f in layer.factors.values()])
        picks = {}
        for (n, factors), eta in zip(layer.factors.items(), etas, strict=True):
            gamma = found.of(site.module, n)
            scores = score(torch.ones_like(eta) if gamma is None else gamma, eta)
            count = kept_count(layer.before[n][0], density if site.inside else 1.0, step, steps)
            picks[n] = top(scores, min(count, factors.rank)).tolist()
        return picks

    chosen = everywhere(problem.sites, choose)
    return {m: {n: torch.tensor(p, dtype=torch.long) for n, p in own.items()} for m, own in chosen.items()}


def _merged(layer: _Layer, weights: tuple[float, ...]) -> MergedLayer:
    """The kept components side by side."""
    rows = sample_rows(layer.site.shape)
    shares = {}
    for n, factors in layer.factors.items():
        count, size = layer.before[n]
        energy = float(norm(factors) / size) ** 2 if size else 1.0
        shares[n] = Share(count, tuple(layer.kept[n].tolist()), energy)
    if not layer.factors:
        return MergedLayer(zero(layer.site.shape), shares)
    summed = concatenate(list(layer.factors.values()), [weights[n] for n in layer.factors])
    owners = torch.cat([torch.full((f.rank,), n) for n, f in layer.factors.items()]).to(summed.A.device)
    conflict = conflict_among([values_at(factors, rows) for factors in layer.factors.values()])
    return MergedLayer(from_factors(summed, owners), shares, conflict=conflict)


METHOD = Method("paper", begin, PaperOptions, base="needed", exact=True)
