"""How many of several updates are different: the participation ratio of their Gram matrix.

    K_nm = <tau_n, tau_m>,   v = (tr K)^2 / tr K^2

N updates that are orthogonal and of one norm are N voices, N copies of one are one, and so is a single one among others
next to nothing; two at a cosine of c are 2 / (1 + c^2). The sign of an update does not matter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from samerge.linalg.stack import TILE
from samerge.linalg.triplets import Triplets


def voices(stack: Triplets, loads: Tensor, left: Tensor | None = None, right: Tensor | None = None) -> float:
    """v of the updates tau_n = U_n diag(loads_n) V_n^T.

    Args:
        stack: the components of all of them side by side, R, with their owners.
        loads: (R,) in float64, what each component is multiplied with, in place of its singular value.
        left: U^T U, (R, R) in float64, where it is known.
        right: V^T V, likewise.

    Returns:
        From 1 to the number of updates; 1 where all are zero.

    Example:
        >>> one = torch.eye(2, dtype=torch.float64)
        >>> apart = Triplets(one, torch.tensor([3.0, 1.0]).double(), one, True, torch.tensor([0, 1]))
        >>> round(voices(apart, torch.ones(2).double()), 3), round(voices(apart, apart.S), 3)
        (2.0, 1.22)
    """
    assert stack.owners is not None
    owned = (stack.owners[:, None] == torch.unique_consecutive(stack.owners)).double()  # (R, N)
    K = torch.zeros(owned.shape[1], owned.shape[1], dtype=torch.float64, device=loads.device)
    for start in range(0, stack.rank, TILE):
        rows = slice(start, min(start + TILE, stack.rank))
        products = _inner(stack.U, left, rows) * _inner(stack.V, right, rows)
        K += owned[rows].T @ (loads[rows, None] * products * loads) @ owned
    square = K.square().sum()
    return float(K.trace().square() / square) if square > 0 else 1.0


def _inner(X: Tensor, gram: Tensor | None, rows: slice) -> Tensor:
    """Some rows of X^T X."""
    return gram[rows] if gram is not None else (X[:, rows].T @ X).double()
