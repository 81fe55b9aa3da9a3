"""Reading safetensors files a piece at a time, by direct reads.

The safetensors library maps a file into memory; every page that was touched then counts as resident until the system
needs it back, so that streaming a 16 GB base looks like, and under a container's limit is, 16 GB. Here only the rows
that were asked for are read, into a buffer of their size. The format is eight bytes of header length, a JSON header of
names, dtypes, shapes and offsets, and the bytes of the tensors.

Whether a file is sound says the library itself: it opens each one first, reads the header alone, and what it refuses is
refused here. A file stays open between reads, as far as a process may have open files; every read checks that its path
still leads to the same file, and that nobody wrote to it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from samerge.weights.open_file import OpenFile
from samerge.weights.untrusted import MOST_BYTES, Identity, Origin, digest_of, open_regular, parse_json

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
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

#: Letters of a tensor's name; and a number in it, of a layer or an expert, that no model has.
_LONGEST_NAME = 1000
_LONG_NUMBER = re.compile(r"(?:^|\.)\d{8,}(?:\.|$)", re.ASCII)


def dtype_names() -> dict[torch.dtype, str]:
    """The name that safetensors gives to each dtype that is known here."""
    return {dtype: name for name, dtype in _DTYPES.items()}


def piece(shape: tuple[int, ...], start: int, stop: int | None, expert: int | None) -> tuple[tuple[int, ...], int]:
    """The shape of some rows of a tensor, or of one matrix of a stack, and the number of their first entry.

    Example:
        >>> piece((4, 5), 1, 9, None), piece((3, 4, 5), 1, 3, 2), piece((), 0, 1, None)
        (((3, 5), 5), ((2, 5), 45), ((), 0))
    """
    first = 0
    if expert is not None:
        shape, first = shape[1:], expert * math.prod(shape[1:])
    if shape:
        stop = shape[0] if stop is None else min(stop, shape[0])
        shape, first = (max(stop - start, 0), *shape[1:]), first + start * math.prod(shape[1:])
    return shape, first


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
        origin: what is being read, for errors; the file itself by default.

    Raises:
        SamergeError: of the origin's class; the file is no regular file, or not one that the safetensors library takes.
            The message says which file and what is wrong with it.

    Example:
        >>> import tempfile, os
        >>> from safetensors.torch import save_file
        >>> path = os.path.join(tempfile.mkdtemp(), "x.safetensors")
        >>> save_file({"w": torch.arange(6.0).reshape(3, 2)}, path)
        >>> TensorFile(path).read("w", 1, 3)
        tensor([[2., 3.],
                [4., 5.]])
    """

    def __init__(self, path: str | Path, origin: Origin | None = None) -> None:
        self.path = Path(path)
        self.origin = origin or Origin("reading weights")
        self._file = OpenFile()
        with open_regular(self.path, self.origin) as file:
            self._identity = Identity.of(file.fileno())
            self.entries, self.metadata = self._header(file)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype that a tensor is read in."""
        return self._stored(name)

    def _stored(self, name: str) -> torch.dtype:
        stored = self.entries[name].dtype_name
        if stored not in _DTYPES:
            raise self.origin.refusal(
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
        entry, dtype = self.entries[name], self._stored(name)
        shape, first = piece(entry.shape, start, stop, expert)
        buffer = torch.empty(shape, dtype=dtype)
        if buffer.numel():
            view = memoryview(buffer.reshape(-1).view(torch.uint8).numpy().data)
            self._check(self.path)
            if self._file.read(view, entry.offset + first * dtype.itemsize, self._same) < len(view):
                raise self.origin.refusal(
                    f"{self.path}: tensor {name!r} ends early; the file is truncated, fetch it again"
                )
        return buffer

    def sha256(self) -> str:
        """The digest of the whole file, which is still the one that was opened, before and after."""
        with self._same() as file:
            digest = digest_of(file)
            self._check(file.fileno())
        return digest

    def _same(self) -> BinaryIO:
        """The file, opened again; it is the same one and was not written to since it was opened first."""
        file = open_regular(self.path, self.origin)
        try:
            self._check(file.fileno())
        except BaseException:
            file.close()
            raise
        return file

    def _check(self, file: int | Path) -> None:
        try:
            found = Identity.of(file)
        except OSError as error:
            raise self.origin.refusal(f"{self.path} cannot be opened: {error.strerror or error}") from error
        if found != self._identity:
            now = "truncated" if found.size < self._identity.size else "replaced or written to"
            raise self.origin.refusal(
                f"{self.path} was {now} while it was read ({self._identity.size} bytes then, {found.size} now); run "
                f"again when nothing writes to it"
            )

    def _header(self, file: BinaryIO) -> tuple[dict[str, TensorEntry], dict[str, str]]:
        """What the header says of every tensor, and what its writer put beside, both text by text."""
        from safetensors import SafetensorError, safe_open

        size = self._identity.size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise self.origin.refusal(
                f"{self.path}: not a safetensors file, or truncated ({size} bytes, its header claims {length}); fetch "
                f"it again"
            )
        if length > MOST_BYTES:
            raise self.origin.refusal(
                f"{self.path}: its header claims {length} bytes, more than the {MOST_BYTES} that are read"
            )
        try:
            with safe_open(self.path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            told = str(error).removeprefix("Error while deserializing header: ")
            raise self.origin.refusal(
                f"{self.path}: not a sound safetensors file ({told}); it is broken or truncated, fetch it again"
            ) from error
        text = file.read(length)
        self._check(file.fileno())
        header = parse_json(text, f"the header of {self.path}", self.origin)
        metadata = header.pop("__metadata__", None) or {}
        odd = next((name for name in header if len(name) > _LONGEST_NAME or _LONG_NUMBER.search(name)), None)
        if odd is not None:
            raise self.origin.refusal(f"{self.path}: a tensor is called {odd[:60]!r}..., which is no name of a layer")
        if not all(isinstance(info, dict) for info in header.values()):
            raise self.origin.refusal(f"{self.path}: its header describes a tensor by a list; fetch it again")
        entries = {
            name: TensorEntry(info["dtype"], tuple(info["shape"]), 8 + length + info["data_offsets"][0])
            for name, info in header.items()
        }
        return entries, metadata
