"""Triplets of several random adapters of one layer, in the ways in which real ones lie to one another."""

from __future__ import annotations

import torch
from torch import Tensor

from samerge.linalg.factors import LoraFactors
from samerge.linalg.stack import stacked
from samerge.linalg.triplets import Triplets, singular

#: How the adapters of a stack lie to one another.
KINDS = ("distinct", "same start", "nearly copies", "copies", "too many")


def adapters(kind: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[LoraFactors]:
    """Five updates of one (41, 29) layer, of ranks 3, 4, 2, 3, 4; fifteen of them where they shall be too many."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    start = draw(4, 29)
    first = [draw(41, 4), draw(4, 29)]
    found = []
    for n in range(15 if kind == "too many" else 5):
        rank = (3, 4, 2, 3, 4)[n % 5]
        A, B = draw(rank, 29), draw(41, rank)
        if kind == "same start":  # A as it was drawn, but for what training moved
            A = start[:rank] + 0.02 * A
        elif kind == "nearly copies":
            A, B = first[1] + 3e-4 * draw(4, 29), first[0] + 3e-4 * draw(41, 4)
        elif kind == "copies" and n in (1, 3):
            turn = draw(4, 4) + 3 * torch.eye(4, dtype=torch.float64)
            A, B = torch.linalg.solve(turn, first[1]), first[0] @ turn * (1 + n)
        found.append(LoraFactors(A.to(dtype), B.to(dtype)))
    return found


def stack(kind: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> Triplets:
    """The triplets of `adapters`, side by side."""
    return stacked({n: singular(part) for n, part in enumerate(adapters(kind, seed, dtype))})


def dense_polar(X: Tensor, cutoff: float = 1e-6) -> Tensor:
    """The partial isometry of least norm, by an SVD in float64."""
    u, s, vh = torch.linalg.svd(X.double(), full_matrices=False)
    alive = s > cutoff * s[0]
    return u[:, alive] @ vh[alive]


def dense_sum(triplets: Triplets, weights: Tensor) -> Tensor:
    """T = sum_k w_k s_k u_k v_k^T, term by term."""
    total = torch.zeros(*triplets.shape, dtype=torch.float64)
    for k in range(triplets.rank):
        total += weights[k] * triplets.S[k] * torch.outer(triplets.U[:, k].double(), triplets.V[:, k].double())
    return total


def size(matrix: Tensor) -> float:
    """Its Frobenius norm."""
    return float(torch.linalg.vector_norm(matrix))
