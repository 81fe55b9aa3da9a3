"""How much a linear map hears of each direction of its inputs: a symmetric, positive S that updates are turned with.

From samples X (n, d) of what the map takes, with c the mean of its squared entries,

    C = X^T X / (n c),     S = (C + RIDGE I)^POWER

so that the mean of C's diagonal is 1. Where there are fewer samples than channels, C has d - n directions of its own
alike, and S is made of the n that differ: neither C nor S is ever whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Between taking all directions for equal (0) and measuring updates by what they do to the inputs (1/2).
POWER = 0.25
#: Of the mean square of a channel: directions in which there were no inputs are not left out.
RIDGE = 0.1

#: Eigenvalues of C below this make no difference beside the ridge, and their directions are rounding.
_NOTHING = 1e-5


@dataclass(frozen=True)
class Metric:
    """S = rest (I - V V^T) + V diag(values) V^T.

    Args:
        V: (d, k), orthonormal.
        values: (k,) in float64, positive.
        rest: what all other directions are multiplied with, positive.

    Example:
        >>> S = Metric(torch.eye(3, 1, dtype=torch.float64), torch.tensor([4.0]).double(), 2.0)
        >>> S.times(torch.ones(1, 3)), S.divided(torch.ones(1, 3))
        (tensor([[4., 2., 2.]]), tensor([[0.2500, 0.5000, 0.5000]]))
    """

    V: Tensor
    values: Tensor
    rest: float

    def times(self, rows: Tensor) -> Tensor:
        """rows S, for rows (m, d), in their dtype."""
        return self._turned(rows, self.values, self.rest)

    def divided(self, rows: Tensor) -> Tensor:
        """rows S^-1, likewise."""
        return self._turned(rows, 1 / self.values, 1 / self.rest)

    def to(self, device: torch.device) -> Metric:
        """The same on another device."""
        return Metric(self.V.to(device), self.values.to(device), self.rest)

    def _turned(self, rows: Tensor, values: Tensor, rest: float) -> Tensor:
        V = self.V.to(rows.dtype)
        return rest * rows + ((rows @ V) * (values - rest).to(rows.dtype)) @ V.T


def metric(samples: Tensor) -> Metric | None:
    """S of the inputs of a map; None where all samples are zero.

    Args:
        samples: X, (n, d) with n > 0; what is computed is in float64.

    Example:
        >>> S = metric(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        >>> S.times(torch.eye(2)).round(decimals=3)
        tensor([[1.1740, 0.0000],
                [0.0000, 0.7400]])
    """
    X = samples.double()
    mean = float(X.square().mean())
    if mean == 0:
        return None
    X = X / (len(X) * mean) ** 0.5
    n, d = X.shape
    if d <= n:
        values, V = torch.linalg.eigh(X.T @ X)
    else:  # X X^T has the same eigenvalues, but for zeros
        values, U = torch.linalg.eigh(X @ X.T)
        there = values > _NOTHING
        values = values[there]
        V = (X.T @ U[:, there]) / values.sqrt()
    return Metric(V.float(), (values.clamp_min(0) + RIDGE) ** POWER, RIDGE**POWER)
