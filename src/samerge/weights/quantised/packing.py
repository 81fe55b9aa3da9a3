"""What the quantised formats share: a weight made of several tensors, bit fields, and scales spread over blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from samerge.weights.stored import Held, Stored, whole


@dataclass(frozen=True)
class Dequantised:
    """A weight that is computed from packed tensors as its rows are read, in float32.

    Args:
        shape: the weight's own.
        rows: gives rows `start:stop`, of one matrix of a stack with the third argument.
        dtype: of the rows.
    """

    shape: tuple[int, ...]
    rows: Callable[[int, int, int | None], Tensor]
    dtype: torch.dtype = torch.float32

    def read(self, start: int, stop: int, expert: int | None = None) -> Tensor:
        """Rows `start:stop`, dequantised."""
        return self.rows(start, min(stop, self.shape[0 if expert is None else 1]), expert)


@dataclass(frozen=True)
class Found:
    """A quantised weight.

    Args:
        name: of the weight before it was quantised.
        weight: its values.
        parts: the tensors that it is made of.
    """

    name: str
    weight: Stored
    parts: tuple[str, ...]


class Loader:
    """Reads small or column-packed tensors as a whole, and holds the last few while tiles of them are made."""

    def __init__(self, raw: Mapping[str, Stored]) -> None:
        self._raw = raw
        self._held = Held(8)

    def __call__(self, name: str) -> Tensor:
        """All of a tensor."""
        return self._held.get(name, lambda: whole(self._raw[name]))


def stems(raw: Mapping[str, Stored], ending: str) -> Iterator[str]:
    """The names that have this ending, without it."""
    return (name.removesuffix(ending) for name in raw if name.endswith(ending))


def present(raw: Mapping[str, Stored], stem: str, *endings: str) -> tuple[str, ...]:
    """Those of the endings that there are tensors for, as full names."""
    return tuple(stem + ending for ending in endings if stem + ending in raw)


def bit_fields(packed: Tensor, bits: int, count: int) -> Tensor:
    """Unsigned integers of `bits` bits each, packed densely from the low end of 32-bit words.

    Args:
        packed: (rows, words) int32.
        bits: 1 to 8; a field may lie across two words.
        count: fields in each row.

    Returns:
        (rows, count) int32.

    Example:
        >>> bit_fields(torch.tensor([[0x87654321 - (1 << 32)]], dtype=torch.int32), 4, 8)
        tensor([[1, 2, 3, 4, 5, 6, 7, 8]], dtype=torch.int32)
    """
    words = packed.to(torch.int64) & 0xFFFFFFFF
    first = torch.arange(count, device=packed.device) * bits
    word, shift = first // 32, first % 32
    values = words[:, word] >> shift
    if 32 % bits:
        after = (word + 1).clamp_max(words.shape[1] - 1)
        spill = words[:, after] << (32 - shift).clamp_min(0)
        values = torch.where(shift + bits > 32, values | spill, values)
    return (values & ((1 << bits) - 1)).to(torch.int32)


def nibbles(packed: Tensor, high_first: bool) -> Tensor:
    """The two halves of each byte, side by side along the last dimension, (..., n) uint8 -> (..., 2 n) uint8."""
    low, high = packed & 15, packed >> 4
    return torch.stack((high, low) if high_first else (low, high), dim=-1).flatten(-2)


def fp4(packed: Tensor) -> Tensor:
    """4-bit floats (E2M1), two in a byte, the low half first, (..., n) -> (..., 2 n) float32."""
    positive = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    table = torch.tensor([*positive, *(-value for value in positive)], device=packed.device)
    return table[nibbles(packed.view(torch.uint8), high_first=False).long()]


def numbers(scale: Tensor) -> Tensor:
    """Scales in float32; bytes are powers of two with a bias of 127 (E8M0)."""
    return (scale.float() - 127).exp2() if scale.dtype == torch.uint8 else scale.float()


def spread(scale: Tensor, start: int, stop: int, columns: int, block: tuple[int, int]) -> Tensor:
    """One scale for each entry of rows `start:stop`.

    Args:
        scale: (block rows, block columns), or anything that holds a single number.
        start: first row of the weight.
        stop: one past the last row.
        columns: of the weight.
        block: height and width of a block; the last ones may be cut short.

    Returns:
        (stop - start, columns), or (stop - start, 1), or (1, 1) where that is enough.
    """
    if scale.numel() == 1:
        return scale.reshape(1, 1)
    rows = torch.arange(start, stop, device=scale.device) // block[0]
    chosen = scale[rows]
    if chosen.shape[1] == 1:
        return chosen
    return chosen[:, torch.arange(columns, device=scale.device) // block[1]]


def block_of(shape: tuple[int, int], scale: tuple[int, ...], wanted: object = None) -> tuple[int, int]:
    """Height and width of the blocks that share a scale.

    Args:
        shape: the weight's rows and columns.
        scale: shape of the scales; fewer than two dimensions mean one number for all, or one for each row.
        wanted: the block size in the configuration, if it says one.

    Raises:
        ValueError: the scales do not cover the weight in equal blocks.
    """
    grid = (*scale, 1, 1)[:2]
    if isinstance(wanted, (list, tuple)) and len(wanted) == 2:
        block = (int(wanted[0]), int(wanted[1]))
        if all(-(-size // b) == count for size, b, count in zip(shape, block, grid, strict=True)):
            return block
    if any(size % count for size, count in zip(shape, grid, strict=True)):
        raise ValueError(f"scales of shape {scale} do not fit a weight of shape {shape} in equal blocks")
    return shape[0] // grid[0], shape[1] // grid[1]
