"""A weight seen as a matrix, some rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from samerge.errors import BaseModelError
from samerge.graph.widths import matrix_shape
from samerge.weights.protocol import WeightSource
from samerge.weights.stored import name_of


def spans(shape: Sequence[int], entries: int = 1 << 20) -> Iterator[tuple[int, int]]:
    """First row and one past the last row of every tile of a tensor.

    Args:
        shape: of the tensor; one without dimensions has one row.
        entries: of a tile at most, but for a row that has more.

    Example:
        >>> list(spans((5, 2, 2), 9)), list(spans(()))
        ([(0, 2), (2, 4), (4, 5)], [(0, 1)])
    """
    rows = shape[0] if shape else 1
    step = max(1, entries // max(1, math.prod(shape[1:])))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def read_tile(
    source: WeightSource,
    tensor: str,
    expert: int | None,
    start: int,
    stop: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Rows `start:stop` of a weight seen as a matrix, on a device and in a dtype.

    Args:
        source: where the weights come from.
        tensor: full name; tensors of more than two dimensions (kernels) are flattened to (out, rest).
        expert: for a stack of matrices, which of them.
        start: first row.
        stop: one past the last row.
        device: where the tile shall lie.
        dtype: what it shall be computed in.

    Returns:
        (stop - start, columns).

    Raises:
        BaseModelError: the tensor holds integers, which are no weights or packed ones.
    """
    _, columns = matrix_shape(source.shapes[tensor], expert)
    rows = source.read(tensor, start, stop, expert)
    if not rows.dtype.is_floating_point:
        raise BaseModelError(
            f"reading the base model {source.name!r}: {tensor} {source.shapes[tensor]} holds integers "
            f"({name_of(rows.dtype)}), not weights; if they are packed, the configuration does not "
            f"say how: give the unquantised base instead"
        )
    return rows.to(device=device, dtype=dtype).reshape(-1, columns)
