"""`svc`: the weighted sum, its singular values lowered where adapters share a direction (SVC; arXiv 2602.05536).

With v_i = w_i tau_i of the N adapters that change the layer, and sum_i v_i = U diag(S) V^T:

    a_ir = u_r^T v_i                               what adapter i does in the direction u_r
    s_ir = S_r <v_r, a_ir> / ||a_ir||^2            how much of it is in the sum: above 1 where others add to it
    M    = U diag(g S) V^T,   g_r = N / sum_i max(alpha, s_ir)

s_ir is 0 where adapter i does nothing. Published: the sum at lambda 0.3 with alpha 0.1. Lambda is a factor of all s_ir,
so that is alpha 1/3 on the sum itself, as here. A mean of 8 with alpha 0.1 is alpha 0.8.

Cost: the singular triplets of the sum, and R^2 (d_out + d_in) operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from samerge.linalg.gram import CUTOFF, times
from samerge.linalg.triplets import Triplets
from samerge.methods.by_triplets import by_triplets
from samerge.methods.iso_c import whole_sum
from samerge.methods.method import Method
from samerge.options.kinds import share
from samerge.options.option import Options, option


@dataclass(frozen=True)
class SvcOptions(Options):
    """Options of `svc`."""

    alpha: float = option(share(), 1 / 3, "The least that an adapter counts with in a direction; more weakens more.")


def svc(
    parts: Mapping[int, Triplets], weights: Mapping[int, float], count: int, options: SvcOptions
) -> tuple[Triplets, Mapping[int, float]]:
    """The merged update."""
    found = whole_sum(parts, weights)
    total = torch.zeros_like(found.S)
    for n, part in parts.items():
        loads = part.S * weights[n]
        left = times(found.U.T, part.U) * loads  # u_r^T U_i S_i, (R, r_i)
        squares = left.square().sum(dim=1)
        inner = found.S * (left * times(found.V.T, part.V)).sum(dim=1)
        there = squares > (CUTOFF * float(loads.abs().max())) ** 2
        counted = torch.where(there, inner / torch.where(there, squares, 1.0), 0.0)
        total += counted.clamp_min(options.alpha)
    calibrated = Triplets(found.U, found.S * len(parts) / total, found.V, True)
    dtype = next(iter(parts.values())).U.dtype
    ordered = calibrated.select(calibrated.S.argsort(descending=True, stable=True))
    return Triplets(ordered.U.to(dtype), ordered.S, ordered.V.to(dtype), True), {}


METHOD = Method("svc", by_triplets(svc), SvcOptions, exact=True)
