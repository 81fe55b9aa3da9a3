"""What the rest of samerge knows of a base model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor


class WeightSource(Protocol):
    """A base model's weights, read a few rows at a time. Several threads may read at once."""

    @property
    def name(self) -> str:
        """What to call the base: the folder, hub id or `name_or_path` it came from."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's configuration as in its `config.json`."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each tensor by its full name, e.g. `model.layers.0.mlp.up_proj.weight`."""

    def dtype(self, tensor: str) -> torch.dtype:
        """The dtype that a tensor is read in: as stored, float32 for quantised weights."""

    def read(self, tensor: str, start: int, stop: int, expert: int | None = None) -> Tensor:
        """Rows `start:stop` of a tensor (of one matrix of a stack, with `expert`)."""
