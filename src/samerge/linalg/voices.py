"""How many of several updates are different: the participation ratio of their Gram matrix.

    K_nm = <tau_n, tau_m>,   v = (tr K)^2 / tr K^2

N updates that are orthogonal and of one norm are N voices, N copies of one are one, and so is a single one among others
next to nothing; two at a cosine of c are 2 / (1 + c^2). The sign of an update does not matter.

With tau_n = U_n diag(l_n) V_n^T side by side, ||sum_n c_n tau_n|| <= ||U||_2 ||V||_2 ||c o l||, so that the largest
eigenvalue of K is at most ||U||_2^2 ||V||_2^2 max_n ||l_n||^2. As tr K^2 is no more than that times tr K, where it is
small enough there are two voices or more, and no inner product is needed (`several`).
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
    loads = loads / loads.abs().amax().clamp_min(torch.finfo(torch.float64).tiny)  # their fourth powers are taken
    K = torch.zeros(owned.shape[1], owned.shape[1], dtype=torch.float64, device=loads.device)
    for start in range(0, stack.rank, TILE):
        rows = slice(start, min(start + TILE, stack.rank))
        products = _inner(stack.U, left, rows) * _inner(stack.V, right, rows)
        K += owned[rows].T @ (loads[rows, None] * products * loads) @ owned
    square = K.square().sum()
    return float(K.trace().square() / square) if square > 0 else 1.0


def several(stack: Triplets, loads: Tensor, squares: float) -> bool:
    """Whether two voices are certain from bounds alone; False says nothing.

    Args:
        stack: the components of all updates side by side, U_n and V_n orthonormal, with their owners.
        loads: (R,) in float64.
        squares: ||U||_2^2 ||V||_2^2.
    """
    assert stack.owners is not None
    numbers, places = torch.unique_consecutive(stack.owners, return_inverse=True)
    own = torch.zeros(len(numbers), dtype=torch.float64, device=loads.device)
    own = own.index_add(0, places, loads.square())  # ||tau_n||^2
    return bool(2 * squares * own.amax() <= own.sum())


def _inner(X: Tensor, gram: Tensor | None, rows: slice) -> Tensor:
    """Some rows of X^T X."""
    return gram[rows] if gram is not None else (X[:, rows].T @ X).double()
