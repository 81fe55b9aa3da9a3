"""The least that a merge can take on this machine, from what its parts cost here and now, in processor seconds.

    sweeps     6 r + 4 operations for each weight of the graph, adapter and round, at the rate of a large square
               product, and the base's bytes, twice a round, at the memory's rate
    reading    every byte of the adapters' files, once
    factors    two QRs of every adapter in every layer
    stacks     in every layer the two Gram matrices of all adapters' vectors, in float64, and their eigenproblems

One thread measures, in the process that merged.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch


def least(work: Callable[[], object], runs: int = 5) -> float:
    """Processor seconds of this thread, the least of several runs after one that does not count."""
    work()
    taken = []
    for _ in range(runs):
        start = time.thread_time()
        work()
        taken.append(time.thread_time() - start)
    return min(taken)


def rate() -> float:
    """Operations a second of a large square product in float32."""
    size = 1536
    one, other, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    return 2 * size**3 / least(lambda: torch.mm(one, other, out=out))


def bandwidth() -> float:
    """Bytes a second that are read from memory: a sum over 512 MiB."""
    block = torch.ones(2**27)
    return block.numel() * block.element_size() / least(block.sum)


def ranks_by_round(rank: int, final: float, rounds: int) -> list[float]:
    """The components that an adapter has while a round scores: they fall geometrically from `rank` to `final`."""
    return [rank * (final / rank) ** (t / rounds) for t in range(rounds)]


def sweeps(weights: int, stored: int, adapters: int, ranks: Sequence[float]) -> float:
    """Two sweeps over the base for every round: `weights` entries in the graph, which take `stored` bytes on disk."""
    operations = weights * adapters * sum(6 * rank + 4 for rank in ranks)
    return operations / rate() + 2 * len(ranks) * stored / bandwidth()


def reading(files: Iterable[Path]) -> float:
    """One read of every file, which is in the system's memory."""

    def read() -> None:
        for path in found:
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    found, buffer = list(files), bytearray(1 << 20)
    return least(read, 3)


def factors(shapes: Sequence[tuple[int, int]], adapters: int, rank: int) -> float:
    """Two QRs of each adapter in each layer."""
    heights = Counter(side for shape in shapes for side in shape)

    def qr(height: int) -> float:
        thin = torch.randn(height, rank)
        return least(lambda: torch.linalg.qr(thin), 15)

    return adapters * sum(count * qr(height) for height, count in heights.items())


def stacks(shapes: Sequence[tuple[int, int]], components: int) -> float:
    """The Gram matrix of each side of each layer, of the components or of the width, whichever is less."""
    heights = Counter(side for shape in shapes for side in shape)

    def side(height: int) -> float:
        stack = torch.randn(height, components, dtype=torch.float64)
        stack = stack if components <= height else stack.T.contiguous()
        return least(lambda: torch.linalg.eigh(stack.T @ stack))

    return sum(count * side(height) for height, count in heights.items())
