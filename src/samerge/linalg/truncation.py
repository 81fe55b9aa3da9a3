"""Truncated SVD of a low-rank update, exactly and through the factors: two thin QRs and an SVD of the small core.

With B = Q_B R_B and A^T = Q_A R_A the update is tau = Q_B (scale R_B R_A^T) Q_A^T, so the singular values of tau are
those of the core, an r x r matrix. The best rank-k approximation in Frobenius norm (Eckart-Young) is the truncated SVD
of the core between Q_B and Q_A. Cost O((d_out + d_in) r^2 + r^3), against O(d_out d_in min(d_out, d_in)) for the dense
update.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from samerge.linalg.factors import LoraFactors
from samerge.linalg.gram import singular_vectors

#: Cores of more rows and columns than this are decomposed through their Gram matrix, three times as fast as by an SVD.
LARGE = 256

#: What a large core has below this share of its largest singular value is taken for rounding.
_ROUNDING = 1e-7


def singular_triplets(factors: LoraFactors) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD of `scale * B @ A` without forming it, unless that is the smallest there is.

    A side with more components than dimensions is not decomposed: the core is then as large as the layer there.

    Returns:
        U (d_out, k), S (k,) in descending order, Vh (k, d_in), with k = min(r, d_out, d_in), or fewer in a core above
        `LARGE` that has fewer singular values. The core is decomposed in
        float64; U and Vh come back in the dtype of the factors, S in float64. The sign of each triplet is fixed: the
        entry of largest magnitude in each row of Vh is positive, so that the result is deterministic.

    Example:
        >>> f = LoraFactors(A=torch.eye(2, 3), B=torch.eye(4, 2) * 3)
        >>> singular_triplets(f)[1]
        tensor([3., 3.], dtype=torch.float64)
    """
    return _triplets(factors.A, factors.B, factors.scale)


def singular_triplets_of(parts: Sequence[LoraFactors]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """`singular_triplets` of several updates; those of one shape and rank in one call for all, which saves time where
    they are small.
    """
    alike: dict[tuple[object, ...], list[int]] = {}
    for at, part in enumerate(parts):
        alike.setdefault((part.A.shape, part.B.shape, part.A.dtype, part.B.dtype, part.A.device), []).append(at)
    found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for places in alike.values():
        if len(places) == 1 or parts[places[0]].rank > LARGE:
            found |= {at: singular_triplets(parts[at]) for at in places}
            continue
        own = [parts[at].folded() for at in places]
        u, s, vh = _triplets(torch.stack([one.A for one in own]), torch.stack([one.B for one in own]), 1.0)
        found |= dict(zip(places, zip(u, s, vh, strict=True), strict=True))
    return [found[at] for at in range(len(parts))]


def _triplets(A: Tensor, B: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """The triplets of scale B A, (..., d_out, r) and (..., r, d_in)."""
    q_b, r_b = _reduced(B)  # (d_out, k_b), (k_b, r)
    q_a, r_a = _reduced(A.mT)  # (d_in, k_a), (k_a, r)
    core = scale * (r_b.double() @ r_a.double().mT)  # (k_b, k_a)
    if min(core.shape[-2:]) > LARGE:
        u, s, v = singular_vectors(core, _ROUNDING)
        vh = v.T
    else:
        u, s, vh = torch.linalg.svd(core, full_matrices=False)
    left = u.to(r_b.dtype) if q_b is None else q_b @ u.to(q_b.dtype)
    right = vh.to(r_a.dtype) if q_a is None else vh.to(q_a.dtype) @ q_a.mT
    if s.numel():
        peak = peaks(right)
        left, right = left * peak.mT, right * peak
    return left, s, right


def peaks(right: Tensor) -> Tensor:
    """The sign of the entry of largest magnitude in each row, (..., k, 1): what a triplet's sign is fixed by."""
    peak = right.gather(-1, right.abs().argmax(dim=-1, keepdim=True)).sign()
    return torch.where(peak == 0, torch.ones_like(peak), peak)


def _reduced(matrix: Tensor) -> tuple[Tensor | None, Tensor]:
    """Q (d, r) and R (r, r) of a thin QR; None and the matrix itself where it is wider than tall."""
    matrix = matrix.to(_at_least_float32(matrix))
    if matrix.shape[-1] >= matrix.shape[-2]:
        return None, matrix
    q, r = torch.linalg.qr(matrix)
    return q, r


def svd_basis(factors: LoraFactors) -> LoraFactors:
    """The same update with its singular triplets as rank-1 components: b_k = sigma_k u_k, a_k = v_k^T, scale 1.

    Canonical: any (B Q, Q^-1 A) gives the same components. Components whose singular value is below the rounding of
    the factors (`8 r eps sigma_1`) do not exist and are left out; the zero update has rank 0. The core is r x r, so its
    rounding grows with r; a bound that grew with the width would drop real components of wide layers.

    Rows and columns in which the update is zero stay zero, where rounding would leave something (and so a sign).
    """
    u, s, vh = singular_triplets(factors)
    for vectors, alive in ((u, factors.B.any(dim=1)), (vh.T, factors.A.any(dim=0))):
        if not bool(alive.all()):
            vectors[~alive] = 0
    if s.numel():
        eps = torch.finfo(u.dtype).eps
        keep = s > 8 * factors.rank * eps * s[0]
        u, s, vh = u[:, keep], s[keep], vh[keep]
    return LoraFactors(A=vh, B=u * s.to(u.dtype))


def truncate(factors: LoraFactors, rank: int, energy: float | None = None) -> tuple[LoraFactors, float]:
    """The best approximation of rank at most `rank` in Frobenius norm, through the factors.

    The singular values are split evenly: b_k = sqrt(sigma_k) u_k, a_k = sqrt(sigma_k) v_k^T, so that both factors have
    entries of like size, which half precision keeps best.

    Args:
        factors: of any rank.
        rank: at least 1. Where the update has fewer singular values, fewer components come back.
        energy: keep no more components than this share of ||tau||_F^2 needs, in (0, 1].

    Returns:
        The truncated factors, and the share of the energy ||tau||_F^2 that was lost, 0.0 to 1.0.
    """
    u, s, vh = singular_triplets(factors)
    squares = s.square()
    total = float(squares.sum())
    if energy is not None:
        rank = min(rank, rank_for(squares, total, energy))
    lost = float(squares[rank:].sum()) / total if total > 0 else 0.0
    root = s[:rank].sqrt().to(u.dtype)
    return LoraFactors(A=vh[:rank] * root[:, None], B=u[:, :rank] * root), lost


def rank_for(squares: Tensor, total: float, energy: float) -> int:
    """The smallest number of leading components that hold a share of the energy; all of them where none do.

    Args:
        squares: squared singular values, descending, float64.
        total: energy of the whole matrix; `squares` may be its beginning only.
        energy: the share, in (0, 1].

    Returns:
        At least 1.

    Example:
        >>> rank_for(torch.tensor([9.0, 4.0, 1.0], dtype=torch.float64), 14.0, 0.9)
        2
    """
    slack = 1e-12 * total  # the sum's own rounding must not cost a component
    enough = (squares.cumsum(0) >= energy * total - slack).nonzero()
    return max(1, int(enough[0]) + 1 if len(enough) else len(squares))


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
