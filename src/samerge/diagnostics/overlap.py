"""How a merged update M compares with one expert's own update tau, through the factors.

With the expert's singular triplets tau = C V^T, V (d_in, r) orthonormal, every input that it reacts to lies in the span
of V. What the merge makes of these inputs is M V = B_M (A_M V), a thin matrix, and so

    <M, tau>              = <M V, C>
    ||(M - tau) V V^T||_F = ||M V - C||_F
    ||(M - tau) tau^T||_F = ||(M V - C) C^T||_F

    ||M (I - V V^T)||_F^2 = ||M||_F^2 - ||M V||_F^2

are exact, without a dense update and without the cancellation that norms by Gram matrices have. Triplets are the same
for all factors (B Q, Q^-1 A) of one update, so the figures are, too. Cost O((d_in + d_out) r (r + r_M)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samerge.compress import svd_basis
from samerge.factors import LoraFactors, norm


@dataclass(frozen=True)
class Overlap:
    """Squared norms and an inner product of a merged update M and one expert's tau, in one layer.

    Args:
        own: ||tau||_F^2.
        merged: ||M||_F^2.
        inner: <M, tau>.
        error: ||(M - tau) V V^T||_F^2, over the inputs that tau reacts to, all alike.
        beside: ||M (I - V V^T)||_F^2, over all other inputs, to which tau does nothing.
        share: r / (d_in - r), how many directions tau reacts to for one that it does not; 0 where it reacts to all.
        weighted_error: ||(M - tau) tau^T||_F^2, over the same inputs, in proportion to how strongly tau reacts.
        weighted_own: ||tau tau^T||_F^2.
    """

    own: float
    merged: float
    inner: float
    error: float
    beside: float
    share: float
    weighted_error: float
    weighted_own: float

    @property
    def retention(self) -> float | None:
        """<M, tau> / ||tau||^2: how much of tau is in M. 1 for M = tau, 0 for what has nothing to do with it."""
        return _ratio(self.inner, self.own)

    @property
    def cosine(self) -> float | None:
        """<M, tau> / (||M|| ||tau||), 0 for M = 0."""
        if not self.merged and self.own:
            return 0.0
        return _ratio(self.inner, math.sqrt(self.merged * self.own))

    @property
    def interference(self) -> float | None:
        """||(M - tau) V V^T|| / ||tau||: the error on the expert's own inputs, relative to what it does to them."""
        return _root(_ratio(self.error, self.own))

    @property
    def spill(self) -> float | None:
        """sqrt(r / (d_in - r)) ||M (I - V V^T)|| / ||tau||: what M does to the inputs that tau leaves alone.

        Taken as if these, together, were as strong as the expert's own inputs, which are r directions of d_in.
        """
        return _root(_ratio(self.share * self.beside, self.own))

    @property
    def weighted_interference(self) -> float | None:
        """||(M - tau) tau^T|| / ||tau tau^T||: the same with the expert's strongest inputs in front (as WUDI aims)."""
        return _root(_ratio(self.weighted_error, self.weighted_own))

    def figures(self) -> dict[str, float | None]:
        """The figures by name; None for a tau of zero."""
        return {
            "retention": self.retention,
            "cosine": self.cosine,
            "interference": self.interference,
            "spill": self.spill,
            "weighted_interference": self.weighted_interference,
        }


def overlaps(merged: LoraFactors, experts: Sequence[LoraFactors]) -> list[Overlap]:
    """Compare a merged update with the experts' own, all of one linear map.

    Args:
        merged: M as it is written: scaled, truncated.
        experts: tau_i as they were trained, in float32 or float64.

    Returns:
        One for each expert.

    Example:
        >>> tau = LoraFactors(torch.eye(1, 5), torch.eye(4, 1))
        >>> [found] = overlaps(LoraFactors(tau.A, tau.B / 2), [tau])
        >>> found.retention, found.cosine, found.interference, found.spill
        (0.5, 1.0, 0.5, 0.0)
    """
    size = float(norm(merged)) ** 2
    return [_overlap(merged, size, expert) for expert in experts]


def _overlap(merged: LoraFactors, size: float, expert: LoraFactors) -> Overlap:
    own = svd_basis(expert)  # tau = own.B @ own.A, the rows of own.A orthonormal
    whole = merged.to(own.A.device, own.A.dtype).folded()
    image = whole.B @ (whole.A @ own.A.T)  # M V, (d_out, r)
    error = image - own.B
    others = expert.shape[1] - own.rank
    return Overlap(
        own=_square(own.B),
        merged=size,
        inner=float((image.double() * own.B.double()).sum()),
        error=_square(error),
        beside=max(0.0, size - _square(image)),
        share=own.rank / others if others else 0.0,
        weighted_error=_product_square(error, own.B),
        weighted_own=_product_square(own.B, own.B),
    )


def effective_rank(factors: LoraFactors) -> float:
    """How many directions an update really uses: (sum_k sigma_k^2)^2 / sum_k sigma_k^4, 1 to its rank; 0 for zero.

    The exponential of the Renyi entropy of order 2 of the squared singular values' shares. With the Gram matrices
    G_A = A A^T, G_B = B^T B, it is tr(G_B G_A)^2 / tr((G_B G_A)^2), so no decomposition is needed.

    Example:
        >>> effective_rank(LoraFactors(torch.eye(2, 5), torch.eye(4, 2)))
        2.0
    """
    f = factors.folded()
    product = (f.B.T @ f.B).double() @ (f.A @ f.A.T).double()  # (r, r), the eigenvalues are sigma_k^2
    fourth = float((product * product.T).sum())
    return float(product.diagonal().sum()) ** 2 / fourth if fourth > 0 else 0.0


def _square(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2


def _product_square(left: Tensor, right: Tensor) -> float:
    """||left right^T||_F^2 = <left^T left, right^T right>."""
    return float(((left.T @ left).double() * (right.T @ right).double()).sum().clamp_min(0))


def _ratio(value: float, by: float) -> float | None:
    return value / by if by > 0 else None


def _root(value: float | None) -> float | None:
    return None if value is None else math.sqrt(value)
