"""Tiles on a GPU through Triton: theta is read once for all experts, in the dtype it is stored in.

Each program of the kernel leaves its part of the sums in a workspace, which `torch.sum` adds up: no atomics, so that a
run on the same GPU with the same versions repeats bit by bit. For the same reason the block sizes are fixed, and not
chosen by timing at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from threading import Lock
from typing import Literal, get_args

import torch
import triton
import triton.language as tl
from torch import Tensor

from samerge.linalg.factors import LoraFactors
from samerge.saliency.kernels.sweeps import Flows
from samerge.saliency.kernels.triton_kernel import sweep_kernel

#: How left @ right is computed, which decides the signs: in float32 ("ieee"), or on tensor cores in three products of
#: TF32 numbers (21 bits of mantissa together) or of bfloat16 numbers (16 bits).
Products = Literal["ieee", "tf32x3", "bf16x3"]

#: Whether the kernel runs in Triton's interpreter (TRITON_INTERPRET=1 when Triton was imported): on the CPU, slowly.
INTERPRETED = not isinstance(sweep_kernel, triton.JITFunction)

#: The interpreter swaps Triton's functions for its own while a kernel runs, for all threads.
_IN_TURN = Lock()

#: bfloat16 numbers that stand for one float32 number in the product with the signs.
PIECES: dict[Products, int] = {"ieee": 3, "tf32x3": 3, "bf16x3": 2}

#: Entries of a tile: in bfloat16 64 MiB, so that most weights are one.
_ELEMENTS = 1 << 25
_LOADED = (torch.float32, torch.bfloat16, torch.float16)
_LEAST_RANK, _MOST_RANK = 16, 64  # of a block; 16 is the least that a product on tensor cores takes


@dataclass(frozen=True)
class Blocks:
    """What one program works on.

    Args:
        rows: of theta, as the sum sees it (it runs along the columns); a power of 2, at least 16.
        columns: likewise; the more, the smaller the workspace beside theta.
        warps: of 32 threads.
        stages: depth of the pipeline that loads the factors of the experts to come.
    """

    rows: int = 128
    columns: int = 128
    warps: int = 8
    stages: int = 2


@dataclass(frozen=True)
class Packed:
    """The updates of one weight by all experts, in the orientation it is stored in, ready for the kernel.

    Args:
        ranks: of the experts that adapt the weight, in order.
        left: (components, rows) float32.
        right: (components, columns) float32.
        starts: (adapted + 1,) int32, where each expert's components begin.
        experts: (N,) int32, the experts that adapt the weight, then the others.
    """

    ranks: tuple[int, ...]
    left: Tensor
    right: Tensor
    starts: Tensor
    experts: Tensor

    @property
    def block_rank(self) -> int:
        """Components that one product takes."""
        return min(_MOST_RANK, max(_LEAST_RANK, int(triton.next_power_of_2(max(self.ranks, default=1)))))


def pack(factors: Sequence[LoraFactors | None], transposed: bool, device: torch.device | str) -> Packed:
    """The updates of a weight brought together for one launch.

    Args:
        factors: of each expert, (out, in), scale folded in; None (or rank 0) for one that does not adapt the weight.
        transposed: the weight is stored (in, out).
        device: where they lie.
    """
    adapting = [(n, own) for n, own in enumerate(factors) if own is not None and own.rank]
    others = [n for n, own in enumerate(factors) if own is None or not own.rank]
    ranks = tuple(own.rank for _, own in adapting)
    starts = list(accumulate(ranks, initial=0))
    # one copy to the device, and none that would wait for the work already there
    table = torch.tensor([*starts, *(n for n, _ in adapting), *others], dtype=torch.int32).to(device, non_blocking=True)
    outs = [own.B.T for _, own in adapting] or [torch.empty(0, 0, device=device)]
    ins = [own.A for _, own in adapting] or [torch.empty(0, 0, device=device)]
    out, into = torch.cat(outs).float(), torch.cat(ins).float()
    left, right = (into, out) if transposed else (out, into)
    return Packed(ranks, left, right, table[: len(starts)], table[len(starts) :])


@torch.inference_mode()
def sweep(
    tile: Tensor,
    start: int,
    packed: Packed,
    flows: Flows,
    along_rows: bool,
    products: Products = "ieee",
    blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor | None]:
    """|W_n| v_n or |W_n|^T u_n for all experts on one tile; with both flows given, the tile's part of gamma too.

    Args:
        tile: theta (m, d), some rows of a weight; float32, bfloat16 or float16, any strides.
        start: number of its first row.
        packed: the updates of the weight.
        flows: u (N, rows) and v (N, d), float32; None for one that is not needed.
        along_rows: |W| v, else |W|^T u.
        products: how left @ right is computed.
        blocks: what one program works on.

    Returns:
        (N, m) or (N, d), by expert number; and (components,) float64, in the order of `packed`.

    Raises:
        ValueError: the flow that is summed with is missing.
    """
    blocks = blocks or Blocks()
    rows = slice(start, start + tile.shape[0])
    u, v = flows
    u = None if u is None else u[:, rows]
    left, right = packed.left[:, rows], packed.right
    if not along_rows:
        tile, left, right, u, v = tile.T, right, left, v, u
    if v is None:
        raise ValueError(f"a sum along the {'rows needs v' if along_rows else 'columns needs u'}")
    u, v = None if u is None else _flat(u), _flat(v)
    height, width = tile.shape
    components = len(left)
    across, down = triton.cdiv(width, blocks.columns), triton.cdiv(height, blocks.rows)
    sums = tile.new_empty((len(packed.experts), across, height), dtype=torch.float32)
    gammas = tile.new_empty((0 if u is None else across * down, components), dtype=torch.float32)
    with torch.cuda.device(tile.device) if tile.is_cuda else _IN_TURN:
        sweep_kernel[(across * down,)](
            tile,
            left,
            right,
            packed.starts,
            packed.experts,
            v if u is None else u,
            v,
            sums,
            gammas,
            height,
            width,
            *tile.stride(),
            left.stride(0),
            right.stride(0),
            0 if u is None else u.stride(0),
            v.stride(0),
            len(packed.ranks),
            len(packed.experts),
            components,
            SENSE=u is not None,
            PRODUCTS=products,
            PIECES=PIECES[products],
            ONE_BLOCK=max(packed.ranks, default=0) <= packed.block_rank,
            OPERAND=tl.float32 if INTERPRETED else tl.bfloat16,
            BM=blocks.rows,
            BN=blocks.columns,
            BK=packed.block_rank,
            num_warps=blocks.warps,
            num_stages=blocks.stages,
            enable_fp_fusion=True,  # one rounding for a product and a sum; Triton's default is about to change
        )
    return sums.sum(1), None if u is None else gammas.sum(0, dtype=torch.float64)


def _flat(flow: Tensor) -> Tensor:
    """With entries side by side, as the kernel takes them."""
    return flow if flow.stride(-1) == 1 else flow.contiguous()


@dataclass(frozen=True)
class TritonSweep:
    """One sweep of one weight for some experts; see `backend.Sweep`."""

    packed: Packed
    flows: Flows
    along_rows: bool
    products: Products
    blocks: Blocks | None

    def __call__(self, tile: Tensor, start: int) -> tuple[Tensor, list[Tensor]]:
        """See `backend.Sweep`."""
        found, gamma = sweep(tile, start, self.packed, self.flows, self.along_rows, self.products, self.blocks)
        return found, [] if gamma is None else list(torch.split(gamma, list(self.packed.ranks)))


def products_of(name: str) -> Products:
    """The products of a kernel by its name, "triton" or "triton-" and the products."""
    return next(products for products in get_args(Products) if name in ("triton", f"triton-{products}"))


class TritonKernel:
    """Sweeps by the Triton kernel; see `backend.Kernel`.

    Args:
        products: how left @ right is computed.
        blocks: what one program works on.
    """

    def __init__(self, products: Products = "ieee", blocks: Blocks | None = None) -> None:
        self._products, self._blocks = products, blocks
        # An iteration's two sweeps share their factors. The list is held with the result, so that its ids stay its own.
        self._packed: dict[tuple[int, ...], tuple[Sequence[LoraFactors | None], Packed]] = {}

    @property
    def name(self) -> str:
        """Of the kernel, with the products when they are not the default."""
        return "triton" if self._products == "ieee" else f"triton-{self._products}"

    def tile_dtype(self, stored: torch.dtype) -> torch.dtype:
        """As stored, where the kernel reads that."""
        return stored if stored in _LOADED else torch.float32

    def tile_rows(self, height: int, width: int) -> int:
        """Rows of a tile, all tiles of like height."""
        return -(-height // -(-height * width // _ELEMENTS))

    def sweep(
        self,
        factors: Sequence[LoraFactors | None],
        transposed: bool,
        flows: Flows,
        along_rows: bool,
    ) -> TritonSweep:
        """See `backend.Kernel`."""
        device = next(flow.device for flow in flows if flow is not None)
        known = tuple(map(id, factors))
        if known not in self._packed:
            self._packed[known] = factors, pack(factors, transposed, device)
        return TritonSweep(self._packed[known][1], flows, along_rows, self._products, self._blocks)
