"""Where a sweep has the experts' components from: held in this process, or sent by their owner when they are wanted.

With several processes each holds the components of its own layers only. A sweep comes to the weights in the same order
everywhere; for each the owner sends one flat buffer with the components of all experts, whose sizes all know, and the
others drop it after the weight. While one weight is worked on, the next one's buffer is on its way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from samerge.linalg.factors import LoraFactors
from samerge.parallel.processes import Group


def elsewhere(rank: int, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> LoraFactors:
    """Factors whose values another process holds: of their shape, on the meta device.

    Args:
        rank: r.
        shape: (out, in).
        dtype: of the values.

    Example:
        >>> elsewhere(2, (4, 3)).select(torch.tensor([1])).rank
        1
    """
    return LoraFactors(
        A=torch.empty(rank, shape[1], dtype=dtype, device="meta"),
        B=torch.empty(shape[0], rank, dtype=dtype, device="meta"),
    )


def packed(parts: Sequence[LoraFactors]) -> Tensor:
    """The entries of several factors side by side, in one vector, scales folded in."""
    return torch.cat([matrix.reshape(-1) for part in parts for matrix in (part.A, part.folded().B)])


def unpacked(buffer: Tensor, like: Sequence[LoraFactors]) -> list[LoraFactors]:
    """Factors of these shapes as views of a vector.

    Example:
        >>> f = LoraFactors(torch.ones(1, 3), torch.zeros(2, 1))
        >>> unpacked(packed([f]), [f])[0].B.shape
        torch.Size([2, 1])
    """
    sizes = [matrix.numel() for part in like for matrix in (part.A, part.B)]
    pieces = iter(torch.split(buffer, sizes))
    return [LoraFactors(next(pieces).view(part.A.shape), next(pieces).view(part.B.shape)) for part in like]


def send_all(group: Group, owner: int, parts: Sequence[LoraFactors], device: torch.device) -> list[LoraFactors]:
    """The owner's factors, on every process.

    Args:
        group: the processes.
        owner: the one that has them.
        parts: the factors, with scale 1; on the meta device in all others, in the same dtype.
        device: where they lie.
    """
    return _Parcel(group, owner, parts, device).opened()


class _Parcel:
    """Factors on their way from their owner."""

    def __init__(self, group: Group, owner: int, parts: Sequence[LoraFactors], device: torch.device) -> None:
        self.parts, self.mine = list(parts), owner == group.rank
        size = sum(part.A.numel() + part.B.numel() for part in parts)
        self.buffer = packed(parts) if self.mine and size else torch.empty(size, dtype=parts[0].A.dtype, device=device)
        # As bytes: not every backend sends every dtype.
        self.work: dist.Work | None = group.send(self.buffer.view(torch.uint8), owner) if size else None

    def opened(self) -> list[LoraFactors]:
        """The factors: the owner's own, or views of what came."""
        if self.work is not None:
            self.work.wait()
        return self.parts if self.mine else unpacked(self.buffer, self.parts)


@dataclass(frozen=True)
class Lending:
    """Which process holds what.

    Args:
        group: the processes.
        owners: the process that holds the components at a weight, by key.
    """

    group: Group
    owners: Mapping[str, int]


class Supply:
    """The components of all experts, weight by weight, in the order of a sweep.

    Args:
        experts: for each expert, its factors by weight key; on the meta device where another process holds them.
        lending: which process holds what; None where every process has all.
        order: the keys in the order in which the sweep will ask for them.
        device: where they are wanted.
        dtype: what they are wanted in.
    """

    def __init__(
        self,
        experts: Sequence[Mapping[str, LoraFactors]],
        lending: Lending | None,
        order: Iterator[str],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.device, self.dtype = device, dtype
        self.lending = lending
        self.experts = [
            {
                # What is sent is converted when its turn comes: not all of it at once.
                key: factors if lending is not None else factors.to(device, dtype).folded()
                for key, factors in expert.items()
                if factors.rank  # what has no components left is theta0
            }
            for expert in experts
        ]
        self.order = order
        self.next = self._begin() if lending is not None else None

    def at(self, key: str) -> list[LoraFactors | None]:
        """The factors of every expert at a weight, None for those that have none there."""
        if self.next is None:
            return [expert.get(key) for expert in self.experts]
        expected, experts, parcel = self.next
        if key != expected:
            raise RuntimeError(f"the sweep came to {key!r}, where the processes had agreed on {expected!r}")
        parts = parcel.opened() if parcel is not None else []
        self.next = self._begin()
        found: list[LoraFactors | None] = [None] * len(self.experts)
        for n, part in zip(experts, parts, strict=True):
            found[n] = part.to(self.device, self.dtype).folded()
        return found

    def close(self) -> None:
        """Let what is still on its way arrive: a sweep that failed leaves it behind."""
        if self.next is not None and self.next[2] is not None:
            self.next[2].opened()

    def _begin(self) -> tuple[str, list[int], _Parcel | None]:
        """Send for the next weight's components: its key, who adapts it, and the parcel."""
        assert self.lending is not None
        key = next(self.order, "")
        experts = [n for n, expert in enumerate(self.experts) if key in expert]
        parts = [self.experts[n][key] for n in experts]
        if not parts:
            return key, [], None
        group, owner = self.lending.group, self.lending.owners[key]
        return key, experts, _Parcel(group, owner, parts, self.device)
