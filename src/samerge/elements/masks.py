"""Which elements of which expert survive: one bit each, in memory or in files of a work folder."""

from __future__ import annotations

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
        name = (expert, key)
        packed = np.packbits(kept.cpu().numpy(), axis=1)
        if self._folder is None:
            self._bits[name] = packed
        else:
            file = self._folder / f"{len(self._files):08d}.bits"
            packed.tofile(self._files.setdefault(name, file))
        self._shapes[name] = (kept.shape[0], kept.shape[1])
        self._counts[name] = int(kept.sum())

    def rows(self, expert: int, key: str, start: int, stop: int, device: torch.device) -> Tensor | None:
        """The survivors of some rows, (stop - start, columns) bool; None when all survive."""
        name = (expert, key)
        if name not in self._shapes:
            return None
        columns = self._shapes[name][1]
        if self._folder is None:
            bits = self._bits[name][start:stop]
        else:
            width = (columns + 7) // 8
            bits = np.fromfile(self._files[name], np.uint8, (stop - start) * width, offset=start * width)
            bits = bits.reshape(-1, width)
        return torch.from_numpy(np.unpackbits(bits, axis=1, count=columns)).view(torch.bool).to(device)

    def count(self, expert: int, key: str) -> int | None:
        """How many survive; None when all do."""
        return self._counts.get((expert, key))

    @property
    def nbytes(self) -> int:
        """Bytes of all bits."""
        return sum(rows * ((columns + 7) // 8) for rows, columns in self._shapes.values())
