"""A low-rank update as triplets U diag(S) V^T: what a merged layer is from the method to the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samerge.linalg.factors import LoraFactors, balanced
from samerge.linalg.truncation import singular_triplets, singular_triplets_of


@dataclass(frozen=True)
class Triplets:
    """The update U diag(S) V^T of one linear map, its components in the order in which a truncation keeps them.

    Where U and V are orthonormal, S are the singular values (with the sign of a weight, perhaps), sorted by magnitude;
    among equal ones the more important component comes first. Then truncation is a slice, and norms and the effective
    rank read S. Where they are not, two QRs and a small SVD bring them there, once (`orthonormalised`).

    Args:
        U: (d_out, k).
        S: (k,) in float64; may be negative.
        V: (d_in, k).
        orthonormal: whether the columns of U are orthonormal, and those of V.
        owners: (k,) the number of the adapter that each component comes from; None where they are mixed.

    Example:
        >>> t = Triplets(torch.eye(3, 2), torch.tensor([2.0, 1.0], dtype=torch.float64), torch.eye(4, 2), True)
        >>> round(t.truncated(1)[1], 6), t.rank, round(t.norm, 6)
        (0.2, 2, 2.236068)
    """

    U: Tensor
    S: Tensor
    V: Tensor
    orthonormal: bool
    owners: Tensor | None = None

    def __post_init__(self) -> None:
        k = len(self.S)
        if self.U.ndim != 2 or self.V.ndim != 2 or self.S.ndim != 1 or (self.U.shape[1], self.V.shape[1]) != (k, k):
            raise ValueError(
                f"Triplets needs U (d_out, k), S (k,), V (d_in, k); got {tuple(self.U.shape)}, {tuple(self.S.shape)}, "
                f"{tuple(self.V.shape)}"
            )

    @property
    def rank(self) -> int:
        """Number of components, k."""
        return len(self.S)

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the update."""
        return self.U.shape[0], self.V.shape[0]

    @property
    def norm(self) -> float:
        """Frobenius norm of the update."""
        return float(torch.linalg.vector_norm(self.orthonormalised().S))

    def delta(self) -> Tensor:
        """The dense update, (d_out, d_in). For checks: the merge never calls it."""
        return (self.U * self.S.to(self.U.dtype)) @ self.V.T

    def scaled(self, factor: float) -> Triplets:
        """The update times a number."""
        return replace(self, S=self.S * factor)

    def select(self, index: Tensor) -> Triplets:
        """The components of `index` (1-d, long), in its order."""
        owners = None if self.owners is None else self.owners[index]
        return Triplets(self.U[:, index], self.S[index], self.V[:, index], self.orthonormal, owners)

    def orthonormalised(self) -> Triplets:
        """The same update by its singular triplets; itself where it has them. Owners are lost where they mix."""
        if self.orthonormal:
            return self
        u, s, vh = singular_triplets(self.factors())
        return Triplets(u, s, vh.T, True)

    def compact(self) -> Triplets:
        """The same update with no more components than it has rows or columns; itself where that is so."""
        return self if self.rank <= min(self.shape) else self.orthonormalised()

    def truncated(self, rank: int) -> tuple[Triplets, float]:
        """The best approximation of rank at most `rank`, and the share of ||tau||_F^2 that it lost, 0.0 to 1.0."""
        if rank >= self.rank:
            return self, 0.0
        whole = self.orthonormalised()
        squares = whole.S.square()
        total, lost = float(squares.sum()), float(squares[rank:].sum())
        return whole.select(torch.arange(min(rank, whole.rank), device=whole.S.device)), lost / total if total else 0.0

    def factors(self) -> LoraFactors:
        """As B A with |S| split evenly between the two, each component's factors of like size."""
        root = self.S.abs().sqrt()
        left = (self.U.double() * (root * self.S.sign())).to(self.U.dtype)
        right = (self.V.double() * root).to(self.V.dtype)
        return balanced(LoraFactors(A=right.T.contiguous(), B=left))


def from_factors(factors: LoraFactors, owners: Tensor | None = None) -> Triplets:
    """The components b_k a_k^T of an update as they are, with their norms as S: not orthonormal.

    Args:
        factors: of any rank; the scale is folded in.
        owners: (r,) the adapter that each component comes from.

    Example:
        >>> from_factors(LoraFactors(A=torch.eye(2), B=torch.eye(2) * 3.0)).S
        tensor([3., 3.], dtype=torch.float64)
    """
    f = factors.folded()
    left, right = (torch.linalg.vector_norm(m, dim=0, dtype=torch.float64) for m in (f.B, f.A.T))  # (r,) each
    tiny = torch.finfo(torch.float64).tiny
    U = (f.B.double() / left.clamp_min(tiny)).to(f.B.dtype)
    V = (f.A.T.double() / right.clamp_min(tiny)).to(f.A.dtype)
    return Triplets(U, left * right, V, False, owners)


def singular(factors: LoraFactors) -> Triplets:
    """The singular triplets of an update, without those that its float32 factors leave of zero.

    Canonical: any (B Q, Q^-1 A) gives the same. Two QRs and an SVD of the small core.
    """
    return _existing(*singular_triplets(factors), factors.rank)


def singular_of(parts: Sequence[LoraFactors]) -> list[Triplets]:
    """`singular` of several updates."""
    return [_existing(*one, part.rank) for one, part in zip(singular_triplets_of(parts), parts, strict=True)]


def _existing(u: Tensor, s: Tensor, vh: Tensor, rank: int) -> Triplets:
    eps = torch.finfo(torch.float32).eps
    exists = s > 8 * rank * eps * s[:1].clamp_min(torch.finfo(torch.float64).tiny) if len(s) else s > 0
    count = int(exists.sum())  # s descends
    return Triplets(u[:, :count], s[:count], vh[:count].T, True)


def zero(shape: tuple[int, int]) -> Triplets:
    """The update of rank 0.

    Args:
        shape: (d_out, d_in).
    """
    return Triplets(torch.zeros(shape[0], 0), torch.zeros(0, dtype=torch.float64), torch.zeros(shape[1], 0), True)
