"""Methods that commute with orthogonal maps: each is a function of the experts' cores, run site by site."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from samerge.linalg.core_space import core_space
from samerge.methods.exact import empty
from samerge.methods.problem import MergedLayer, Method, Outcome, Problem, Share, iterate
from samerge.options.merge_options import MergeOptions

#: From the cores of the experts at a site, their weights, the number of experts in the whole merge and the options, the
#: merged core and the share of its energy that each expert kept before it was combined.
Combine = Callable[[Sequence[Tensor], Sequence[float], int, MergeOptions], tuple[Tensor, Sequence[float]]]


def in_core(combine: Combine, flat: bool = False) -> Method:
    """The method that runs `combine` on the cores of every site; `flat` where its singular values are all equal."""

    def run(problem: Problem, options: MergeOptions) -> Outcome:
        experts = sum(weight != 0 for weight in problem.weights)
        layers = {}
        for site in iterate(problem, "merging"):
            parts = problem.factors(site)
            if not any(part.rank for part in parts.values()):
                none = {n: Share(0, None, 0.0, 1.0) for n in parts}
                layers[site.module] = MergedLayer(empty(site.shape), none)
                continue
            space = core_space(list(parts.values()))
            merged, energies = combine(space.cores, [problem.weights[n] for n in parts], experts, options)
            shares = {
                n: Share(part.rank, None, float(torch.linalg.vector_norm(core)), energy)
                for (n, part), core, energy in zip(parts.items(), space.cores, energies, strict=True)
            }
            layers[site.module] = MergedLayer(space.lift(merged), shares)
        return Outcome(layers, flat=flat)

    return run
