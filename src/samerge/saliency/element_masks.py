"""Which elements of which expert survive: one bit each, in memory or in files of a work folder."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Masks:
    """Survivors by expert and weight. A weight that was never pruned has no bits: everything in it survives.

    Rows are packed each by itself, so that any rows can be had without the others.

    Args:
        folder: keeps the bits in files of this folder, read and written directly; None keeps them in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._bits: dict[tuple[int, str], NDArray[np.uint8]] = {}
        self._files: dict[tuple[int, str], Path] = {}
        self._shapes: dict[tuple[int, str], tuple[int, int]] = {}
        self._counts: dict[tuple[int, str], int] = {}

    def put(self, expert: int, key: str, kept: Tensor) -> None:
        """Set the survivors of an expert in a weight, (rows, columns) bool."""
        bools = kept.cpu().numpy()
        self.put_packed(expert, key, np.packbits(bools, axis=1), kept.shape[1], int(np.count_nonzero(bools)))

    def put_packed(self, expert: int, key: str, bits: NDArray[np.uint8], columns: int, count: int) -> None:
        """Set the survivors by their bits, (rows, ceil(columns / 8)), of which `count` are set."""
        name = (expert, key)
        if self._folder is None:
            self._bits[name] = bits
        else:
            file = self._folder / f"{len(self._files):08d}.bits"
            bits.tofile(self._files.setdefault(name, file))
        self._shapes[name] = (len(bits), columns)
        self._counts[name] = count

    def rows(self, expert: int, key: str, start: int, stop: int, device: torch.device) -> Tensor | None:
        """The survivors of some rows, (stop - start, columns) bool; None when all survive."""
        bits = self.packed(expert, key, start, stop)
        if bits is None:
            return None
        kept = np.unpackbits(bits, axis=1, count=self._shapes[expert, key][1])
        return torch.from_numpy(kept).view(torch.bool).to(device)

    def numbers(
        self, expert: int, key: str, start: int, stop: int, like: Tensor, alive: float = 1.0, dead: float = 0.0
    ) -> Tensor | None:
        """For some rows a number for each element that survives and another for each that does not; None when all do.

        Eight at a time from a table, which is several times faster than to go by bools.

        Args:
            expert: which.
            key: the weight.
            start: first row.
            stop: one past the last.
            like: of the wanted dtype and device.
            alive: the number of those that survive.
            dead: the number of those that do not.
        """
        bits = self.packed(expert, key, start, stop)
        if bits is None:
            return None
        table = _table(like.dtype, alive, dead)
        if like.device.type == "cpu":
            numbers = torch.from_numpy(np.take(table.numpy(), bits, axis=0))
        else:
            numbers = table.to(like.device)[torch.from_numpy(bits).to(like.device).int()]
        return numbers.reshape(stop - start, -1)[:, : self._shapes[expert, key][1]]

    def packed(self, expert: int, key: str, start: int, stop: int) -> NDArray[np.uint8] | None:
        """The bits of some rows; None when all survive."""
        name = (expert, key)
        if name not in self._shapes:
            return None
        if self._folder is None:
            return self._bits[name][start:stop]
        width = (self._shapes[name][1] + 7) // 8
        bits = np.fromfile(self._files[name], np.uint8, (stop - start) * width, offset=start * width)
        return bits.reshape(-1, width)

    def count(self, expert: int, key: str) -> int | None:
        """How many survive; None when all do."""
        return self._counts.get((expert, key))

    @property
    def nbytes(self) -> int:
        """Bytes of all bits."""
        return sum(rows * ((columns + 7) // 8) for rows, columns in self._shapes.values())


@lru_cache(maxsize=16)
def _table(dtype: torch.dtype, alive: float, dead: float) -> Tensor:
    """The eight numbers that each byte stands for, (256, 8)."""
    bits = torch.from_numpy(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)).bool()
    return torch.where(bits, alive, dead).to(dtype)
