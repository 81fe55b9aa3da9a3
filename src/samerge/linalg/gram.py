"""The singular space of a thin matrix from its Gram matrix, in float64, to small singular values.

    X^T X = E diag(l) E^T,   s = sqrt(l),   V = E,   U = X V diag(1 / s)

A Gram matrix squares the condition number: what lies below 1e-8 of the largest singular value is lost in its rounding,
and what lies a little above is inexact. So it is looked at twice. The eigenvectors whose s reaches `CLEAR` of the
largest are taken as they are. The others span the small directions exactly enough: X times them, without what it has
in the clear ones, is a small matrix whose own Gram matrix has its digits where they are wanted.

Cost for X (m, n): m n^2 operations and an n x n eigenproblem, far below those of a QR and an SVD; the second look only
where something small is there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Singular values below this share of the largest do not exist.
CUTOFF = 1e-6

#: Above this share of the largest, the Gram matrix itself has a singular value's direction to 1e-9 or better.
CLEAR = 1e-3

#: Columns of a tile of a Gram matrix, and rows of X that are held in float64 at a time.
TILE, ROWS = 512, 4096


@dataclass(frozen=True)
class SingularSpace:
    """X = U diag(values) right^T over the singular values that exist, without U, which is X inverse.

    Args:
        right: V, (n, k), orthonormal, float64.
        values: (k,), descending, float64.
        inverse: (n, k), float64: X inverse = U. It is V diag(1 / values) but for the rounding of small values.
    """

    right: Tensor
    values: Tensor
    inverse: Tensor

    @property
    def rank(self) -> int:
        """The number of singular values that exist, k."""
        return len(self.values)


def gram(X: Tensor) -> Tensor:
    """X^T X in float64, (n, n), by tiles of its upper half; X (m, n) is converted some rows at a time."""
    n = X.shape[1]
    found = torch.zeros(n, n, dtype=torch.float64, device=X.device)
    for rows in torch.split(X, ROWS):
        block = rows.double()
        for start in range(0, n, TILE):
            stop = min(start + TILE, n)
            found[start:stop, start:] += block[:, start:stop].T @ block[:, start:]
    return found.triu_() + found.triu(1).T


def times(X: Tensor, Y: Tensor) -> Tensor:
    """X Y in float64, (m, k), X (m, n) converted some rows at a time."""
    return (
        torch.cat([rows.double() @ Y.double() for rows in torch.split(X, ROWS)])
        if len(X)
        else Y.new_zeros(0, Y.shape[1], dtype=torch.float64)
    )


def singular_space(X: Tensor, cutoff: float = CUTOFF) -> SingularSpace:
    """The right singular vectors of X with singular values of at least `cutoff` times the largest.

    Args:
        X: (m, n), n <= m for the cost that is promised; any floating dtype, computed with in float64.
        cutoff: relative, 1e-7 or more: below, the rounding of X decides.

    Returns:
        The space. Of rank 0 for the zero matrix, or where n is 0.

    Example:
        >>> space = singular_space(torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]))
        >>> space.values, (space.right @ torch.diag(space.values) @ space.right.T).round()
        (tensor([4., 3.], dtype=torch.float64), tensor([[3., 0.],
                [0., 4.]], dtype=torch.float64))
    """
    n = X.shape[1]
    squares, vectors = (found.flip(-1) for found in torch.linalg.eigh(gram(X)))  # descending
    if n == 0 or not squares[0] > 0:
        return SingularSpace(vectors[:, :0], squares[:0], vectors[:, :0])
    top = squares[0].sqrt()
    clear = int((squares > (CLEAR * top) ** 2).sum())
    s, V = squares[:clear].sqrt(), vectors[:, :clear]
    W = V / s
    if clear == n:
        return SingularSpace(V, s, W)
    U = times(X, W)  # (m, clear)
    small = vectors[:, clear:]
    image = times(X, small)  # (m, n - clear)
    shared = U.T @ image
    image = image - U @ shared
    if float(torch.linalg.vector_norm(image)) <= cutoff * float(top):  # copies: nothing is left
        return SingularSpace(V, s, W)
    more, turn = (found.flip(-1) for found in torch.linalg.eigh(gram(image)))
    alive = more > (cutoff * top) ** 2
    t, turn = more[alive].sqrt(), turn[:, alive]
    right = small @ turn
    return SingularSpace(
        torch.cat([V, right], dim=1), torch.cat([s, t]), torch.cat([W, (right - W @ (shared @ turn)) / t], dim=1)
    )


def singular_vectors(X: Tensor, cutoff: float = CUTOFF) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition of X without what does not exist, from the Gram matrix of its shorter side.

    Args:
        X: (m, n), any floating dtype; computed in float64.
        cutoff: singular values below this share of the largest do not exist.

    Returns:
        U (m, k), s (k,) descending, V (n, k), in float64. k is 0 for the zero matrix.

    Example:
        >>> U, s, V = singular_vectors(torch.tensor([[3.0, 4.0]]))
        >>> s, (U @ torch.diag(s) @ V.T).round(decimals=9)
        (tensor([5.], dtype=torch.float64), tensor([[3., 4.]], dtype=torch.float64))
    """
    if X.shape[1] > X.shape[0]:
        V, s, U = singular_vectors(X.T, cutoff)
        return U, s, V
    space = singular_space(X, cutoff)
    return times(X, space.inverse), space.values, space.right
