"""The merged model's tensors, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samerge.errors import BaseModelError
from samerge.saliency.elements import TILE_ELEMENTS, Pruner
from samerge.saliency.task_vectors import rows_of
from samerge.weights import WeightSource
from samerge.weights.tiling import spans


@dataclass(frozen=True)
class Assembly:
    """Everything that the merged model's tensors are made of.

    Args:
        pruner: the base, the experts and which of their elements survive.
        experts: the experts' weights under the base's names.
        scales: of every weight in the graph, by key.
        outside: what becomes of float tensors outside the graph.
        strength: lambda for those that are summed.
        kept: tensors that stay the base's.
        dtypes: of the output, by tensor.
    """

    pruner: Pruner
    experts: Sequence[WeightSource]
    scales: Mapping[str, float]
    outside: str
    strength: float
    kept: frozenset[str]
    dtypes: Mapping[str, torch.dtype]

    @property
    def base(self) -> WeightSource:
        """The base."""
        return self.pruner.source

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor by its name."""
        return self.base.shapes

    def tiles(self, tensor: str) -> Iterator[Tensor]:
        """The tensor's rows in order, in the output's dtype, on the CPU.

        Raises:
            BaseModelError: a value is not finite, or not in the output's dtype.
        """
        shape = self.shapes[tensor]
        if tensor in self.scales:
            yield from self._inside(tensor, None)
        elif len(shape) > 2 and f"{tensor}[0]" in self.scales:
            for number in range(shape[0]):
                yield from self._inside(tensor, number)
        else:
            yield from self._outside(tensor)

    def read(self, tensor: str) -> Tensor:
        """A whole tensor."""
        return torch.cat([tile.reshape(-1) for tile in self.tiles(tensor)]).reshape(self.shapes[tensor])

    def _inside(self, tensor: str, number: int | None) -> Iterator[Tensor]:
        key = tensor if number is None else f"{tensor}[{number}]"
        pruner = self.pruner
        for start, stop in pruner.tiles(key):
            theta = rows_of(pruner.source, key, start, stop, pruner.device, pruner.dtype)
            update = pruner.merged_tile(key, start, theta)
            yield self._cast(update.mul_(self.scales[key]).add_(theta), tensor)  # theta may be a live model's own

    def _outside(self, tensor: str) -> Iterator[Tensor]:
        floating = self.base.dtype(tensor).is_floating_point
        if floating and tensor not in self.kept and self.outside != "base":
            for theta, update, _ in self.outside_updates(tensor):
                yield self._cast(theta + update, tensor)
            return
        for start, stop in spans(self.shapes[tensor], TILE_ELEMENTS):
            base = self.base.read(tensor, start, stop).detach()
            yield self._cast(base, tensor) if floating else base.cpu()

    def outside_updates(self, tensor: str) -> Iterator[tuple[Tensor, Tensor, list[Tensor]]]:
        """Of a float tensor outside the graph, some rows at a time: the base, the merged update, and every expert's."""
        pruner = self.pruner
        for start, stop in spans(self.shapes[tensor], TILE_ELEMENTS):
            theta = self.base.read(tensor, start, stop).to(pruner.device, pruner.dtype)
            taus = [one.read(tensor, start, stop).to(pruner.device, pruner.dtype) - theta for one in self.experts]
            total = torch.zeros_like(theta)
            if self.outside != "base":
                for weight, tau in zip(pruner.weights, taus, strict=True):
                    total.add_(tau, alpha=weight)
            if self.outside == "average":
                total = total / sum(abs(weight) for weight in pruner.weights)
            else:
                total.mul_(self.strength)
            yield theta, total, taus

    def _cast(self, tile: Tensor, tensor: str) -> Tensor:
        return written(tile, self.dtypes[tensor], tensor)


def written(tile: Tensor, dtype: torch.dtype, tensor: str) -> Tensor:
    """A tile as it is written: in the output's dtype, on the CPU.

    Raises:
        BaseModelError: a value is not finite, or not in the output's dtype.
    """
    out = tile.to("cpu", dtype)
    if _finite(out):
        return out
    if not _finite(tile):
        raise BaseModelError(
            f"writing {tensor!r}: it holds NaN or infinite values in the base or in a checkpoint, and what is "
            f"written is finite; check them, they were probably saved after training had diverged"
        )
    raise BaseModelError(
        f"writing {tensor!r} in {out.dtype}: a merged value is too large for it (up to "
        f"{float(tile.abs().max()):.3g}); write with dtype='bfloat16' or 'float32', or choose a smaller scaling"
    )


def _finite(tile: Tensor) -> bool:
    wide = tile.float() if tile.is_floating_point() and tile.itemsize == 1 else tile  # isfinite knows no float8
    return bool(torch.isfinite(wide).all())
