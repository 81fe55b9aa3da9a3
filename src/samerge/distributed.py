"""More than one process: the rows of every weight shared out, the flows summed.

Every process reads only its rows of the base from the files and holds all adapters. After each weight the flows are
summed over the processes (one `all_reduce` of N x width numbers), after each sweep the gammas. All processes choose by
the scores of the first one, so that they go on with the same components whatever their rounding.

Nothing has to be set up in code: under `accelerate launch -m samerge merge ...` or `torchrun`, the command line joins
the group; in Python, initialise `torch.distributed` (or build an `accelerate.PartialState`) before calling `merge`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """The processes that merge together.

    Args:
        rank: number of this one.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def share(self, count: int) -> range:
        """This process's part of `count` pieces of work, contiguous.

        Example:
            >>> [list(Group(rank, 3).share(4)) for rank in range(3)]
            [[0], [1], [2, 3]]
        """
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def agreed(self, tensors: list[Tensor]) -> list[Tensor]:
        """The first process's tensors, on every process; their sizes and dtypes are the same everywhere."""
        if self.size == 1 or not tensors:
            return tensors
        flat = torch.cat(tensors)
        dist.broadcast(flat, src=0)
        return list(torch.split(flat, [len(tensor) for tensor in tensors]))

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0


def group() -> Group:
    """The group that this process belongs to; a group of one when torch.distributed is not initialised."""
    if dist.is_available() and dist.is_initialized():
        return Group(dist.get_rank(), dist.get_world_size())
    return Group()


def join() -> Group:
    """Join the group that `accelerate launch` or `torchrun` started this process in, if any."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())
    return group()


def leave() -> None:
    """Leave the group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
