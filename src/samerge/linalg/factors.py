"""Low-rank factors: the update tau = scale * B A of one linear map, and what can be done without ever forming it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LoraFactors:
    """The update `scale * B @ A` of one linear map, in the orientation (out, in).

    Args:
        A: (r, d_in).
        B: (d_out, r).
        scale: LoRA's scaling, alpha / r or alpha / sqrt(r).

    Example:
        >>> f = LoraFactors(A=torch.ones(2, 3), B=torch.ones(4, 2), scale=0.5)
        >>> f.delta().shape, f.rank
        (torch.Size([4, 3]), 2)
    """

    A: Tensor
    B: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or self.B.ndim != 2 or self.A.shape[0] != self.B.shape[1]:
            raise ValueError(
                f"LoraFactors needs A (r, d_in) and B (d_out, r); got A {tuple(self.A.shape)}, B {tuple(self.B.shape)}"
            )

    @property
    def rank(self) -> int:
        """Number of rank-1 components, r."""
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the update."""
        return self.B.shape[0], self.A.shape[1]

    def delta(self) -> Tensor:
        """The dense update `scale * B @ A`, (d_out, d_in). For checks: the merge never calls it."""
        return self.scale * (self.B @ self.A)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LoraFactors:
        """The same factors on another device or in another dtype."""
        return LoraFactors(self.A.to(device=device, dtype=dtype), self.B.to(device=device, dtype=dtype), self.scale)

    def folded(self) -> LoraFactors:
        """The same update with the scale multiplied into B."""
        return self if self.scale == 1.0 else LoraFactors(self.A, self.B * self.scale)

    def turned(self) -> LoraFactors:
        """The update of the transposed weight, (scale * B A)^T = scale * A^T B^T."""
        return LoraFactors(self.B.T.contiguous(), self.A.T.contiguous(), self.scale)

    def select(self, index: Tensor) -> LoraFactors:
        """The rank-1 components of `index` (1-d, long), in its order."""
        return LoraFactors(self.A[index], self.B[:, index], self.scale)

    def existing(self) -> LoraFactors:
        """Without the components that are exactly zero (a zero column of B or row of A)."""
        alive = (self.A != 0).any(dim=1) & (self.B != 0).any(dim=0)
        return self if bool(alive.all()) else self.select(alive.nonzero().flatten())


def concatenate(parts: Sequence[LoraFactors], weights: Sequence[float] | None = None) -> LoraFactors:
    """The weighted sum `sum_i w_i tau_i`, exactly: components side by side, weights and scales folded into B.

    Args:
        parts: at least one; all of one shape (d_out, d_in), any ranks.
        weights: one for each part, 1.0 by default.

    Returns:
        Factors of rank `sum_i r_i` and scale 1.
    """
    weights = [1.0] * len(parts) if weights is None else weights
    return LoraFactors(
        A=torch.cat([part.A for part in parts]),
        B=torch.cat([part.B * (w * part.scale) for part, w in zip(parts, weights, strict=True)], dim=1),
    )


def gram(factors: LoraFactors) -> Tensor:
    """The Gram matrix of the rank-1 components under the Frobenius inner product, (r, r).

    H_kj = <b_k a_k^T, b_j a_j^T> = (B^T B)_kj (A A^T)_kj, with the scale folded in.
    """
    f = factors.folded()
    return (f.B.T @ f.B) * (f.A @ f.A.T)


def norm(factors: LoraFactors) -> Tensor:
    """The Frobenius norm of `scale * B @ A`, from the Gram matrices, a scalar in float64."""
    return gram(factors.to(dtype=torch.float64)).sum().clamp_min(0).sqrt()


def squared_norm(matrix: Tensor) -> float:
    """The squared Frobenius norm of a dense matrix, or of a tile of one, summed in float64."""
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2


def pad(factors: LoraFactors, rank: int) -> LoraFactors:
    """The same update with zero components appended up to `rank`; exact."""
    missing = rank - factors.rank
    if missing < 0:
        raise ValueError(f"cannot pad factors of rank {factors.rank} down to rank {rank}; truncate instead")
    if missing == 0:
        return factors
    d_out, d_in = factors.shape
    return LoraFactors(
        A=torch.cat([factors.A, factors.A.new_zeros(missing, d_in)]),
        B=torch.cat([factors.B, factors.B.new_zeros(d_out, missing)], dim=1),
        scale=factors.scale,
    )


def balanced(factors: LoraFactors) -> LoraFactors:
    """The same update, each component's two factors brought to like size by a power of two: exact in floating point.

    Half precision then keeps both factors equally well; a singular value that sits in B alone would push small entries
    below fp16's normal range.
    """
    f = factors.folded()
    size_a, size_b = f.A.abs().amax(dim=1), f.B.abs().amax(dim=0)  # (r,)
    alive = (size_a > 0) & (size_b > 0)
    ratio = torch.where(alive, size_b / size_a.clamp_min(torch.finfo(f.A.dtype).tiny), torch.ones_like(size_a))
    power = torch.exp2((ratio.clamp_min(torch.finfo(f.A.dtype).tiny).log2() / 2).round())
    return LoraFactors(f.A * power[:, None], f.B / power)
