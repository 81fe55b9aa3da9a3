"""`elements.c`: flows, scores and masks of single elements, on tiles in float32 on the CPU.

A call leaves the interpreter's lock to other threads for as long as it runs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samerge.saliency.kernels.build import compiled

_SOURCE = Path(__file__).with_name("elements.c")

Bits = NDArray[np.uint8]


@cache
def library() -> ctypes.CDLL:
    """`elements.c`, compiled and loaded.

    Raises:
        KernelError: that is not possible here.
    """
    loaded = compiled(_SOURCE)
    pointer, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    loaded.samerge_element_flow.argtypes = [*[pointer] * 3, *[number] * 3, pointer, pointer, real, pointer, number]
    loaded.samerge_element_flow.restype = None
    loaded.samerge_element_scores.argtypes = [
        *[pointer] * 3,
        *[number] * 2,
        *[pointer] * 3,
        *[number] * 4,
        real,
        *[pointer] * 2,
        number,
    ]
    loaded.samerge_element_scores.restype = number
    loaded.samerge_element_threshold.argtypes = [pointer, number, pointer, number, pointer]
    loaded.samerge_element_threshold.restype = ctypes.c_uint32
    loaded.samerge_element_keep.argtypes = [pointer, number, number, pointer, ctypes.c_uint32, number, pointer]
    loaded.samerge_element_keep.restype = None
    loaded.samerge_element_prepare()
    return loaded


def flow(
    theta: Tensor,
    tau: Tensor | None,
    bits: Bits | None,
    vector: Tensor,
    out: Tensor,
    along_rows: bool,
    merged: Tensor | None,
    weight: float,
    whole: bool = False,
) -> None:
    """One expert's part of a product on a tile, all tensors contiguous.

    Args:
        theta: (m, d), in float32; or in bfloat16, with `whole`.
        tau: (m, d), unpruned, in theta's dtype; None where the expert does not change the weight.
        bits: (m, ceil(d / 8)), which of its elements survive; None when all do.
        vector: (d,) along the rows, (m,) else.
        out: set to |W| vector, (m,), along the rows; else |W|^T vector, (d,), is added to it.
        along_rows: which of the two.
        merged: (m, d); weight times what survives of tau is added to it.
        weight: of the expert.
        whole: tau is the expert's own weight, theta + tau.
    """
    library().samerge_element_flow(
        theta.data_ptr(),
        None if tau is None else tau.data_ptr(),
        None if bits is None else bits.ctypes.data,
        *theta.shape,
        along_rows,
        vector.data_ptr(),
        out.data_ptr(),
        weight,
        None if merged is None else merged.data_ptr(),
        _form(theta, whole),
    )


def _form(theta: Tensor, whole: bool) -> int:
    """How the C code is to read a tile."""
    return 2 if theta.dtype == torch.bfloat16 else int(whole)


class Selection:
    """The scores of an expert's survivors in a weight, gathered tile by tile, and which of them are the largest.

    Args:
        merged: T, (rows, columns), contiguous.
        pairs: u (rows,) and v (columns,) of every use of the weight; the gradient's magnitude is the sum of u v^T.
        task: which of the two scores; see `samerge.saliency.elements`.
        weight: of the expert.
        alive: how many survive so far.
    """

    def __init__(
        self, merged: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], task: bool, weight: float, alive: int
    ) -> None:
        self._merged, self._task, self._weight = merged, task, weight
        self._u, self._v = (torch.stack(list(side)).contiguous() for side in zip(*pairs, strict=True))
        self._scores = np.empty(alive + 8, np.uint32)
        self._counts = np.zeros(1 << 16, np.uint32)
        self._found = 0

    def add(self, theta: Tensor, tau: Tensor, bits: Bits | None, start: int, whole: bool = False) -> None:
        """Score the tile (m, d) whose first row is `start`; tiles come in order. Theta and tau as in `flow`."""
        self._found += library().samerge_element_scores(
            theta.data_ptr(),
            tau.data_ptr(),
            None if bits is None else bits.ctypes.data,
            *theta.shape,
            self._merged[start:].data_ptr(),
            self._u.data_ptr(),
            self._v.data_ptr(),
            *self._u.shape,
            start,
            self._task,
            self._weight,
            self._scores[self._found :].ctypes.data,
            self._counts.ctypes.data,
            _form(theta, whole),
        )

    def kept(self, count: int, bits: Bits | None) -> Bits:
        """The bits of the `count` largest, 1 or more; of equal ones the lower index stays.

        Args:
            count: how many.
            bits: the weight's so far, (rows, ceil(columns / 8)); None when all survive.
        """
        rows, columns = self._merged.shape
        ties = ctypes.c_int64()
        threshold = library().samerge_element_threshold(
            self._scores.ctypes.data, self._found, self._counts.ctypes.data, count, ctypes.byref(ties)
        )
        after = np.empty((rows, (columns + 7) // 8), np.uint8)
        library().samerge_element_keep(
            None if bits is None else bits.ctypes.data,
            rows,
            columns,
            self._scores.ctypes.data,
            threshold,
            ties,
            after.ctypes.data,
        )
        return after
