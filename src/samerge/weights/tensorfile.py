"""Reading safetensors files a piece at a time, by direct reads.

The safetensors library maps a file into memory; every page that was touched then counts as resident until the system
needs it back, so that streaming a 16 GB base looks like, and under a container's limit is, 16 GB. Here only the rows
that were asked for are read, into a buffer of their size. The format is eight bytes of header length, a JSON header of
names, dtypes, shapes and offsets, and the bytes of the tensors.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    **({"F8_E8M0": torch.float8_e8m0fnu} if hasattr(torch, "float8_e8m0fnu") else {}),
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def dtype_names() -> dict[torch.dtype, str]:
    """The name that safetensors gives to each dtype that is known here."""
    return {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies in a file: its dtype (safetensors' name), shape, and first byte."""

    dtype_name: str
    shape: tuple[int, ...]
    offset: int


class TensorFile:
    """One safetensors file.

    Args:
        path: the file.

    Raises:
        ValueError: the file is truncated or is not a safetensors file; the message says which and how.

    Example:
        >>> import tempfile, os
        >>> from safetensors.torch import save_file
        >>> path = os.path.join(tempfile.mkdtemp(), "x.safetensors")
        >>> save_file({"w": torch.arange(6.0).reshape(3, 2)}, path)
        >>> TensorFile(path).read("w", 1, 3)
        tensor([[2., 3.],
                [4., 5.]])
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.entries = self._header()

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor as stored."""
        stored = self.entries[name].dtype_name
        if stored not in _DTYPES:
            raise ValueError(
                f"{self.path}: tensor {name!r} has dtype {stored}, which cannot be read; known: {list(_DTYPES)}"
            )
        return _DTYPES[stored]

    def read(self, name: str, start: int = 0, stop: int | None = None, expert: int | None = None) -> Tensor:
        """Rows `start:stop` of a tensor, or of one matrix of a stack, in the dtype it is stored in.

        Args:
            name: the tensor.
            start: first row.
            stop: one past the last row; all to the end when None.
            expert: for a stack (experts, rows, ...), which of them.
        """
        entry, dtype = self.entries[name], self.dtype(name)
        shape, first = entry.shape, 0
        if expert is not None:
            shape, first = shape[1:], expert * math.prod(shape[1:])
        if shape:
            stop = shape[0] if stop is None else min(stop, shape[0])
            row = math.prod(shape[1:])
            shape, first = (stop - start, *shape[1:]), first + start * row
        buffer = torch.empty(shape, dtype=dtype)
        if buffer.numel():
            view = memoryview(buffer.reshape(-1).view(torch.uint8).numpy().data)
            with open(self.path, "rb", buffering=0) as file:
                file.seek(entry.offset + first * dtype.itemsize)
                done = 0
                while done < len(view):
                    count = file.readinto(view[done:])
                    if not count:
                        raise ValueError(
                            f"{self.path}: tensor {name!r} ends early; the file is truncated, fetch it again"
                        )
                    done += count
        return buffer

    def _header(self) -> dict[str, TensorEntry]:
        size = self.path.stat().st_size
        with open(self.path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise ValueError(
                    f"{self.path}: not a safetensors file, or truncated "
                    f"({size} bytes, its header claims {length}); fetch it again"
                )
            try:
                header = json.loads(file.read(length))
                header.pop("__metadata__", None)
                spans = {
                    name: (info["dtype"], tuple(info["shape"]), *info["data_offsets"]) for name, info in header.items()
                }
            except (ValueError, AttributeError, KeyError, TypeError) as error:
                raise ValueError(f"{self.path}: not a safetensors file, its header cannot be read") from error
        entries = {}
        for name, (dtype, shape, begin, end) in spans.items():
            if 8 + length + end > size:
                raise ValueError(
                    f"{self.path}: truncated, tensor {name!r} ends at byte {8 + length + end} of {size}; fetch it again"
                )
            if dtype in _DTYPES and end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
                raise ValueError(
                    f"{self.path}: tensor {name!r} of shape {shape} in {dtype} cannot lie in {end - begin} bytes; "
                    f"the file is broken, fetch it again"
                )
            entries[name] = TensorEntry(dtype, shape, 8 + length + begin)
        return entries
