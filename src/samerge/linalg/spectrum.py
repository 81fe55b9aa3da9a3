"""`spectrum="flat"`: all singular values of a merged update made equal, through the factors.

    M = U diag(s_1, ..., s_k) V^T,    M' = sqrt(mean(s_i^2)) U V^T

over the k singular values that are not zero but for rounding, so ||M'||_F = ||M||_F. Directions in which M is zero stay
zero: an update of lower rank than it was truncated to keeps its rank. Task vectors merged in few directions have a few
large singular values that several experts share and many small ones that one of them needs; made equal, every direction
counts alike (Marczak et al. 2025, "No Task Left Behind", for full updates).
"""

from __future__ import annotations

from samerge.linalg.factors import LoraFactors
from samerge.linalg.truncation import svd_basis


def flatten(factors: LoraFactors) -> LoraFactors:
    """The update with a flat spectrum of the same norm; the zero update comes back with rank 0.

    Args:
        factors: (out, in), any rank.

    Returns:
        Factors of the update's own rank k; every component has the norm sqrt(mean(s_i^2)).

    Example:
        >>> import torch
        >>> f = LoraFactors(torch.eye(3), torch.diag(torch.tensor([7.0, 1.0, 0.0])))
        >>> flatten(f).delta()
        tensor([[5., 0., 0.],
                [0., 5., 0.],
                [0., 0., 0.]])
    """
    triplets = svd_basis(factors)  # a_k of norm 1, b_k of norm s_k
    if not triplets.rank:
        return triplets
    values = triplets.B.double().square().sum(0).sqrt()  # (k,)
    level = values.square().mean().sqrt()
    root = float(level.sqrt())
    return LoraFactors(A=triplets.A * root, B=triplets.B * (root / values).to(triplets.B.dtype))
