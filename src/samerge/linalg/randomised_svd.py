"""Truncated SVD of a matrix that is only ever seen some rows at a time (Halko, Martinsson and Tropp, 2011).

For M (m, n), a rank k and a random W (m, l), l = k + OVERSAMPLE:

    V_0 = orth(M^T W)                        one pass over the rows
    V_j = orth(M^T (M V_(j-1)))              `power` passes: each tile T gives T^T (T V)
    Y   = M V                                one pass; thin SVD Y = U S X^T, M ~ U S (V X)^T, cut to k

V is made orthonormal again after every pass, in float64. M V V^T is an orthogonal projection of M, so that the error is
known without another pass: ||M - M_k||_F^2 = ||M||_F^2 - sum_(i <= k) S_i^2. Where the spectrum decays the error is the
optimum's (Eckart and Young) to a fraction of a percent; a flat one has no leading directions to find, and no worse ones
to take. Memory: a tile, and (m + n) l numbers. Where the matrix itself is not larger than that, or has few rows or
columns, it is gathered and decomposed exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from samerge.linalg.factors import LoraFactors, squared_norm
from samerge.linalg.truncation import peaks, rank_for

#: Gives the rows `start:stop` of a matrix, (stop - start, n).
Rows = Callable[[int, int], Tensor]

#: Entries of a tile where no number of rows is asked for.
TILE_ELEMENTS = 1 << 20

#: Directions looked for beyond the rank.
OVERSAMPLE = 8

#: A matrix with no more rows or columns than this is gathered and decomposed exactly.
SMALL = 64


def truncated_svd(
    rows: Rows,
    shape: tuple[int, int],
    rank: int,
    *,
    energy: float | None = None,
    power: int = 3,
    step: int | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[LoraFactors, Tensor, float]:
    """The best approximation of rank at most `rank`, nearly, of a matrix that is read a row tile at a time.

    Args:
        rows: `rows(start, stop)` gives rows of the matrix; called for tiles in order, `power + 2` times each. What
            it gives is not written to.
        shape: (m, n) of the matrix.
        rank: at least 1; where the matrix has fewer singular values, all of them are kept.
        energy: keep no more components than this share of ||M||_F^2 needs, in (0, 1]; at least one.
        power: passes that sharpen the directions, which are random and the same each time.
        step: rows of a tile.
        device: where to compute.
        dtype: what to compute the products in.

    Returns:
        The factors (scale 1, the singular values split evenly between A and B, as `truncate` does), the
        singular values kept, descending in float64, and the share of ||M||_F^2 that was lost, 0.0 to 1.0.

    Raises:
        ValueError: an argument is out of its range, a tile is of another shape, or holds NaN or infinite values.

    Example:
        >>> m = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
        >>> factors, values, lost = truncated_svd(lambda i, j: m[i:j], (3, 3), rank=2)
        >>> values, round(lost, 4)
        (tensor([3., 2.], dtype=torch.float64), 0.0714)
    """
    if rank < 1 or power < 0 or (energy is not None and not 0 < energy <= 1):
        raise ValueError(
            f"truncated_svd needs rank >= 1, power >= 0 and energy in (0, 1]; got rank={rank}, power={power}, "
            f"energy={energy}"
        )
    matrix = _Matrix(rows, shape, step, torch.device(device), dtype)
    width = min(rank + OVERSAMPLE, *shape)
    if min(shape) <= SMALL or width * (shape[0] + shape[1]) >= shape[0] * shape[1]:
        u, s, vh, total = _exact(matrix)
    else:
        u, s, vh, total = _sketched(matrix, width, power)
    return _cut(u, s, vh, total, rank if energy is None else min(rank, rank_for(s.square(), total, energy)))


class _Matrix:
    """A matrix by its tiles; knows its energy once it was passed over with `measured`."""

    def __init__(
        self, rows: Rows, shape: tuple[int, int], step: int | None, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.rows, self.shape, self.device, self.dtype = rows, shape, device, dtype
        self.step = step or max(1, TILE_ELEMENTS // max(1, shape[1]))

    def tiles(self) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, self.shape[0], self.step):
            stop = min(start + self.step, self.shape[0])
            tile = self.rows(start, stop).to(device=self.device, dtype=self.dtype)
            if tile.shape != (stop - start, self.shape[1]):
                raise ValueError(
                    f"rows({start}, {stop}) of a {self.shape} matrix gave {tuple(tile.shape)}; "
                    f"expected {(stop - start, self.shape[1])}"
                )
            yield slice(start, stop), tile

    def measured(self) -> Iterator[tuple[slice, Tensor, float]]:
        """The tiles with their energy."""
        for span, tile in self.tiles():
            square = squared_norm(tile)
            if not square < float("inf"):
                raise ValueError(f"rows {span.start}:{span.stop} hold NaN or infinite values; check the weights")
            yield span, tile, square


def _exact(matrix: _Matrix) -> tuple[Tensor, Tensor, Tensor, float]:
    dense = torch.empty(matrix.shape, dtype=torch.float64, device=matrix.device)
    total = 0.0
    for span, tile, square in matrix.measured():
        dense[span] = tile
        total += square
    u, s, vh = torch.linalg.svd(dense, full_matrices=False)
    return u.to(matrix.dtype), s, vh.to(matrix.dtype), total


def _sketched(matrix: _Matrix, width: int, power: int) -> tuple[Tensor, Tensor, Tensor, float]:
    m, n = matrix.shape
    # drawn on the CPU, so that every device looks in the same directions
    drawn = torch.randn(m, width, generator=torch.Generator().manual_seed(0)).to(matrix.device, matrix.dtype)
    found = drawn.new_zeros(n, width)
    total = 0.0
    for span, tile, square in matrix.measured():
        found.addmm_(tile.T, drawn[span])
        total += square
    unit = total**-0.5 if total else 0.0  # keeps M^T M within the floats' range, whatever the units of M
    for _ in range(power):
        basis = _orthonormal(found)
        found = torch.zeros_like(found)
        for _, tile in matrix.tiles():
            found.addmm_(tile.T, (tile @ basis).mul_(unit), alpha=unit)
    basis = _orthonormal(found)
    image = drawn  # as large, and no longer needed
    for span, tile in matrix.tiles():
        torch.mm(tile, basis, out=image[span])
    q, r = torch.linalg.qr(image.double())
    u, s, xh = torch.linalg.svd(r, full_matrices=False)
    return (q @ u).to(matrix.dtype), s, (xh @ basis.T.double()).to(matrix.dtype), total


def _orthonormal(columns: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(columns.double())[0]
    return basis.to(columns.dtype)


def _cut(u: Tensor, s: Tensor, vh: Tensor, total: float, rank: int) -> tuple[LoraFactors, Tensor, float]:
    u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    peak = peaks(vh)
    root = s.sqrt().to(u.dtype)
    lost = min(1.0, max(0.0, 1.0 - float(s.square().sum()) / total)) if total else 0.0
    return LoraFactors(A=vh * peak * root[:, None], B=u * peak.T * root), s, lost
