"""Decorrelation (Gargiulo et al. 2024, TSV-Merge): components of several adapters made orthogonal to one another.

    u_k, v_k = columns k of the polar factors of [U_1 ... U_N] and [V_1 ... V_N]

Every component keeps as much of its direction as it can while all are made orthogonal; what several share is divided
among them. The factor is made of all components, also of those that are not kept: each makes room for the others.
"""

from __future__ import annotations

from torch import Tensor

from samerge.linalg.gram import CUTOFF
from samerge.linalg.polar import polar
from samerge.linalg.triplets import Triplets


def decorrelated(stack: Triplets, index: Tensor, cutoff: float = CUTOFF) -> tuple[Tensor, Tensor]:
    """The vectors u (d_out, r) and v (d_in, r) of the kept components, in float64.

    Where a stack has full column rank they are orthonormal. Where it has not (copies, a common start, more components
    than dimensions) the polar factor is a partial isometry, and what is kept of it is made orthonormal by one more
    polar factor. That is a partial isometry again where what is kept is dependent itself, such as both copies of one
    component: then u u^T is the projection on fewer than r dimensions.

    Cost: `samerge.linalg.polar.polar` on either side; r is as good as free.

    Args:
        stack: all components, U (d_out, R), V (d_in, R), with columns of norm 1.
        index: (r,) long, those that are kept.
        cutoff: singular values of a stack below this share of its largest do not exist.

    Example:
        >>> import torch
        >>> lean = torch.tensor([[1.0, 0.6], [0.0, 0.8]], dtype=torch.float64)
        >>> u, v = decorrelated(Triplets(lean, torch.ones(2).double(), lean, False), torch.tensor([0, 1]))
        >>> (u.T @ u).round(decimals=9), bool((u[:, 1] @ lean[:, 1]) > 0.9)
        (tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64), True)
    """
    return _of_one_side(stack.U, index, cutoff), _of_one_side(stack.V, index, cutoff)


def _of_one_side(X: Tensor, index: Tensor, cutoff: float) -> Tensor:
    found = polar(X, index, cutoff)
    return found.columns if found.full else polar(found.columns, cutoff=cutoff).columns
