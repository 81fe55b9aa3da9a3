"""Scores, schedule and selection of rank-1 components. Pure functions on tensors and numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from samerge.linalg.factors import LoraFactors


def agreement(parts: Sequence[LoraFactors], weights: Sequence[float]) -> list[Tensor]:
    """eta_k = b_k^T (sum_i w_i tau_i) a_k, how far each rank-1 component agrees with the merge.

    Two thin products an expert, (sum_j w_j b_j (a_j . a_k)) . b_k over the components j of all experts; the Gram matrix
    of all components with all others, which grows with the square of the number of experts, is never held.

    Args:
        parts: the experts' surviving components, scale folded in; (out, in) of one module, any ranks.
        weights: one for each expert.

    Returns:
        For each expert (r,) in float64.

    Example:
        >>> f = LoraFactors(A=torch.eye(2), B=torch.diag(torch.tensor([2.0, 3.0])))
        >>> agreement([f, f], [1.0, 0.5])
        [tensor([ 6.0000, 13.5000], dtype=torch.float64), tensor([ 6.0000, 13.5000], dtype=torch.float64)]
    """
    if not parts:
        return []
    rows = torch.cat([part.A for part in parts])  # (R, d_in)
    columns = torch.cat([part.B * weight for part, weight in zip(parts, weights, strict=True)], dim=1)  # (d_out, R)
    return [(part.B * (columns @ (rows @ part.A.T))).sum(0, dtype=torch.float64) for part in parts]


def score(gamma: Tensor, eta: Tensor) -> Tensor:
    """The saliency of an adapter's components, |gamma eta|.

    Args:
        gamma: (r,) structural sensitivity.
        eta: (r,) agreement with the merge.
    """
    return (gamma * eta).abs()


def kept_count(available: int, fraction: float, step: int, steps: int) -> int:
    """How many of `available` components survive a step: max(1, round(available * fraction^(step / steps))).

    Python's rounding (half to even). 0 where nothing is available.

    Example:
        >>> [kept_count(16, 0.125, t, 4) for t in range(1, 5)]
        [10, 6, 3, 2]
    """
    return min(available, max(1, round(available * math.pow(fraction, step / steps))))


def top(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest scores, ascending; among equal scores the lower index stays.

    Example:
        >>> top(torch.tensor([1.0, 3.0, 3.0, 3.0]), 2)
        tensor([1, 2])
    """
    return torch.sort(scores, descending=True, stable=True).indices[:count].sort().values
