"""`saliency`: keep the components that matter most to the model and the merge, decorrelated, at one strength (default).

Saliency-Aware Model Merging (Park, Lee and Sohn, ICML 2026, arXiv 2606.00511) where a merge must choose: a merge to
rank r keeps r of the N r_n components that the adapters bring. With (sigma_k, p_k, q_k) the singular triplets of
tau_n, all adapters of one norm, T = sum_i w_i tau_i, and R_n the connectivity of the model with adapter n,

    gamma_k = sigma_k p_k^T (d log R_n / dW) q_k      structural sensitivity, at theta0 + tau_n
    eta_k   = sigma_k p_k^T T q_k                     agreement with the merge
    s_k     = |w_n gamma_k eta_k|

The r most salient of a layer stay, all adapters together; they are decorrelated, get one strength and their adapters'
weights (`samerge.methods.chain`). log R and not R: R grows as a product over the layers, and a slightly larger adapter
would take every place. Outside the flow graph (embeddings, heads) gamma counts as 1.

Near-equal singular values make triplets arbitrary; they are settled first (`samerge.linalg.canonical`).

With T > 1 rounds, round t keeps round(N r_n (r / N r_n)^(t/T)) of them, and gamma and eta are taken anew for what is
left; the decorrelation is that of all triplets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from samerge.graph import FlowGraph
from samerge.linalg.agreement import agreement
from samerge.linalg.factors import LoraFactors
from samerge.linalg.independent import independent
from samerge.methods.chain import ChainOptions, Stack, chain_layer, count_of, settled, stacked
from samerge.methods.gamma import NO_GAMMAS, Gammas, gammas, near, work
from samerge.methods.memory import check_memory
from samerge.methods.method import Begun, Method
from samerge.methods.problem import Problem, Site, iterate
from samerge.options.connectivity import HELP, connectivity
from samerge.options.kinds import flag, rounds
from samerge.options.option import option
from samerge.parallel.shared_work import everywhere
from samerge.parallel.supply import elsewhere


@dataclass(frozen=True)
class SaliencyOptions(ChainOptions):
    """Options of `saliency`."""

    iterations: int = option(rounds(), 1, "Rounds of scoring and pruning.")
    connectivity: str | FlowGraph = option(connectivity(), "flow", HELP)
    residual: bool = option(flag(), True, "Whether the flow graph has the residual edges.")


def begin(problem: Problem, options: SaliencyOptions) -> Begun:
    """Score all components; the last round's choice is made where a layer is merged, of what is at hand there."""
    check_memory(problem, held=4 if problem.metrics else 2)  # what is seen is held beside what was trained
    ranks = _prepared(problem)
    left = {module: {n: torch.arange(rank) for n, rank in own.items()} for module, own in ranks.items()}
    found = NO_GAMMAS
    with problem.progress.task("scoring", options.iterations * work(problem)) as advance:
        ready = near(problem)
        for step in range(1, options.iterations + 1):
            found = gammas(ready, _updates(problem, ranks, left), advance)
            if step < options.iterations:
                left = _pruned(problem, options, found, left, step)

    def ranked(site: Site, stack: Stack) -> Tensor:
        return _best(problem, options, found, left[site.module], site, stack, options.iterations)

    return Begun(chain_layer(problem, options, ranked), found.log_connectivity, found.kernel)


def _prepared(problem: Problem) -> dict[str, dict[int, int]]:
    """Read and factorise every adapter once; the number of its components by module and adapter."""

    def load(site: Site) -> dict[int, int]:
        problem.held[site.module] = settled(problem.parts(site), problem.weights_at(site))
        return {n: part.seen.triplets.rank for n, part in problem.parts(site).items()}

    return everywhere(problem.sites, load, iterate(problem, "preparing"))


def _updates(
    problem: Problem, ranks: Mapping[str, Mapping[int, int]], left: Mapping[str, Mapping[int, Tensor]]
) -> dict[str, dict[int, LoraFactors]]:
    """The components that are left, as factors; on the meta device where another process holds them."""
    own = {site.module for site in problem.own}
    found: dict[str, dict[int, LoraFactors]] = {}
    for site in problem.sites:
        picks = left[site.module]
        if site.module in own:
            parts = problem.parts(site)
            seen = {n: parts[n].seen.components(picks[n]) for n in picks}
            metric = problem.metrics.get(site.module)
            if metric is not None:  # the model has them as they are
                seen = {n: LoraFactors(metric.divided(one.A), one.B) for n, one in seen.items()}
            found[site.module] = seen
        else:
            found[site.module] = {n: elsewhere(len(pick), site.shape) for n, pick in picks.items()}
    return found


def _pruned(
    problem: Problem,
    options: SaliencyOptions,
    found: Gammas,
    left: Mapping[str, Mapping[int, Tensor]],
    step: int,
) -> dict[str, dict[int, Tensor]]:
    """Which of each adapter's components stay after a round, by module and number."""

    def stay(site: Site) -> dict[int, list[int]]:
        parts = problem.parts(site)
        present = {n: part.seen for n, part in parts.items() if part.seen.triplets.rank}
        picks = left[site.module]
        if len(present) < 2:
            return {n: pick.tolist() for n, pick in picks.items()}
        stack = stacked(present, problem.weights_at(site))
        best = _best(problem, options, found, picks, site, stack, step)
        places = {n: set(stack.places[best[stack.owners[best] == n]].tolist()) for n in present}
        return {n: [k for k in pick.tolist() if n not in places or k in places[n]] for n, pick in picks.items()}

    stayed = everywhere(problem.sites, stay)
    return {m: {n: torch.tensor(p, dtype=torch.long) for n, p in own.items()} for m, own in stayed.items()}


def _best(
    problem: Problem,
    options: SaliencyOptions,
    found: Gammas,
    picks: Mapping[int, Tensor],
    site: Site,
    stack: Stack,
    step: int,
) -> Tensor:
    """The most salient of a layer's components that are left, as many as stay after a round, best first.

    Args:
        problem: the problem.
        options: density and number of rounds.
        found: gamma of what is left.
        picks: which of each adapter's components are left, by its number.
        site: the layer.
        stack: all its components.
        step: the round, from 1.
    """
    present = sorted(set(stack.owners.tolist()))
    alive = torch.cat([(stack.owners == n).nonzero().flatten()[picks[n].to(stack.owners.device)] for n in present])
    ones = [torch.ones(len(picks[n]), dtype=torch.float64, device=stack.sigma.device) for n in present]
    known = [found.of(site.module, n) for n in present]
    gamma = torch.cat([one if own is None else own for one, own in zip(ones, known, strict=True)])
    total = len(stack.sigma)
    whole = len(alive) == total
    left_over, products = (stack.triplets, stack.products) if whole else (stack.triplets.select(alive), None)
    scores = (stack.heard[alive] * gamma * agreement(left_over, stack.weights[alive], products=products)).abs()
    final = count_of(options, problem, total)
    count = min(len(alive), max(final, round(total * (final / total) ** (step / options.iterations))))
    return independent(stack.triplets, alive[scores.argsort(descending=True, stable=True)], count)


METHOD = Method("saliency", begin, SaliencyOptions, base="needed", balance="norm", exact=True)
