"""`linear`, `cat` and `svd`: the exact weighted sum of the updates.

    tau* = sum_n w_n s_n B_n A_n = [w_1 s_1 B_1 ... w_N s_N B_N] [A_1; ...; A_N]

Concatenating the factors is the sum itself; nothing is averaged factor by factor, so there are no cross terms. `svd` is
the same sum, truncated afterwards to the best approximation of rank `svd_rank` (Ilharco et al. 2023 for the sum,
Eckart and Young 1936 for the truncation). Cost: a copy of the factors.
"""

from __future__ import annotations

import torch

from samerge.linalg.factors import LoraFactors, concatenate, norm
from samerge.methods.problem import MergedLayer, Outcome, Problem, Share, iterate
from samerge.options.merge_options import MergeOptions


def weighted_sum(problem: Problem, options: MergeOptions) -> Outcome:
    """The exact weighted sum at every site."""
    layers = {}
    for site in iterate(problem, "adding"):
        parts = problem.factors(site)
        layers[site.module] = MergedLayer(
            concatenate(list(parts.values()), [problem.weights[n] for n in parts]) if parts else empty(site.shape),
            {n: Share(part.rank, None, float(norm(part)), 1.0) for n, part in parts.items()},
        )
    return Outcome(layers)


def empty(shape: tuple[int, int]) -> LoraFactors:
    """The zero update of rank 0."""
    return LoraFactors(torch.zeros(0, shape[1]), torch.zeros(shape[0], 0))
