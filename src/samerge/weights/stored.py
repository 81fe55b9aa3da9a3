"""One weight, wherever it lies: in memory, in a safetensors file, in accelerate's offload folder.

A source is a mapping of names to `Stored` weights; wrappers of it (dequantised, without merged adapters) are `Stored`
again.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from samerge.weights.tensorfile import TensorFile, piece


class Stored(Protocol):
    """A weight that can be read some rows at a time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its logical shape."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that rows come in."""

    def read(self, start: int, stop: int, expert: int | None = None) -> Tensor:
        """Rows `start:stop`, of one matrix of a stack with `expert`; never to be written to."""


def name_of(dtype: torch.dtype) -> str:
    """A dtype as PEFT and transformers call it: bfloat16."""
    return str(dtype).removeprefix("torch.")


def whole(stored: Stored) -> Tensor:
    """All of a (small) tensor."""
    return stored.read(0, stored.shape[0] if stored.shape else 1)


class StoredSource:
    """A `WeightSource` over a mapping of stored weights.

    Args:
        name: what to call the base.
        config: its configuration.
        weights: every tensor by its full name.
    """

    def __init__(self, name: str, config: Mapping[str, Any], weights: Mapping[str, Stored]) -> None:
        self.name = name
        self.config = config
        self._weights = dict(sorted(weights.items()))
        self.shapes: Mapping[str, tuple[int, ...]] = {key: weight.shape for key, weight in self._weights.items()}

    def dtype(self, tensor: str) -> torch.dtype:
        """The dtype that a tensor is read in."""
        return self._weights[tensor].dtype

    def read(self, tensor: str, start: int, stop: int, expert: int | None = None) -> Tensor:
        """Rows `start:stop` of a tensor; of a live model a view, never to be written to."""
        return self._weights[tensor].read(start, stop, expert)

    def stored(self, tensor: str) -> Stored:
        """The weight itself."""
        return self._weights[tensor]


@dataclass(frozen=True)
class InMemory:
    """A tensor in memory, on any device."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""
        return self.tensor.dtype

    def read(self, start: int, stop: int, expert: int | None = None) -> Tensor:
        """A view."""
        tensor = self.tensor.detach()
        tensor = tensor if expert is None else tensor[expert]
        return tensor[start:stop] if tensor.ndim else tensor


@dataclass(frozen=True)
class InFile:
    """A tensor of a safetensors file."""

    file: TensorFile
    tensor: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.file.entries[self.tensor].shape

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""
        return self.file.dtype(self.tensor)

    def read(self, start: int, stop: int, expert: int | None = None) -> Tensor:
        """Read from the file into a buffer of its own."""
        return self.file.read(self.tensor, start, stop, expert)


@dataclass(frozen=True)
class InRawFile:
    """A tensor in a file of nothing but its bytes, as accelerate offloads to disk."""

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self, start: int, stop: int, expert: int | None = None) -> Tensor:
        """Read from the file into a buffer of its own."""
        shape, first = piece(self.shape, start, stop, expert)
        with open(self.path, "rb") as file:
            file.seek(first * self.dtype.itemsize)
            data = bytearray(file.read(math.prod(shape) * self.dtype.itemsize))
        if not data:
            return torch.empty(shape, dtype=self.dtype)
        return torch.frombuffer(data, dtype=self.dtype).reshape(shape)


class Held:
    """The last few values that were expensive to make, for readers that come tile after tile. Thread-safe.

    Args:
        count: how many values to hold.
    """

    def __init__(self, count: int = 2) -> None:
        self._count = count
        self._values: dict[Hashable, Tensor] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The value of a key, made when it is not held."""
        with self._lock:
            if key not in self._values:
                while len(self._values) >= self._count:
                    self._values.pop(next(iter(self._values)))
                self._values[key] = make()
            return self._values[key]


class Lazily:
    """A weight that can only be had as a whole: made when first read, and held while its tiles are read.

    Args:
        shape: its logical shape.
        dtype: that `make` gives.
        make: gives the whole tensor.
        held: shared among the weights of a source, so that one or two are in memory at a time.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, make: Callable[[], Tensor], held: Held | None = None
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self._make = make
        self._held = held or Held(1)

    def read(self, start: int, stop: int, expert: int | None = None) -> Tensor:
        """A view of the whole."""
        return InMemory(self._held.get(self, self._make)).read(start, stop, expert)
