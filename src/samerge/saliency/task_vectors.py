"""Task vectors a tile at a time: from fully trained checkpoints, or from low-rank factors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from samerge.graph import Weight
from samerge.graph.flow import Edge
from samerge.graph.widths import matrix_shape
from samerge.linalg.factors import LoraFactors
from samerge.options.module_names import expert_of
from samerge.weights import WeightSource, read_tile


class TaskVectors(Protocol):
    """tau_n = W_n - theta0 of several experts."""

    @property
    def count(self) -> int:
        """Number of experts."""

    def has(self, expert: int, key: str) -> bool:
        """Whether the expert changes this weight."""

    def tile(self, expert: int, key: str, start: int, theta: Tensor) -> Tensor:
        """The rows of tau that belong to the tile theta (m, d), whose first row is `start`: (m, d), a fresh tensor."""

    def weight(self, expert: int, key: str, start: int, theta: Tensor) -> Tensor | None:
        """The same rows of theta + tau, in theta's dtype, where the expert is stored so."""

    def dtypes(self, key: str) -> set[torch.dtype]:
        """What the experts that change this weight have it stored in; nothing where they hold updates."""


class CheckpointVectors:
    """Differences between fully trained checkpoints and their base.

    Args:
        experts: the checkpoints.
        keys: for each expert, the weights that it shares with the base, by key.
    """

    def __init__(self, experts: Sequence[WeightSource], keys: Sequence[frozenset[str]]) -> None:
        self.experts, self.keys = experts, keys

    @property
    def count(self) -> int:
        """Number of experts."""
        return len(self.experts)

    def has(self, expert: int, key: str) -> bool:
        """Whether the expert has this weight."""
        return key in self.keys[expert]

    def tile(self, expert: int, key: str, start: int, theta: Tensor) -> Tensor:
        """W_n - theta."""
        return self.weight(expert, key, start, theta) - theta

    def weight(self, expert: int, key: str, start: int, theta: Tensor) -> Tensor:
        """W_n."""
        tensor, stacked = expert_of(key)
        stop = start + theta.shape[0]
        return read_tile(self.experts[expert], tensor, stacked, start, stop, theta.device, theta.dtype)

    def dtypes(self, key: str) -> set[torch.dtype]:
        """As they are stored."""
        return {one.dtype(expert_of(key)[0]) for one, own in zip(self.experts, self.keys, strict=True) if key in own}


class LowRankVectors:
    """Updates of LoRA adapters, s B A, in the orientation of the stored weight.

    Args:
        factors: for each expert, (left, right) by key: tau = left @ right.
    """

    def __init__(self, factors: Sequence[Mapping[str, tuple[Tensor, Tensor]]]) -> None:
        self.factors = factors

    @property
    def count(self) -> int:
        """Number of experts."""
        return len(self.factors)

    def has(self, expert: int, key: str) -> bool:
        """Whether the expert adapts this weight."""
        return key in self.factors[expert]

    def tile(self, expert: int, key: str, start: int, theta: Tensor) -> Tensor:
        """left[rows] @ right."""
        left, right = self.factors[expert][key]
        return left[start : start + theta.shape[0]] @ right

    def weight(self, expert: int, key: str, start: int, theta: Tensor) -> None:
        """It is not stored."""

    def dtypes(self, key: str) -> set[torch.dtype]:
        """Updates alone."""
        return set()


def oriented(factors: LoraFactors, transposed: bool) -> tuple[Tensor, Tensor]:
    """(left, right) of an update in the orientation of the stored weight, scale folded in."""
    f = factors.folded().turned() if transposed else factors.folded()
    return f.B, f.A


def entries(source: WeightSource, edges: Iterable[Edge]) -> int:
    """How many entries the weights among some edges have together, each as often as it is used."""
    return sum(math.prod(shape_of(source, edge.key)) for edge in edges if isinstance(edge, Weight))


def rows_of(source: WeightSource, key: str, start: int, stop: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Rows of a weight by its key, as a matrix."""
    tensor, stacked = expert_of(key)
    return read_tile(source, tensor, stacked, start, stop, device, dtype)


def shape_of(source: WeightSource, key: str) -> tuple[int, int]:
    """(rows, columns) of a weight by its key."""
    tensor, stacked = expert_of(key)
    return matrix_shape(source.shapes[tensor], stacked)
