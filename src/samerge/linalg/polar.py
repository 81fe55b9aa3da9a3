"""The polar factor of a matrix: its nearest partial isometry.

    X = U diag(s) V^T over the singular values that exist,    P = U V^T

Where X has full column rank, P are the orthonormal columns nearest to those of X, each of which has a say in
proportion: X (X^T X)^(-1/2). Where it has not, P is the isometry of least norm: P^T P projects on the row space. It is
unique, and commutes with any orthogonal map of the rows or columns, so with their order.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from samerge.linalg.gram import singular_space, times


@dataclass(frozen=True)
class Polar:
    """A polar factor.

    Args:
        columns: P, (d, R), float64.
        full: whether X has full column rank, so that P has orthonormal columns.
    """

    columns: Tensor
    full: bool


def polar(X: Tensor) -> Polar:
    """The polar factor of X.

    From the Gram matrix of the shorter side (`samerge.linalg.gram`), by the singular values that exist there: with
    n = min(d, R), 2 d R n operations and an n x n eigenproblem.

    Args:
        X: (d, R), any floating dtype; computed in float64.

    Example:
        >>> import torch
        >>> polar(torch.tensor([[2.0, 0.0], [0.0, 5.0], [0.0, 0.0]])).columns.round(decimals=6).abs()
        tensor([[1., 0.],
                [0., 1.],
                [0., 0.]], dtype=torch.float64)
        >>> polar(torch.ones(2, 2)).columns  # copies share their direction
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]], dtype=torch.float64)
    """
    d, total = X.shape
    if total <= d:
        space = singular_space(X)
        found = times(X, space.inverse @ space.right.T)
    else:
        space = singular_space(X.T)  # its right vectors are U, and V = X^T inverse
        found = space.right @ times(X.T, space.inverse).T
    return Polar(found, space.rank == total)
