"""How a merged update M compares with one expert's own update tau, through the factors.

With tau = C V^T, V (d_in, r) orthonormal (by a QR of A^T) and C of full rank, every input that tau reacts to lies in
the span of V. What the merge makes of these inputs is M V = B_M (A_M V), a thin matrix, and so

    <M, tau>              = <M V, C>
    ||(M - tau) V V^T||_F = ||M V - C||_F
    ||(M - tau) tau^T||_F = ||(M V - C) C^T||_F

    ||M (I - V V^T)||_F^2 = ||M||_F^2 - ||M V||_F^2

are exact, without a dense update and without the cancellation that norms by Gram matrices have. The span is the same
for all factors (B Q, Q^-1 A) of one update and another basis of it changes no norm, so the figures are the same, too.
Cost O((d_in + d_out) r (r + r_M)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samerge.linalg.factors import LoraFactors, norm

#: Singular values below this share of the largest cannot be told from zero by their squares in float64.
_SQUARED = 1e-7


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
        >>> [round(part, 3) for part in (found.retention, found.cosine, found.interference, found.spill)]
        [0.5, 1.0, 0.5, 0.0]
    """
    size = float(norm(merged)) ** 2
    return [_overlap(merged, size, expert) for expert in experts]


def _overlap(merged: LoraFactors, size: float, expert: LoraFactors) -> Overlap:
    V, C = _reaction(expert)
    whole = merged.to(V.device, V.dtype).folded()
    image = whole.B @ (whole.A @ V)  # M V, (d_out, r)
    error = image - C
    rank = V.shape[1]
    others = V.shape[0] - rank
    return Overlap(
        own=_square(C),
        merged=size,
        inner=float((image.double() * C.double()).sum()),
        error=_square(error),
        beside=max(0.0, size - _square(image)),
        share=rank / others if others else 0.0,
        weighted_error=_product_square(error, C),
        weighted_own=_product_square(C, C),
    )


def _reaction(expert: LoraFactors) -> tuple[Tensor, Tensor]:
    """tau = C V^T with V (d_in, r) orthonormal and C (d_out, r) of full rank, as far as rounding tells."""
    f = expert.folded()
    V, R = torch.linalg.qr(f.A.T)
    C = f.B @ R.T
    values, turns = torch.linalg.eigh(C.double().T @ C.double())  # sigma_k^2, ascending
    least = max(8 * expert.rank * torch.finfo(C.dtype).eps, _SQUARED) ** 2
    alive = values > least * values.amax() if len(values) else values > 0
    if bool(alive.all()):
        return V, C
    turn = turns[:, alive].to(C.dtype)
    return V @ turn, C @ turn


def effective_rank(factors: LoraFactors) -> float:
    """How many directions an update really uses: (sum_k sigma_k^2)^2 / sum_k sigma_k^4, 1 to its rank; 0 for zero.

    The exponential of the Renyi entropy of order 2 of the squared singular values' shares. With the Gram matrices
    G_A = A A^T, G_B = B^T B, it is tr(G_B G_A)^2 / tr((G_B G_A)^2), so no decomposition is needed.

    Example:
        >>> effective_rank(LoraFactors(torch.eye(2, 5), torch.eye(4, 2)))
        2.0
    """
    f = factors.folded()
    (B, _), (A, _) = _unit(f.B), _unit(f.A)  # no number times an update changes how many directions it has
    product = (B.T @ B).double() @ (A @ A.T).double()  # (r, r), the eigenvalues are in proportion to sigma_k^2
    fourth = float((product * product.T).sum())
    return float(product.diagonal().sum()) ** 2 / fourth if fourth > 0 else 0.0


def _square(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2


def _product_square(left: Tensor, right: Tensor) -> float:
    """||left right^T||_F^2 = <left^T left, right^T right>."""
    (left, one), (right, other) = _unit(left), _unit(right)
    square = float(((left.T @ left).double() * (right.T @ right).double()).sum().clamp_min(0))
    return square * (one * other) ** 2


def _unit(matrix: Tensor) -> tuple[Tensor, float]:
    """The matrix over a power of two, so that its largest element is near 1, and that power.

    Exact, and products of it neither overflow nor vanish in float32 however large or small the matrix is.
    """
    most = float(matrix.abs().amax()) if matrix.numel() else 0.0
    power = math.ldexp(1.0, math.frexp(most)[1] - 1) if most else 1.0
    return matrix / power, power


def _ratio(value: float, by: float) -> float | None:
    return value / by if by > 0 else None


def _root(value: float | None) -> float | None:
    return None if value is None else math.sqrt(value)
