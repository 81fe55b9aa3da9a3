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
        flow: (m, n) for a product along the rows, |W| f; (d, n) for one along the columns, |W|^T f. One column for each
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

    Args:
        tile: theta (m, d).
        start: number of its first row.
        experts: which experts.
        sides: the updates of those that adapt this weight; the others' W is theta.
        flow: (d, N) when along the rows, (rows, N) when along the columns; one column for each expert there is.
        along_rows: which of the two products.
        scratch: the thread's buffers.
    """
    rows = slice(start, start + tile.shape[0])
    parts = flow if along_rows else flow[rows]  # (d, N) or (m, N)
    result = tile.new_empty(tile.shape[0] if along_rows else tile.shape[1], len(experts))
    gammas: dict[int, Tensor] = {}
    plain: list[int] = []
    for place, n in enumerate(experts):
        side = sides.get(n)
        if side is None:
            plain.append(place)
            continue
        left = side.left[rows]
        weight = torch.mm(left, side.right, out=scratch.like(tile, 0)).add_(tile)
        if side.weighted is not None and side.flow is not None:
            sign = torch.sign(weight, out=scratch.like(tile, 1))
            product = (sign @ side.weighted).mul_(left)  # (m, r)
            gammas[n] = product.T.double() @ side.flow[rows].double()
        weight.abs_()
        torch.mv(weight if along_rows else weight.T, parts[:, n], out=result[:, place])
    if plain:
        weight = torch.abs(tile, out=scratch.like(tile, 0))
        columns = parts[:, [experts[place] for place in plain]]
        result[:, plain] = (weight if along_rows else weight.T) @ columns
    return TileResult(result, gammas)
