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


def score(gamma: Tensor, eta: Tensor, weight: float, signed: bool) -> Tensor:
    """The saliency of an expert's components: |w gamma eta|, or |gamma| w eta, which is negative where they disagree.

    Within one expert the weight changes nothing but the sign; it makes the scores of different experts comparable.

    Args:
        gamma: (r,) structural sensitivity.
        eta: (r,) agreement with the merge.
        weight: the expert's weight.
        signed: whether a component that disagrees with the merge shall rank last.
    """
    return gamma.abs() * eta * weight if signed else (gamma * eta * weight).abs()


def kept_count(available: int, fraction: float, step: int, steps: int) -> int:
    """How many of `available` components survive a step: max(1, round(available * fraction^(step / steps))).

    Python's rounding (half to even). 0 where nothing is available.

    Example:
        >>> [kept_count(16, 0.125, t, 4) for t in range(1, 5)]
        [10, 6, 3, 2]
    """
    return min(available, max(1, round(available * math.pow(fraction, step / steps))))


def shares(ranks: Sequence[int], budget: int) -> list[int]:
    """A budget shared in proportion to the ranks, by largest remainder; ties go to the lower index.

    Nobody gets more than its rank; where the budget reaches that far, nobody who has components gets none.

    Example:
        >>> shares([16, 16, 16], 16), shares([64, 2], 16), shares([2, 3], 9)
        ([6, 5, 5], [15, 1], [2, 3])
    """
    total = sum(ranks)
    if total <= budget:
        return list(ranks)
    quotas = [budget * rank / total for rank in ranks]
    parts = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(ranks)), key=lambda i: (parts[i] - quotas[i], i))
    for i in by_remainder[: budget - sum(parts)]:
        parts[i] += 1
    for i, rank in enumerate(ranks):
        if rank and not parts[i] and max(parts) > 1:
            parts[parts.index(max(parts))] -= 1
            parts[i] = 1
    return parts


def top(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest scores, ascending; among equal scores the lower index stays.

    Example:
        >>> top(torch.tensor([1.0, 3.0, 3.0, 3.0]), 2)
        tensor([1, 2])
    """
    return torch.sort(scores, descending=True, stable=True).indices[:count].sort().values
