"""Decorrelation (Gargiulo et al. 2025, TSV-Merge): vectors of several adapters made orthogonal to one another.

    u_k = column k of the polar factor of [U_1 ... U_N]

Every vector keeps as much of its direction as it can while all are made orthogonal; what several share is divided
among them. The factor is made of all vectors, also of those that are not kept: each makes room for the others.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from samerge.linalg.gram import CUTOFF
from samerge.linalg.polar import Polar, polar


def decorrelated(stack: Tensor, kept: Tensor, cutoff: float = CUTOFF) -> Polar:
    """The kept columns of the polar factor of a stack of vectors.

    Where the stack has full column rank they are orthonormal. Where it has not (copies, a common start, more vectors
    than dimensions) the factor is the partial isometry of least norm, which is unique, and what is kept of it is made
    orthonormal by one more polar factor. Vectors that are kept and dependent even so, such as both copies of one,
    cannot be: they share their direction evenly, and span fewer than r dimensions.

    Cost: that of `samerge.linalg.polar.polar`; the r columns are as good as free.

    Args:
        stack: (d, R), columns of norm 1. Their rounding comes back multiplied with the condition number of the stack:
            in float32 that is 1e-6 for adapters that were trained apart, 1e-5 for those of one start; for copies that
            differ by less than 1e-3, have them in float64.
        kept: (r,) long, the columns that are kept.
        cutoff: singular values of the stack below this share of its largest do not exist.

    Returns:
        (d, r) in float64 as `columns`, and as `full` whether they are orthonormal; `root` is that of the stack.

    Example:
        >>> import torch
        >>> lean = torch.tensor([[1.0, 0.6], [0.0, 0.8]], dtype=torch.float64)
        >>> u = decorrelated(lean, torch.tensor([0, 1])).columns
        >>> torch.allclose(u.T @ u, torch.eye(2, dtype=torch.float64)), bool((u[:, 1] @ lean[:, 1]) > 0.9)
        (True, True)
    """
    found = polar(stack, kept, cutoff)
    return found if found.full else replace(polar(found.columns, cutoff=cutoff), root=found.root)
