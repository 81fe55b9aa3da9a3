"""The polar factor of a matrix: its nearest partial isometry, of which only some columns are wanted.

    X = U diag(s) V^T over the singular values that exist,    P = U V^T

Where X has full column rank, P are the orthonormal columns nearest to those of X, each of which has a say in
proportion: X (X^T X)^(-1/2). Where it has not, P is the isometry of least norm: P^T P projects on the row space. It is
unique, and commutes with any orthogonal map of the rows or columns, so with their order.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from samerge.linalg.gram import CUTOFF, singular_space, times


@dataclass(frozen=True)
class Polar:
    """Columns of a polar factor.

    Args:
        columns: (d, r), float64.
        values: the singular values of X that exist, descending, float64; as many as P has rank.
        full: whether X has full column rank, so that P has orthonormal columns.
        root: (R, k) in float64 with X^T X = root root^T; None where X has more columns than rows.
    """

    columns: Tensor
    values: Tensor
    full: bool
    root: Tensor | None = None


def polar(X: Tensor, columns: Tensor | None = None, cutoff: float = CUTOFF) -> Polar:
    """The columns `columns` of the polar factor of X.

    From the Gram matrix of the shorter side (`samerge.linalg.gram`): with n = min(d, R), d R n operations, an n x n
    eigenproblem, and d n r for the r columns.

    Args:
        X: (d, R), any floating dtype; computed in float64.
        columns: (r,) long, in any order; all of them by default.
        cutoff: singular values below this share of the largest do not exist.

    Example:
        >>> import torch
        >>> found = polar(torch.tensor([[2.0, 0.0], [0.0, 5.0], [0.0, 0.0]]), torch.tensor([1]))
        >>> found.columns.flatten().round(decimals=6).abs()
        tensor([0., 1., 0.], dtype=torch.float64)
        >>> polar(torch.ones(2, 2)).columns  # copies share their direction
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]], dtype=torch.float64)
    """
    d, total = X.shape
    if total <= d:
        space = singular_space(X, cutoff)
        kept = space.right if columns is None else space.right[columns]  # (r, k)
        found, root = times(X, space.inverse @ kept.T), space.right * space.values
    else:
        space = singular_space(X.T, cutoff)  # its right vectors are U, and V = X^T inverse
        wanted = X if columns is None else X[:, columns]
        found, root = space.right @ times(wanted.T, space.inverse).T, None
    return Polar(found, space.values, space.rank == total, root)
