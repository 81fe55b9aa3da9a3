"""The work on one tile of a base weight, in plain torch, for any device.

A tile is theta (m, d), some rows of a base weight. Expert n's effective weight there is W = theta + left @ right, with
left (m, r) the rows of one LoRA factor and right (r, d) the other. Neither |W| nor sign(W) outlives the call.

Costs are those of the thin products (2 r a weight for W, 2 r for gamma) and of a few passes over W that stay in the
cache. Measured choices: `mm` then an in-place add beats `addmm` with a separate output, which copies theta first; wide
tiles are worked in blocks of columns, with the factors stored block by block, so that a factor's block stays in the
cache and its rows do not fall on the same cache lines.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor

from samerge.linalg.factors import LoraFactors
from samerge.saliency.kernels.sweeps import Flows

#: Columns of a block inside a tile.
BLOCK_COLUMNS = 2048
#: Entries of a tile: 1 MiB in float32. Smaller ones stay in a core's own cache altogether, but then the operations are
#: so short that two threads spend their time passing the interpreter's lock to each other.
TILE_ELEMENTS = 1 << 18
#: The same on a device that is given its work operation by operation: large enough that this costs little beside it.
DEVICE_TILE_ELEMENTS = 1 << 25


@dataclass(frozen=True)
class Update:
    """One expert's update of a weight, in the orientation the weight is stored in: left (rows, r) @ right (r, columns).

    Args:
        expert: its number.
        left: (rows, r).
        right: (r, columns), in blocks of columns.
        weighted: (columns, r), `(right * v).T` with v the flow on the column side, in the same blocks; only where gamma
            is wanted.
        sensed: (rows, r), `left * u` with u the flow on the row side; only where gamma is wanted.
    """

    expert: int
    left: Tensor
    right: tuple[Tensor, ...]
    weighted: tuple[Tensor, ...] = ()
    sensed: Tensor | None = None


def update(
    expert: int, factors: LoraFactors, transposed: bool, u: Tensor | None = None, v: Tensor | None = None
) -> Update:
    """An expert's update made ready for the tiles of a weight: B @ A, or A^T @ B^T for a weight stored (in, out).

    Args:
        expert: its number.
        factors: (out, in), scale folded in.
        transposed: the weight is stored (in, out).
        u: (rows,) flow on the row side, where gamma is wanted.
        v: (columns,) flow on the column side, likewise.
    """
    left, right = (factors.A.T, factors.B.T) if transposed else (factors.B, factors.A)
    left = left.contiguous()
    blocks = tuple(block.contiguous() for block in _blocks(right))
    if u is None or v is None:
        return Update(expert, left, blocks)
    weighted = tuple(block.T.contiguous() for block in _blocks(right * v))
    return Update(expert, left, blocks, weighted, left * u[:, None])


def _blocks(right: Tensor) -> list[Tensor]:
    return [right[:, first : first + BLOCK_COLUMNS] for first in range(0, right.shape[1], BLOCK_COLUMNS)]


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


@torch.inference_mode()
def sweep_tile(
    tile: Tensor, start: int, updates: Sequence[Update], flow: Tensor, along_rows: bool, scratch: Scratch
) -> tuple[Tensor, list[Tensor]]:
    """|W_n| f_n or |W_n|^T f_n for several experts on one tile, and the tile's part of their gammas.

    gamma_k = sum_ij u_i left_ik sign(W)_ij right_kj v_j, with u the row side's flow and v the column side's: one thin
    product sign(W) (right * v)^T, (m, r), then an element-wise sum with u_i left_ik.

    Args:
        tile: theta (m, d).
        start: number of its first row.
        updates: of the experts that are wanted.
        flow: (N, d) when along the rows, (N, rows) when along the columns; one row for each expert there is.
        along_rows: which of the two products.
        scratch: the thread's buffers.

    Returns:
        (n, m) for a product along the rows, (n, d) for one along the columns, a row for each update; and, where it is
        wanted, each update's gamma over this tile, (r,) in the tile's dtype.
    """
    height, width = tile.shape
    rows = slice(start, start + height)
    result = tile.new_zeros(len(updates), height if along_rows else width)
    lefts = [item.left[rows] for item in updates]  # (m, r)
    sensing = bool(updates) and updates[0].sensed is not None
    products = [torch.zeros_like(left) for left in lefts] if sensing else []
    # An operation takes some 20 microseconds, a view two: views are made outside the loop over the experts.
    for number, first in enumerate(range(0, width, BLOCK_COLUMNS)):
        columns = slice(first, first + BLOCK_COLUMNS)
        theta = tile[:, columns]
        weight = scratch.like(theta, 0)
        factor = weight if along_rows else weight.T
        flows = (flow[:, columns] if along_rows else flow[:, rows]).unbind()
        targets = (result if along_rows else result[:, columns]).unbind()
        sign = scratch.like(theta, 1) if sensing else weight
        for place, item in enumerate(updates):
            torch.mm(lefts[place], item.right[number], out=weight).add_(theta)
            if sensing:
                products[place].addmm_(torch.sign(weight, out=sign), item.weighted[number])
            weight.abs_()
            targets[place].addmv_(factor, flows[item.expert])
    gammas = [
        (product * item.sensed[rows]).sum(0)
        for product, item in zip(products, updates, strict=False)
        if item.sensed is not None
    ]
    return result, gammas


def sweep_plain(tile: Tensor, start: int, flow: Tensor, along_rows: bool) -> Tensor:
    """|theta| f_n or |theta|^T f_n for experts that do not adapt this weight, all in one product.

    Args:
        tile: theta (m, d).
        start: number of its first row.
        flow: (n, d) when along the rows, (n, rows) when along the columns.
        along_rows: which of the two products.

    Returns:
        (n, m) or (n, d).
    """
    weight = tile.abs()
    return flow @ weight.T if along_rows else flow[:, start : start + tile.shape[0]] @ weight


class TorchKernel:
    """Sweeps by the functions of this file; see `backend.Kernel`.

    Args:
        device: where tiles and factors lie.
        dtype: what is computed in.
    """

    name = "torch"

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._elements = TILE_ELEMENTS if device.type == "cpu" else DEVICE_TILE_ELEMENTS
        self._scratch = Scratch()

    def tile_dtype(self, stored: torch.dtype) -> torch.dtype:
        """Always the dtype that is computed in."""
        return self._dtype

    def tile_rows(self, height: int, width: int) -> int:
        """Rows of a tile, all tiles of like height."""
        most = max(1, self._elements // max(1, min(width, BLOCK_COLUMNS)))
        return -(-height // -(-height // most))

    def sweep(
        self,
        factors: Sequence[LoraFactors | None],
        transposed: bool,
        flows: Flows,
        along_rows: bool,
    ) -> TorchSweep:
        """See `backend.Kernel`."""
        return TorchSweep(self._scratch, factors, transposed, flows, along_rows)


class TorchSweep:
    """One sweep of one weight for some experts; see `backend.Sweep`."""

    def __init__(
        self,
        scratch: Scratch,
        factors: Sequence[LoraFactors | None],
        transposed: bool,
        flows: Flows,
        along_rows: bool,
    ) -> None:
        u, v = flows
        flow = v if along_rows else u
        assert flow is not None
        self._scratch, self._flow, self._along_rows, self._count = scratch, flow, along_rows, len(factors)
        sides = zip(u, v, strict=True) if u is not None and v is not None else repeat((None, None), len(factors))
        self._updates = [
            update(n, own, transposed, *side)
            for (n, own), side in zip(enumerate(factors), sides, strict=True)
            if own is not None
        ]
        self._adapted = [item.expert for item in self._updates]
        self._plain = [n for n, own in enumerate(factors) if own is None]

    def __call__(self, tile: Tensor, start: int) -> tuple[Tensor, list[Tensor]]:
        """See `backend.Sweep`."""
        found, gammas = sweep_tile(tile, start, self._updates, self._flow, self._along_rows, self._scratch)
        if not self._plain:
            return found, gammas
        result = tile.new_empty(self._count, found.shape[1])
        result[self._adapted] = found
        result[self._plain] = sweep_plain(tile, start, self._flow[self._plain], self._along_rows)
        return result, gammas
