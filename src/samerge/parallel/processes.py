"""More than one process: the rows of every weight and the adapted layers shared out, the flows summed.

Every process reads only its rows of the base from the files, and holds the adapters' factors only of the layers that
are its own. When a weight's turn comes in a sweep, its owner sends the components that are left there to the others
(`samerge.parallel.supply`), which drop them after the weight. After each weight the flows are summed over the
processes (one `all_reduce` of N x width numbers), after each sweep the gammas. A layer is scored by its owner alone,
and all choose by its scores, so that they go on with the same components whatever their rounding.

An exception in one process must not leave the others waiting: work that differs between processes goes through
`together`, `each` or `summed`, which raise it in all of them.

Nothing has to be set up in code: under `accelerate launch -m samerge merge ...` or `torchrun`, the command line joins
the group; in Python, initialise `torch.distributed` (or build an `accelerate.PartialState`) before calling `merge`, and
call it in every process.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from samerge.errors import DistributedError, SamergeError

T = TypeVar("T")


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

    def owners(self, sizes: Sequence[int]) -> list[int]:
        """For pieces of these sizes, who has which: the largest first, each to the one that has least so far.

        Example:
            >>> Group(0, 2).owners([1, 5, 2, 2])
            [1, 0, 1, 1]
        """
        held = [0] * self.size
        found = [0] * len(sizes)
        for place in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
            found[place] = held.index(min(held))
            held[found[place]] += sizes[place]
        return found

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def summed(self, shape: Sequence[int], like: Tensor, fill: Callable[[Tensor], None]) -> Tensor:
        """The sum over all processes of what each of them writes into zeros.

        One more number travels along: whether a process failed.

        Args:
            shape: of the result.
            like: of its dtype and device.
            fill: writes this process's part into zeros of the shape.

        Raises:
            Exception: what `fill` raised, in whichever process.
        """
        if self.size == 1:
            whole = like.new_zeros(tuple(shape))
            fill(whole)
            return whole
        flat = like.new_zeros(math.prod(shape) + 1)
        failure: Exception | None = None
        try:
            fill(flat[:-1].view(tuple(shape)))
        except Exception as error:  # raised below, in every process
            failure, flat[-1] = error, 1
        self.sum(flat)
        if bool(flat[-1] != 0):
            self._said(None, failure)
        return flat[:-1].view(tuple(shape))

    def together(self, work: Callable[[], T]) -> T:
        """The result of `work()`, after it has come to an end in every process.

        Raises:
            Exception: what `work` raised, in whichever process.
        """
        if self.size == 1:
            return work()
        found: list[T] = []
        self.each(lambda: found.append(work()))
        return found[0]

    def each(self, work: Callable[[], T]) -> list[T]:
        """What `work()` gives in every process, by rank; it must be possible to pickle it.

        Raises:
            Exception: what `work` raised, in whichever process. Where that is another one, an error of samerge comes
                as it is, and everything else as a DistributedError.
        """
        if self.size == 1:
            return [work()]
        try:
            own = work()
        except Exception as error:  # raised in every process
            return self._said(None, error)
        return self._said(own, None)

    def send(self, buffer: Tensor, source: int) -> dist.Work:
        """Begin to bring the source's buffer to all; wait for the result before touching it."""
        work: dist.Work = dist.broadcast(buffer, src=source, async_op=True)
        return work

    def _said(self, own: T | None, failure: Exception | None) -> list[T]:
        """What all have to say, by rank; raises this process's failure, or else the first of any."""
        told: Exception | None = failure
        if failure is not None and not isinstance(failure, SamergeError):
            told = DistributedError(f"process {self.rank} of {self.size}: {type(failure).__name__}: {failure}")
        found: list[tuple[T, Exception | None]] = [(own, None)] * self.size  # type: ignore[list-item]
        dist.all_gather_object(found, (own, told))
        first = next((error for _, error in found if error is not None), None)
        if first is not None:
            raise failure or first
        return [said for said, _ in found]

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
