"""`iso-c`: the weighted sum with all its singular values made equal (Iso-C; Marczak et al. 2025).

    sum_i w_i tau_i = U S V^T,   M = mean(S) U V^T

over the singular values that are not zero: a sum of low-rank updates has at most R of them, and a mean over all
min(d_out, d_in) would only rescale the merge. Exact in the core space, O(R^3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from samerge.linalg.core_space import existing_triplets
from samerge.methods.in_core import in_core
from samerge.methods.method import Method
from samerge.options.option import Options


def iso_c(cores: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The merged core."""
    total = torch.stack([w * core for w, core in zip(weights, cores, strict=True)]).sum(dim=0)
    u, s, vh = existing_triplets(total)
    return s.mean() * (u @ vh) if len(s) else torch.zeros_like(total)


def combine(
    cores: Sequence[Tensor], weights: Sequence[float], experts: int, options: Options
) -> tuple[Tensor, Sequence[float]]:
    """`iso-c` as `in_core` runs it."""
    return iso_c(cores, weights), [1.0] * len(cores)


METHOD = Method("iso-c", in_core(combine), exact=True)
