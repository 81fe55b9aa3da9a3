"""Which elements of which expert survive: one bit each, in memory or in a work folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samerge.errors import OptionError

_FOLDER = "samerge-work"
_OWNER = "owner.pid"


class Masks:
    """Survivors by expert and weight. A weight that was never pruned has no bits: everything in it survives.

    Rows are packed each by itself, so that any rows can be had without the others.

    Args:
        folder: keeps the bits in files of this folder, mapped into memory; None keeps them in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._bits: dict[tuple[int, str], NDArray[np.uint8]] = {}
        self._columns: dict[tuple[int, str], int] = {}
        self._counts: dict[tuple[int, str], int] = {}

    def put(self, expert: int, key: str, kept: Tensor) -> None:
        """Set the survivors of an expert in a weight, (rows, columns) bool."""
        name = (expert, key)
        packed = np.packbits(kept.cpu().numpy(), axis=1)
        if self._folder is not None:
            if name not in self._bits:
                file = self._folder / f"{len(self._bits):08d}.bits"
                self._bits[name] = np.memmap(file, dtype=np.uint8, mode="w+", shape=packed.shape)
            self._bits[name][:] = packed
        else:
            self._bits[name] = packed
        self._columns[name] = kept.shape[1]
        self._counts[name] = int(kept.sum())

    def rows(self, expert: int, key: str, start: int, stop: int, device: torch.device) -> Tensor | None:
        """The survivors of some rows, (stop - start, columns) bool; None when all survive."""
        bits = self._bits.get((expert, key))
        if bits is None:
            return None
        rows = np.unpackbits(bits[start:stop], axis=1, count=self._columns[expert, key])
        return torch.from_numpy(rows).view(torch.bool).to(device)

    def count(self, expert: int, key: str) -> int | None:
        """How many survive; None when all do."""
        return self._counts.get((expert, key))

    @property
    def nbytes(self) -> int:
        """Bytes of all bits."""
        return sum(bits.nbytes for bits in self._bits.values())


@contextmanager
def work_folder(parent: str | Path | None) -> Iterator[Path | None]:
    """A folder for the bits inside `parent`, removed afterwards. What a killed run left there is removed first.

    Raises:
        OptionError: another run that is still alive works there.
    """
    if parent is None:
        yield None
        return
    folder = claim(Path(parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def claim(parent: Path) -> Path:
    """Make the work folder, after removing what a killed run left.

    Raises:
        OptionError: another run that is still alive works there.
    """
    folder = parent.expanduser() / _FOLDER
    owner = folder / _OWNER
    if folder.exists():
        try:
            pid = int(owner.read_text())
        except (FileNotFoundError, ValueError):
            pid = 0  # killed before it could say who it was
        if pid and pid != os.getpid() and _alive(pid):
            raise OptionError(
                f"work_dir={str(parent)!r} is in use by another samerge, process {pid}; wait for it, or give another one"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    owner.write_text(str(os.getpid()))
    return folder


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
