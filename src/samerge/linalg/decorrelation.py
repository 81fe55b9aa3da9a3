"""Decorrelation (Gargiulo et al. 2025, TSV-Merge): vectors of several adapters made orthogonal to one another.

    X = [u_1 ... u_R], of norm 1,   X^T X = E diag(l) E^T,   X' = X E diag(f(l)) E^T,   f(l) = l^(7/2) / (l^4 + c^4)

Far above c this is the polar factor X (X^T X)^(-1/2): every vector keeps as much of its direction as it can while all
are made orthogonal, and what several share is divided among them. Directions in which unit vectors hardly differ, l far
below c, are left out: there are differences of near-copies (two checkpoints of one run, one adapter under two names),
and orthogonal vectors of these would be made of noise. The factor is of all vectors, also of those that are not kept:
each makes room for the others. The kept ones get norm 1 again, and once more the same among themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samerge.linalg.gram import gram, times

#: c: two vectors whose cosine is above 1 - c count as one.
NEAR = 0.003

#: Above this eigenvalue f(l) is l^(-1/2) to 1e-6.
CLEAR = 0.1


@dataclass(frozen=True)
class Decorrelated:
    """The kept vectors, decorrelated.

    Args:
        columns: (d, r).
        orthonormal: whether they are orthonormal (to 1e-6): else some of them share directions.
        largest: the largest eigenvalue of X^T X of the whole stack.
        gram: X^T X of the whole stack, (R, R) in float64 (of float32 products where it is well conditioned); None where
            R > d.
        root: (R, R) in float64 with X^T X = root root^T; None where R > d.
    """

    columns: Tensor
    orthonormal: bool
    largest: float
    gram: Tensor | None = None
    root: Tensor | None = None


def decorrelated(stack: Tensor, kept: Tensor, products: Tensor | None = None) -> Decorrelated:
    """The kept vectors of a stack, made orthogonal to one another and to all others.

    Cost: with n = min(d, R), 2 d R n operations, an n x n eigenproblem, and d n r for the r vectors; in float64 but for
    well-conditioned stacks of float32.

    Args:
        stack: (d, R), columns of norm 1.
        kept: (r,) long, the columns that are kept.
        products: X^T X in the precision of the stack, as float64, where it is known and R <= d.

    Example:
        >>> import torch
        >>> lean = torch.tensor([[1.0, 0.6], [0.0, 0.8]], dtype=torch.float64)
        >>> u = decorrelated(lean, torch.tensor([0, 1])).columns
        >>> torch.allclose(u.T @ u, torch.eye(2, dtype=torch.float64), atol=1e-6), bool((u[:, 1] @ lean[:, 1]) > 0.9)
        (True, True)
        >>> decorrelated(torch.ones(1, 2), torch.tensor([0, 1])).columns.round(decimals=4)  # copies share a direction
        tensor([[0.7071, 0.7071]], dtype=torch.float64)
    """
    first = _whitened(stack, kept, products)
    if first.orthonormal:
        return first
    columns = first.columns / torch.linalg.vector_norm(first.columns, dim=0)
    again = _whitened(columns, torch.arange(len(kept), device=kept.device))
    return replace(again, largest=first.largest, gram=first.gram, root=first.root)


def _whitened(X: Tensor, kept: Tensor, known: Tensor | None = None) -> Decorrelated:
    """X E f(l) E^T, its columns `kept`."""
    d, total = X.shape
    wide = total > d
    exact = wide or X.dtype == torch.float64
    if wide:
        products = gram(X.T)
    elif known is not None:
        products = known
    else:
        products = gram(X) if exact else (X.T @ X).double()
    if not exact and not _clear(products):
        exact, products = True, gram(X)
    values, E = torch.linalg.eigh(products)
    values = values.clamp_min(0)
    F = E * (values**3.5 / (values**4 + NEAR**4))
    largest = float(values[-1])
    if wide:  # the same by X X^T
        return Decorrelated(F @ times(X[:, kept].T, E).T, False, largest)
    turn = F @ E[kept].T
    columns = times(X, turn) if exact else X @ turn.float()
    return Decorrelated(columns, bool(values[0] > CLEAR), largest, products, E * values.sqrt())


def _clear(products: Tensor) -> bool:
    """Whether all eigenvalues are above `CLEAR`: then the rounding of float32 in the products stays what it is."""
    shifted = products - CLEAR * torch.eye(len(products), dtype=products.dtype, device=products.device)
    return int(torch.linalg.cholesky_ex(shifted).info) == 0
