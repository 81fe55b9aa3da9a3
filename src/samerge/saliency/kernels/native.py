"""The fused kernel for the CPU in float32: `sweep.c`, one call a tile.

A call leaves the interpreter's lock to other threads for as long as it runs. Bases in bfloat16 (and in float16, where
the compiler knows it) are read as they are stored, and widened strip by strip.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from samerge.linalg.factors import LoraFactors
from samerge.saliency.kernels.build import compiled
from samerge.saliency.kernels.sweeps import Flows

_SOURCE = Path(__file__).with_name("sweep.c")
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ALIGNMENT = 64
#: Rows of a tile come in multiples of this, which every register block divides; and are at least so many that packing
#: an expert's factors for a tile costs little beside working it.
_ROWS, _LEAST_ROWS = 12, 96
#: Entries of a tile. Small enough that a weight is many tiles, which keep several threads busy to the end.
_ELEMENTS = 288 * 1024


@cache
def library() -> ctypes.CDLL:
    """`sweep.c`, compiled and loaded.

    Raises:
        KernelError: that is not possible here.
    """
    loaded = compiled(_SOURCE)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    loaded.samerge_reads_float16.argtypes, loaded.samerge_reads_float16.restype = [], number
    loaded.samerge_scratch.argtypes, loaded.samerge_scratch.restype = [pointer, number, number, number], number
    loaded.samerge_sweep.argtypes = [pointer, *[number] * 5, pointer, number, number, pointer, pointer, pointer]
    loaded.samerge_sweep.restype = None
    return loaded


class _Scratch(threading.local):
    """A thread's working memory: as much as the largest call of this thread needed."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def pointer(self, floats: int) -> int:
        """Address of that many floats, aligned for vectors."""
        if self._buffer.numel() < floats + _ALIGNMENT:
            self._buffer = torch.empty(floats + _ALIGNMENT)
        address = self._buffer.data_ptr()
        return address + -address % _ALIGNMENT


class NativeKernel:
    """Sweeps by `sweep.c`.

    Raises:
        KernelError: it cannot be compiled here.
    """

    name = "native"

    def __init__(self) -> None:
        self._library = library()
        self._scratch = _Scratch()
        self._half = bool(self._library.samerge_reads_float16())

    def tile_dtype(self, stored: torch.dtype) -> torch.dtype:
        """The dtype that tiles are taken in: as stored where the kernel reads that."""
        known = stored in _KINDS and (self._half or stored != torch.float16)
        return stored if known else torch.float32

    def tile_rows(self, height: int, width: int) -> int:
        """Rows of a tile."""
        count = max(1, round(height / max(_LEAST_ROWS, _ELEMENTS // width)))
        return -(-height // count // _ROWS) * _ROWS

    def sweep(
        self,
        factors: Sequence[LoraFactors | None],
        transposed: bool,
        flows: Flows,
        along_rows: bool,
    ) -> NativeSweep:
        """See `backend.Kernel`."""
        return NativeSweep(self._library, self._scratch, factors, transposed, flows, along_rows)


class NativeSweep:
    """One sweep of one weight for some experts; see `backend.Sweep`."""

    def __init__(
        self,
        library: ctypes.CDLL,
        scratch: _Scratch,
        factors: Sequence[LoraFactors | None],
        transposed: bool,
        flows: Flows,
        along_rows: bool,
    ) -> None:
        self._library, self._scratch, self._along_rows = library, scratch, along_rows
        self._sensing = all(flow is not None for flow in flows)
        self._ranks = [f.rank for f in factors if f is not None]
        # The addresses below are of these tensors, which must live as long.
        self._held = [t.contiguous() if t is not None else None for t in flows]
        sides = [_sides(f, transposed) for f in factors]
        self._held += [tensor for pair in sides for tensor in pair]
        table = np.zeros((len(factors), 5), dtype=np.int64)  # `expert` in sweep.c
        for n, (left, right) in enumerate(sides):
            table[n, 0] = 0 if left is None else left.data_ptr()
            table[n, 1] = 0 if right is None else right.data_ptr()
            table[n, 4] = 0 if right is None else right.shape[0]
        for place, flow in zip((2, 3), self._held[:2], strict=True):
            if flow is not None:
                table[:, place] = flow.data_ptr() + np.arange(len(factors)) * flow.stride(0) * flow.itemsize
        self._table = table

    def __call__(self, tile: Tensor, start: int) -> tuple[Tensor, list[Tensor]]:
        """See `backend.Sweep`."""
        tile = tile if tile.stride(1) == 1 else tile.contiguous()
        height, width = tile.shape
        count = len(self._table)
        result = torch.empty(count, height if self._along_rows else width)
        gamma = torch.empty(sum(self._ranks), dtype=torch.float64) if self._sensing else None
        floats = self._library.samerge_scratch(self._table.ctypes.data, count, height, self._along_rows)
        self._library.samerge_sweep(
            tile.data_ptr(),
            _KINDS[tile.dtype],
            tile.stride(0),
            height,
            width,
            start,
            self._table.ctypes.data,
            count,
            self._along_rows,
            result.data_ptr(),
            None if gamma is None else gamma.data_ptr(),
            self._scratch.pointer(floats),
        )
        return result, [] if gamma is None else list(torch.split(gamma, self._ranks))


def _sides(factors: LoraFactors | None, transposed: bool) -> tuple[Tensor | None, Tensor | None]:
    """left (rows, r) and right (r, columns) of a weight as it is stored, contiguous."""
    if factors is None or not factors.rank:
        return None, None
    left, right = (factors.A.T, factors.B.T) if transposed else (factors.B, factors.A)
    return left.contiguous(), right.contiguous()
