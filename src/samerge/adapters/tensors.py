"""The tensors of an adapter's file, without the name that the adapter had on its model.

Eight-bit floats are read as what they mean, in float32.

| beside a factor in eight bits | it is |
|---|---|
| nothing | the number itself |
| `<key>_scale`, `<key>_scale_inv`, or `scale_weight` for `weight`, one or one a row | the number times that |
| nothing, in a file that says `scaled_fp8` | unknown, and refused |
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from samerge.adapters.names import unnamed
from samerge.weights.tensorfile import TensorFile
from samerge.weights.untrusted import Origin

#: What safetensors calls them.
_EIGHT_BITS = ("F8_E4M3", "F8_E5M2")
#: ComfyUI's mark of a file whose eight-bit tensors have scales.
_MARK = "scaled_fp8"


class AdapterTensors(TensorFile):
    """A safetensors file of an adapter, without the scales of others among its entries.

    Args:
        path: the file.
        origin: what is being read, for errors.

    Raises:
        SamergeError: of the origin's class; as `TensorFile`, where a scale is needed and not there, and where the file
            is of several adapters.
    """

    def __init__(self, path: str | Path, origin: Origin) -> None:
        super().__init__(path, origin)
        try:
            self.entries = {name: self.entries[key] for name, key in unnamed(self.entries).items()}
        except ValueError as error:
            raise origin.refusal(f"{self.path}: {error}") from error
        small = [name for name, entry in self.entries.items() if entry.dtype_name in _EIGHT_BITS and name != _MARK]
        self._scales = {name: scale for name in small if (scale := self._scale_of(name)) is not None}
        bare = [name for name in small if name not in self._scales]
        if bare and _MARK in self.entries:
            raise origin.refusal(
                f"{self.path}: it says {_MARK}, and {bare[0]!r} has no scale beside it that is known here "
                f"({bare[0]}_scale); save the adapter again in float16"
            )
        self._values = {scale: super(AdapterTensors, self).read(scale).float() for scale in self._scales.values()}
        beside = {*self._values, *([_MARK] if small else [])}
        self.entries = {name: entry for name, entry in self.entries.items() if name not in beside}

    def dtype(self, name: str) -> torch.dtype:
        """The dtype that a tensor is read in."""
        return torch.float32 if self._is_small(name) else super().dtype(name)

    def read(self, name: str, start: int = 0, stop: int | None = None, expert: int | None = None) -> Tensor:
        """As `TensorFile.read`, eight-bit floats in float32, times their scale."""
        found = super().read(name, start, stop, expert)
        if not self._is_small(name):
            return found
        found = found.float()
        if name not in self._scales:
            return found
        scale = self._values[self._scales[name]].reshape(-1)
        rows = scale if len(scale) == 1 else scale[start:stop] if expert is None else scale[expert : expert + 1]
        return found * rows.reshape(-1, *[1] * (found.ndim - 1))

    def _is_small(self, name: str) -> bool:
        return name in self.entries and self.entries[name].dtype_name in _EIGHT_BITS

    def _scale_of(self, name: str) -> str | None:
        stem, _, last = name.rpartition(".")
        candidates = [f"{name}_scale", f"{name}_scale_inv", *([f"{stem}.scale_weight"] if last == "weight" else [])]
        for scale in candidates:
            if scale not in self.entries:
                continue
            own, shape = self.entries[scale].shape, self.entries[name].shape
            if math.prod(own) == 1 or (shape and math.prod(own) == own[0] == shape[0]):
                return scale
            raise self.origin.refusal(
                f"{self.path}: {scale!r} has shape {own}, and the scale of {name!r} {shape} is one number, or one for "
                f"each row; save the adapter again in float16"
            )
        return None
