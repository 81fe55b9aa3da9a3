"""One sweep of one weight, as every kernel gives it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

#: The flows on the row side and on the column side of a stored matrix, one row for each expert; None for one that is
#: not needed.
Flows = tuple[Tensor | None, Tensor | None]


class Sweep(Protocol):
    """One sweep of one weight for some experts, ready for the weight's tiles. Thread-safe."""

    def __call__(self, tile: Tensor, start: int) -> tuple[Tensor, list[Tensor]]:
        """The work on rows `start:` of the weight.

        Args:
            tile: theta (m, d), in a dtype that `Kernel.tile_dtype` gave.
            start: number of its first row.

        Returns:
            |W_n| v_n (n, m) along the rows, or |W_n|^T u_n (n, d) along the columns, a row for each expert; and with
            both flows given, the tile's part of gamma, (r,), of every expert that has factors.
        """
