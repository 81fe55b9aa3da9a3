"""How a merged update M compares with one adapter's own update tau, through the factors.

With tau = C V^T, V (d_in, r) orthonormal (by a QR of A^T) and C of full rank, every input that tau reacts to lies in
the span of V. What the merge makes of these inputs is M V = B_M (A_M V), a thin matrix, and so

    <M, tau>              = <M V, C>
    ||(M - tau) V V^T||_F = ||M V - C||_F

are exact, without a dense update and without the cancellation that norms by Gram matrices have; where little cancels,
those are used (`_overlaps`). The span is the same for all factors (B Q, Q^-1 A) of one update and another basis of it
changes no norm, so the figures are the same, too. Cost O((d_in + d_out) r (r + r_M)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samerge.linalg.factors import LoraFactors, norm, squared_norm
from samerge.linalg.sums import Summed
from samerge.linalg.triplets import Triplets

#: Singular values below this share of the largest cannot be told from zero by their squares in float64.
_SQUARED = 1e-7

#: An error below this share of what it is the difference of is not told by small matrices in float32.
_CANCELLED = 1e-2

#: Up to so many components of all adapters together `summed` is cheap: two eigenproblems of this size a layer.
MOST_COMPONENTS = 256


@dataclass(frozen=True)
class Overlap:
    """Squared norms and an inner product of a merged update M and one adapter's tau, in one layer.

    Args:
        own: ||tau||_F^2.
        merged: ||M||_F^2.
        inner: <M, tau>.
        error: ||(M - tau) V V^T||_F^2, over the inputs that tau reacts to, all alike.
    """

    own: float
    merged: float
    inner: float
    error: float

    @property
    def cosine(self) -> float | None:
        """<M, tau> / (||M|| ||tau||), 0 for M = 0; None for tau = 0."""
        if not self.own:
            return None
        return max(-1.0, min(1.0, self.inner / math.sqrt(self.merged * self.own))) if self.merged else 0.0

    @property
    def interference(self) -> float | None:
        """||(M - tau) V V^T|| / ||tau||: the error on the adapter's own inputs, relative to what it does to them."""
        return math.sqrt(self.error / self.own) if self.own else None


def overlaps(merged: LoraFactors, adapters: Sequence[LoraFactors | Triplets]) -> list[Overlap]:
    """Compare a merged update with the adapters' own, all of one linear map.

    Args:
        merged: M as it is written: scaled, truncated.
        adapters: tau_i as they were trained, in float32 or float64; where they are given by orthonormal triplets, those
            are used as they are, all together.

    Returns:
        One for each adapter.

    Example:
        >>> tau = LoraFactors(torch.eye(1, 5), torch.eye(4, 1))
        >>> [found] = overlaps(LoraFactors(tau.A, tau.B / 2), [tau])
        >>> found.cosine, found.interference
        (1.0, 0.5)
    """
    size = float(norm(merged)) ** 2
    folded = merged.folded()
    if adapters and all(isinstance(adapter, Triplets) for adapter in adapters):
        return _overlaps(folded, size, [adapter for adapter in adapters if isinstance(adapter, Triplets)])
    return [_overlap(folded, size, adapter) for adapter in adapters]


def summed(adapters: Sequence[LoraFactors]) -> Summed | None:
    """What the singular values of any weighted sum of updates need; None where there are too many components.

    Args:
        adapters: tau_n, one at least.

    Example:
        >>> one, other = (LoraFactors(torch.eye(2)[k : k + 1], torch.eye(2)[:, k : k + 1]) for k in (0, 1))
        >>> [round(value, 6) for value in summed([one, other]).squares([3.0, 4.0])]
        [16.0, 9.0]
    """
    if sum(adapter.rank for adapter in adapters) > MOST_COMPONENTS:
        return None
    folded = [adapter.folded() for adapter in adapters]
    B, A = torch.cat([f.B for f in folded], dim=1), torch.cat([f.A for f in folded])
    (left, up), (right, down) = (_unit_gram(side) for side in (B, A.T))  # (R, R) each
    values, turns = torch.linalg.eigh(left)
    ones = torch.full((len(right),), up * down, dtype=torch.float64, device=right.device)
    owners = torch.cat([torch.full((f.rank,), n) for n, f in enumerate(folded)])
    return Summed(turns * values.clamp_min(0).sqrt(), right, ones, owners)


def _overlaps(merged: LoraFactors, size: float, adapters: Sequence[Triplets]) -> list[Overlap]:
    """By triplets, and small matrices: ||M V - C||^2 = ||M V||^2 - 2 <M, tau> + ||tau||^2 where it is not small."""
    first = adapters[0]
    whole = merged.to(first.V.device, first.V.dtype)
    rows = torch.cat([whole.A @ one.V for one in adapters], dim=1).double()  # A_M V, (r_M, R)
    sides = torch.cat([whole.B.T @ one.U for one in adapters], dim=1).double()  # B_M^T U
    sigma = torch.cat([one.S for one in adapters])
    inner = (rows * sides).sum(dim=0) * sigma
    image = (rows * (whole.B.T.double() @ whole.B.double() @ rows)).sum(dim=0)  # ||M v_k||^2
    sums = torch.stack([sigma.square(), inner, image])
    each = torch.stack([part.sum(dim=1) for part in torch.split(sums, [one.rank for one in adapters], dim=1)]).tolist()
    found = []
    for one, (own, common, seen) in zip(adapters, each, strict=True):
        error = seen - 2 * common + own
        # the rest of a cancellation is rounding: such a one is looked at whole
        clear = error > _CANCELLED * (seen + own)
        found.append(Overlap(own, size, common, error) if clear else _overlap(merged, size, one))
    return found


def _overlap(merged: LoraFactors, size: float, adapter: LoraFactors | Triplets) -> Overlap:
    V, C = _reaction(adapter)
    whole = merged.to(V.device, V.dtype)
    image = whole.B @ (whole.A @ V)  # M V, (d_out, r)
    return Overlap(
        own=squared_norm(C),
        merged=size,
        inner=float((image.double() * C.double()).sum()),
        error=squared_norm(image - C),
    )


def _reaction(adapter: LoraFactors | Triplets) -> tuple[Tensor, Tensor]:
    """tau = C V^T with V (d_in, r) orthonormal and C (d_out, r) of full rank, as far as rounding tells."""
    if isinstance(adapter, Triplets):
        return adapter.V, adapter.U * adapter.S.to(adapter.U.dtype)
    f = adapter.folded()
    V, R = torch.linalg.qr(f.A.T)
    C = f.B @ R.T
    values, turns = torch.linalg.eigh(C.double().T @ C.double())  # sigma_k^2, ascending
    least = max(8 * adapter.rank * torch.finfo(C.dtype).eps, _SQUARED) ** 2
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
    B, A = _unit(f.B)[0], _unit(f.A)[0]  # no number times an update changes how many directions it has
    product = (B.T @ B).double() @ (A @ A.T).double()  # (r, r), the eigenvalues are in proportion to sigma_k^2
    fourth = float((product * product.T).sum())
    return float(product.diagonal().sum()) ** 2 / fourth if fourth > 0 else 0.0


def _unit_gram(matrix: Tensor) -> tuple[Tensor, float]:
    """X^T X of a matrix over a power of two, in float64, and the power; computed in the matrix's own dtype."""
    X, power = _unit(matrix)
    return (X.T @ X).double(), power


def _unit(matrix: Tensor) -> tuple[Tensor, float]:
    """The matrix over a power of two, so that its largest element is near 1; exact.

    Products of it neither overflow nor vanish in float32 however large or small the matrix is.
    """
    most = float(matrix.abs().amax()) if matrix.numel() else 0.0
    power = math.ldexp(1.0, math.frexp(most)[1] - 1) if most else 1.0
    return matrix / power, power
