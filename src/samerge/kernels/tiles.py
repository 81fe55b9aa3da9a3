"""The work on one tile of a base weight, in plain torch, for any device.

A tile is theta (m, d), some rows of a base weight; an expert's effective weight there is W = theta + left @ right with
left (m, r) the rows of one LoRA factor and right (r, d) the other. Neither W's absolute value nor its sign outlives
the call. `Scratch` holds the two buffers that every call reuses.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Scratch:
    """Two reusable buffers, W and sign(W), of the largest tile seen."""

    def __init__(self) -> None:
        self._buffers: list[Tensor | None] = [None, None]

    def like(self, tile: Tensor, slot: int) -> Tensor:
        """A buffer of the tile's shape, dtype and device; its content is whatever was left there."""
        held = self._buffers[slot]
        if held is None or held.numel() < tile.numel() or held.dtype != tile.dtype or held.device != tile.device:
            held = torch.empty(tile.numel(), dtype=tile.dtype, device=tile.device)
            self._buffers[slot] = held
        return held[: tile.numel()].view(tile.shape)


def effective(tile: Tensor, left: Tensor, right: Tensor, scratch: Scratch) -> Tensor:
    """W = theta + left @ right, (m, d), in the first scratch buffer."""
    return torch.addmm(tile, left, right, out=scratch.like(tile, 0))


def absolute(weight: Tensor, scratch: Scratch) -> Tensor:
    """|W|, (m, d), in the first scratch buffer (where W may lie already)."""
    return torch.abs(weight, out=scratch.like(weight, 0))


def sensitivity(weight: Tensor, left: Tensor, right: Tensor, u: Tensor, v: Tensor, scratch: Scratch) -> Tensor:
    """This tile's part of gamma_k = sum_ij u_i left_ik sign(W)_ij right_kj v_j, (r,) in float64.

    One thin product, sign(W) (right * v)^T (m, r), then an element-wise sum with u_i left_ik.

    Args:
        weight: W (m, d).
        left: (m, r).
        right: (r, d).
        u: flow on the row side, (m,).
        v: flow on the column side, (d,).
        scratch: the buffers; the second is used.
    """
    sign = torch.sign(weight, out=scratch.like(weight, 1))
    product = sign @ (right * v).T  # (m, r)
    return (product * left).T.double() @ u.double()
