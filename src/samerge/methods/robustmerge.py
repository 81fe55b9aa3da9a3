"""`robustmerge`: prune and add the factors apart, with cross terms (RobustMerge; Zeng et al. 2025).

    A_i', B_i': the `density` largest entries of A_i and of w_i s_i B_i, by magnitude, 0 elsewhere
    S_i = diag(rowsum |A_i| / rowsum |A_i'|), over its r components; those below the one at the place floor(`floor` r)
          of their ascending order, counted from 0, are raised to it
    M = lambda (sum_i B_i' S_i (sum_j S_j)^-1) (sum_i A_i')

Factors are added apart, so M has the cross terms B_i A_j of every two adapters, as published; it depends on the gauge.
Published: density 0.2, floor 0.8, and a factor of 2 on the merged A and on the merged B: lambda 4. Adapters of lower
rank take part with the components that they have. A component whose row of A is pruned away whole, for which S would be
infinite, has S = 0 and does not count in r. Rank r. Cost: that of a selection among the factors' entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samerge.linalg.factors import LoraFactors, norm, pad
from samerge.linalg.largest import keep_largest
from samerge.linalg.triplets import from_factors, zero
from samerge.methods.memory import check_memory, factor_bytes
from samerge.methods.method import Begun, MergedLayer, Method, Share
from samerge.methods.problem import Part, Problem, Site
from samerge.options.kinds import real, share
from samerge.options.option import Options, option


@dataclass(frozen=True)
class RobustOptions(Options):
    """Options of `robustmerge`."""

    density: float = option(share(), 0.2, "Share of the entries of each factor that are kept.")
    floor: float = option(
        real(0, 1), 0.8, "Quantile of an adapter's diagonal that the smaller ones are raised to; 0 leaves it as it is."
    )


def begin(problem: Problem, options: RobustOptions) -> Begun:
    """Prune, scale and add the factors of every layer."""
    check_memory(problem, work=factor_bytes)

    def layer(site: Site, parts: Mapping[int, Part]) -> MergedLayer:
        shares = {}
        for n, part in parts.items():
            left = LoraFactors(_pruned(part.factors.A, options.density), _pruned(part.factors.B, options.density))
            energy = min(1.0, (float(norm(left)) / part.norm) ** 2) if part.norm else 1.0
            shares[n] = Share(part.rank, energy=energy)
        if not parts:
            return MergedLayer(zero(site.shape), shares)
        weights = problem.weights_at(site)
        weighted = [LoraFactors(p.factors.A, p.factors.B * weights[n]) for n, p in parts.items()]
        return MergedLayer(from_factors(robust(weighted, options.density, options.floor)), shares)

    return Begun(layer)


def robust(parts: Sequence[LoraFactors], density: float, floor: float) -> LoraFactors:
    """M at lambda 1, of the largest rank."""
    rank = max(part.rank for part in parts)
    pruned = [(_pruned(part.A, density), _pruned(part.B, density)) for part in parts]
    scales = [_scale(part.A, A, floor, rank) for part, (A, _) in zip(parts, pruned, strict=True)]
    total = torch.stack(scales).sum(dim=0)
    total = torch.where(total > 0, total, torch.ones_like(total))
    full = [pad(LoraFactors(A, B), rank) for A, B in pruned]
    return LoraFactors(
        A=torch.stack([one.A for one in full]).sum(dim=0),
        B=torch.stack([one.B * (scale / total) for one, scale in zip(full, scales, strict=True)]).sum(dim=0),
    )


def _pruned(matrix: Tensor, density: float) -> Tensor:
    """Its largest entries; at least one."""
    if not matrix.numel():
        return matrix
    return matrix * keep_largest(matrix.abs(), max(1, round(density * matrix.numel())))


def _scale(A: Tensor, pruned: Tensor, floor: float, rank: int) -> Tensor:
    """S, (rank,); 0 where a component is missing or pruned away whole."""
    before, after = A.abs().sum(dim=1), pruned.abs().sum(dim=1)
    left = after > 0
    scale = torch.zeros_like(before)
    if left.any():
        found = before[left] / after[left]
        least = found.sort().values[min(int(floor * len(found)), len(found) - 1)]
        scale[left] = found.clamp_min(least)
    return torch.cat([scale, scale.new_zeros(rank - len(scale))])


METHOD = Method("robustmerge", begin, RobustOptions, scaling=4.0, exact=True)
