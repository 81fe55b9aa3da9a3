"""How much each tensor of an expert differs from the base's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from samerge.errors import BaseModelError
from samerge.linalg.factors import squared_norm
from samerge.weights import WeightSource
from samerge.weights.tiling import spans


@dataclass(frozen=True)
class Change:
    """How one tensor differs.

    Args:
        tensor: its name in the base.
        norm: Frobenius norm of the difference.
        base: of the base's tensor.
    """

    tensor: str
    norm: float
    base: float

    @property
    def relative(self) -> float:
        """The difference's norm as a share of the base's; infinite where the base is zero and the expert is not."""
        return self.norm / self.base if self.base else math.inf if self.norm else 0.0


def changes(
    base: WeightSource,
    expert: WeightSource,
    names: Mapping[str, str],
    called: str,
    device: torch.device,
    advance: Callable[[int], None] = lambda entries: None,
) -> list[Change]:
    """The changes of all floating-point tensors of equal shape, in the base's order, a few rows at a time.

    Args:
        base: the base.
        expert: the expert.
        names: the expert's name of each of the base's tensors.
        called: the expert's name, for messages.
        device: where to compute.
        advance: called with the number of entries looked at.

    Raises:
        BaseModelError: a tensor holds NaN or infinite values where the two differ.
    """
    found = []
    for tensor, theirs in names.items():
        shape = tuple(base.shapes[tensor])
        if tuple(expert.shapes[theirs]) != shape or not base.dtype(tensor).is_floating_point:
            continue
        difference = size = 0.0
        for start, stop in spans(shape):
            ours = base.read(tensor, start, stop).to(device, torch.float32)
            other = expert.read(theirs, start, stop).to(device, torch.float32)
            # buffers may hold infinite values
            difference += squared_norm(torch.where(ours == other, 0.0, other - ours))
            size += squared_norm(ours)
            advance(ours.numel())
        if not math.isfinite(difference):
            raise BaseModelError(
                f"comparing {called!r} with the base {base.name!r}: the tensor {tensor!r} holds NaN or infinite "
                f"values; check both checkpoints, one was probably saved after training had diverged"
            )
        found.append(Change(tensor, math.sqrt(difference), math.sqrt(size)))
    return found
