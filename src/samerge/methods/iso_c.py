"""`iso-c`: the weighted sum with all its singular values made equal (Iso-C; Marczak et al. 2025).

    sum_i w_i tau_i = U S V^T,   M = mean(S) U V^T

over the singular values that are not zero: a sum of low-rank updates has at most R of them, and a mean over all
min(d_out, d_in) would only rescale the merge. What is left of updates that cancel is rounding, not a direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from samerge.linalg.gram import CUTOFF
from samerge.linalg.stack import stacked
from samerge.linalg.triplets import Triplets
from samerge.methods.by_triplets import by_triplets
from samerge.methods.method import Method
from samerge.options.option import Options


def iso_c(
    parts: Mapping[int, Triplets], weights: Mapping[int, float], count: int, options: Options
) -> tuple[Triplets, Mapping[int, float]]:
    """The merged update."""
    found = whole_sum(parts, weights)
    dtype = next(iter(parts.values())).U.dtype
    level = float(found.S.mean()) if found.rank else 0.0
    return Triplets(found.U.to(dtype), torch.full_like(found.S, level), found.V.to(dtype), True), {}


def whole_sum(parts: Mapping[int, Triplets], weights: Mapping[int, float]) -> Triplets:
    """The singular triplets of the weighted sum that exist, in float64."""
    stack = stacked({n: part.scaled(weights[n]) for n, part in parts.items()})
    whole = replace(stack, U=stack.U.double(), V=stack.V.double(), orthonormal=False).orthonormalised()
    return existing(whole, float(torch.cat([whole.S, stack.S.abs()]).max()))


def existing(triplets: Triplets, size: float) -> Triplets:
    """Without directions that are rounding of what is as large as `size`: those of updates that cancel."""
    return triplets.select((CUTOFF * size < triplets.S).nonzero().flatten())


METHOD = Method("iso-c", by_triplets(iso_c), exact=True)
