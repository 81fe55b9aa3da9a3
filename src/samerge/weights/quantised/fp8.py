"""8-bit floats with scales: for each block of a matrix (DeepSeek, Qwen3), for each row, or one for all.

W = W_8 * scale. `weight_scale_inv` is that same scale, in spite of its name. Scales that are bytes are powers of two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from samerge.weights.quantised.packing import Dequantised, Found, Loader, block_of, numbers, spread
from samerge.weights.stored import Stored, name_of

_ENDINGS = ("_scale_inv", "_scale")


def find(raw: Mapping[str, Stored], settings: Mapping[str, Any]) -> Iterator[Found]:
    """The weights in 8-bit floats that have scales beside them; those without are numbers as they are."""
    load = Loader(raw)
    for name, weight in raw.items():
        scales = [name + ending for ending in _ENDINGS if name + ending in raw]
        if not scales or len(weight.shape) < 2:
            continue
        if weight.dtype.is_floating_point and weight.dtype.itemsize > 1:
            continue  # numbers already, whatever stands beside them
        if not weight.dtype.is_floating_point:
            kind = name_of(weight.dtype)
            raise ValueError(f"{name} is {kind} with scales beside it; only 8-bit floats can be read")
        beside = [f"{name.removesuffix('.weight')}.{part}" for part in ("input_scale", "activation_scale")]
        yield Found(name, scaled(weight, scales[0], raw, load, settings.get("weight_block_size")), (
            name, scales[0], *(part for part in beside if part in raw))
        )  # fmt: skip


def scaled(weight: Stored, scale: str, raw: Mapping[str, Stored], load: Loader, block_size: object) -> Dequantised:
    """A weight of small numbers times its scales.

    Args:
        weight: (rows, columns), or a stack of these.
        scale: name of the scales.
        raw: all tensors.
        load: reads the scales.
        block_size: height and width of a block, as the configuration says; else from the shapes.
    """
    matrix: tuple[int, int] = (weight.shape[-2], weight.shape[-1])
    grid = raw[scale].shape if len(weight.shape) == 2 else raw[scale].shape[1:]
    block = block_of(matrix, grid, block_size)

    def rows(start: int, stop: int, expert: int | None) -> Tensor:
        if len(weight.shape) == 3 and expert is None:
            return torch.stack([rows(0, matrix[0], e) for e in range(start, stop)])
        scales = numbers(load(scale))
        scales = scales if expert is None else scales[expert]
        scales = scales.reshape(-1, 1) if scales.ndim < 2 else scales
        values = weight.read(start, stop, expert).float()
        return values * spread(scales.to(values.device), start, stop, matrix[1], block)

    return Dequantised(weight.shape, rows)
