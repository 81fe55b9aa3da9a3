"""The core space of several low-rank updates: small matrices that stand for them exactly.

    [B_1 ... B_N] = Q_B R_B     [A_1; ...; A_N]^T = Q_A R_A     (thin QRs, scales folded into B)
    K_i = Q_B^T tau_i Q_A       tau_i = Q_B K_i Q_A^T exactly

K_i is R x R for R = r_1 + ... + r_N, or as large as a dimension where R exceeds it. A method that commutes with
orthogonal maps on either side, M(P tau_i Q) = P M(tau_i) Q, gives on the K_i what it gives on the dense tau_i. Methods
that look at single elements do not commute. All of it is in float64. Cost O((d_in + d_out) R^2 + R^3), against
O(d_out d_in min(d_out, d_in)) for one dense SVD.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samerge.linalg.factors import LoraFactors

#: Singular values below this share of the largest, times the size, are what the factors' float32 leaves of zero.
ROUNDING = 8 * torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class CoreSpace:
    """Several updates of one linear map as small cores between common orthonormal bases.

    Args:
        left: Q_B, (d_out, k_b), float64.
        right: Q_A, (d_in, k_a), float64.
        cores: K_i, (k_b, k_a) each, float64.
    """

    left: Tensor
    right: Tensor
    cores: tuple[Tensor, ...]

    def lift(self, core: Tensor, dtype: torch.dtype = torch.float32) -> LoraFactors:
        """Q_B core Q_A^T as factors of the core's own rank, singular values split evenly between A and B."""
        u, s, vh = existing_triplets(core)
        root = s.sqrt()
        return LoraFactors(
            A=((vh * root[:, None]) @ self.right.T).to(dtype),
            B=(self.left @ (u * root)).to(dtype),
        )

    def canonical(self) -> CoreSpace:
        """The same updates between bases that depend on nothing but the updates, up to the signs of their columns.

        The left one are the left singular vectors of [K_1 ... K_N], the right one the right singular vectors of
        [K_1; ...; K_N]; directions that do not exist are left out.
        """
        u = existing_triplets(torch.cat(self.cores, dim=1))[0]
        v = existing_triplets(torch.cat(self.cores))[2].T
        return CoreSpace(self.left @ u, self.right @ v, tuple(u.T @ core @ v for core in self.cores))


def core_space(parts: Sequence[LoraFactors]) -> CoreSpace:
    """The core space of at least one update, all of one shape.

    Example:
        >>> f, g = LoraFactors(torch.eye(2, 5), torch.ones(4, 2)), LoraFactors(torch.ones(1, 5), torch.eye(4, 1))
        >>> space = core_space([f, g])
        >>> [tuple(core.shape) for core in space.cores]
        [(3, 3), (3, 3)]
    """
    folded = [part.to(dtype=torch.float64).folded() for part in parts]
    q_b, r_b = torch.linalg.qr(torch.cat([part.B for part in folded], dim=1))  # (d_out, k_b), (k_b, R)
    q_a, r_a = torch.linalg.qr(torch.cat([part.A for part in folded]).T)  # (d_in, k_a), (k_a, R)
    ranks = [part.rank for part in folded]
    cores = tuple(b @ a.T for b, a in zip(r_b.split(ranks, dim=1), r_a.split(ranks, dim=1), strict=True))
    return CoreSpace(q_b, q_a, cores)


def existing_triplets(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD without the singular values that are zero but for the rounding of float32 factors.

    Returns:
        U (m, k), S (k,) descending, Vh (k, n); k is 0 for the zero matrix.
    """
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    if s.numel():
        alive = s > ROUNDING * min(matrix.shape) * s[0]
        u, s, vh = u[:, alive], s[alive], vh[alive]
    return u, s, vh


def isometry(matrix: Tensor) -> Tensor:
    """The polar factor X Y^T of a matrix X S Y^T: the nearest matrix with singular values 1, or 0 where it has 0."""
    x, _, yh = existing_triplets(matrix)
    return x @ yh
