"""The work on one tile of a base weight, in plain torch, for any device.

A tile is theta (m, d), some rows of a base weight. Expert n's effective weight there is W = theta + left @ right, with
left (m, r) the rows of one LoRA factor and right (r, d) the other. Neither |W| nor sign(W) outlives the call.

Costs are those of the thin products (2 r a weight for W, 2 r for gamma) and of passes over W that stay in the cache.
`mm` then an in-place add is faster than `addmm` with a separate output, which copies theta first.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Columns of a block inside a tile.
BLOCK_COLUMNS = 2048


@dataclass(frozen=True)
class Side:
    """One expert's update of a weight, in the orientation the weight is stored in: left (rows, r) @ right (r, columns).

    Args:
        left: (rows, r), all rows of the weight.
        right: (r, columns).
        weighted: (columns, r), `(right * v).T` with v the flow on the column side; only where gamma is wanted.
        flow: (rows,) the flow on the row side; only where gamma is wanted.
    """

    left: Tensor
    right: Tensor
    weighted: Tensor | None = None
    flow: Tensor | None = None


class Scratch(threading.local):
    """Two reusable buffers for each thread, W and sign(W), of the largest tile that the thread has seen."""

    def __init__(self) -> None:
        self._buffers: list[Tensor | None] = [None, None]

    def like(self, tile: Tensor, slot: int) -> Tensor:
        """A buffer of the tile's shape, dtype and device; its content is whatever was left there."""
        held = self._buffers[slot]
        if held is None or held.numel() < tile.numel() or held.dtype != tile.dtype or held.device != tile.device:
            held = torch.empty(tile.numel(), dtype=tile.dtype, device=tile.device)
            self._buffers[slot] = held
        return held[: tile.numel()].view(tile.shape)


@dataclass(frozen=True)
class TileResult:
    """What one tile adds.

    Args:
        flow: (n, m) for a product along the rows, |W| f; (n, d) for one along the columns, |W|^T f. One row for each
            expert that was asked for, in that order.
        gammas: for each expert with `weighted`, this tile's part of gamma, (r,) in float64.
    """

    flow: Tensor
    gammas: dict[int, Tensor]


def sweep_tile(
    tile: Tensor,
    start: int,
    experts: Sequence[int],
    sides: Mapping[int, Side],
    flow: Tensor,
    along_rows: bool,
    scratch: Scratch,
) -> TileResult:
    """|W_n| f_n or |W_n|^T f_n for several experts on one tile, and the tile's part of their gammas.

    gamma_k = sum_ij u_i left_ik sign(W)_ij right_kj v_j, with u the row side's flow and v the column side's: one thin
    product sign(W) (right * v)^T, (m, r), then an element-wise sum with u_i left_ik.

    Wide tiles are worked in blocks of columns: an expert's `right` for a block then stays in the cache as well.

    Args:
        tile: theta (m, d).
        start: number of its first row.
        experts: which experts.
        sides: the updates of those that adapt this weight; the others' W is theta.
        flow: (N, d) when along the rows, (N, rows) when along the columns; one row for each expert there is.
        along_rows: which of the two products.
        scratch: the thread's buffers.
    """
    height, width = tile.shape
    rows = slice(start, start + height)
    plain = [n for n in experts if n not in sides]
    result = tile.new_zeros(len(experts), height if along_rows else width)
    gammas: dict[int, Tensor] = {}
    for first in range(0, width, BLOCK_COLUMNS):
        columns = slice(first, first + BLOCK_COLUMNS)
        block = tile[:, columns]
        for place, n in enumerate(experts):
            side = sides.get(n)
            if side is None:
                continue
            left = side.left[rows]
            weight = torch.mm(left, side.right[:, columns], out=scratch.like(block, 0)).add_(block)
            if side.weighted is not None and side.flow is not None:
                sign = torch.sign(weight, out=scratch.like(block, 1))
                product = (sign @ side.weighted[columns]).mul_(left)  # (m, r)
                gamma = product.T.double() @ side.flow[rows].double()
                gammas[n] = gammas[n] + gamma if n in gammas else gamma
            weight.abs_()
            if along_rows:
                result[place] += weight @ flow[n, columns]
            else:
                torch.mv(weight.T, flow[n, rows], out=result[place, columns])
        if plain:
            weight = torch.abs(block, out=scratch.like(block, 0))
            where = [place for place, n in enumerate(experts) if n not in sides]
            if along_rows:
                result[where] += flow[plain, columns] @ weight.T
            else:
                result[where, columns] = flow[plain, rows] @ weight
    return TileResult(result, gammas)
