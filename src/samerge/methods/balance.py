"""`balance`: experts of unlike size are brought to one size before anything is selected or merged.

    norm      tau_i <- tau_i * mean_j ||tau_j||_F / ||tau_i||_F    in every layer, over the experts that adapt it
    global    the same with the norms of whole adapters: one factor for each expert

Weights apply on top. An update of zero stays zero and counts in no mean; so does an expert of weight 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from samerge.adapters import AdaptedModule
from samerge.linalg.factors import LoraFactors, norm
from samerge.methods.problem import Problem, Site, by_module, iterate


@dataclass(frozen=True)
class Balanced:
    """A problem whose experts have one size.

    Args:
        problem: the problem.
        factors: what every expert's update was multiplied with, by module and number.
    """

    problem: Problem
    factors: Mapping[str, Mapping[int, float]]


def balance(problem: Problem, kind: str) -> Balanced:
    """Bring the experts to their mean norm, layer by layer ("norm") or as a whole ("global")."""

    def sizes(site: Site) -> dict[int, float]:
        return {n: float(norm(part)) for n, part in problem.factors(site).items()}

    norms = by_module(problem.sites, sizes, iterate(problem, "balancing"))
    if kind == "global":
        totals: dict[int, float] = {}
        for own in norms.values():
            for n, size in own.items():
                totals[n] = math.hypot(totals.get(n, 0.0), size)
        overall = to_mean(totals)
        factors = {module: {n: overall[n] for n in own} for module, own in norms.items()}
    else:
        factors = {module: to_mean(own) for module, own in norms.items()}
    sites = tuple(_scaled(site, factors[site.module]) for site in problem.sites)
    return Balanced(replace(problem, sites=sites), factors)


def to_mean(norms: Mapping[int, float]) -> dict[int, float]:
    """What brings every norm to the mean of those that are not zero; 1.0 for those that are.

    Example:
        >>> to_mean({0: 1.0, 2: 3.0, 5: 0.0})
        {0: 2.0, 2: 0.6666666666666666, 5: 1.0}
    """
    present = [size for size in norms.values() if size > 0]
    mean = sum(present) / len(present) if present else 0.0
    return {n: mean / size if size > 0 else 1.0 for n, size in norms.items()}


def _scaled(site: Site, factors: Mapping[int, float]) -> Site:
    """The site with its experts scaled when they are loaded; those of weight 0 as they are."""
    return replace(
        site,
        experts={n: _multiplied(adapted, factors.get(n, 1.0)) for n, adapted in site.experts.items()},
    )


def _multiplied(adapted: AdaptedModule, factor: float) -> AdaptedModule:
    def load() -> LoraFactors:
        own = adapted.load()
        return replace(own, scale=own.scale * factor)

    return replace(adapted, load=load)
