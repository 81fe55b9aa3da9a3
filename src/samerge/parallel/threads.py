"""Threads over independent pieces of work, each running single-threaded torch operations.

The tiles of a sweep are small enough to stay in a core's cache. One thread a tile keeps each core on its own tile;
threads inside every operation would meet at a barrier after each of them, some microseconds of work apart.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

In = TypeVar("In")
Out = TypeVar("Out")


class Workers:
    """A pool whose threads run torch single-threaded; results come in the order of the work, so sums are reproducible.

    Args:
        count: number of threads; 1 works in the calling thread, with torch's own threads.
    """

    def __init__(self, count: int, pool: ThreadPoolExecutor | None) -> None:
        self.count = count
        self._pool = pool

    def map(self, work: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
        """`work(item)` for each item, in order, at most a few ahead of the one being yielded."""
        if self._pool is None:
            yield from map(work, items)
            return
        ahead: deque[Future[Out]] = deque()
        try:
            for item in items:
                ahead.append(self._pool.submit(work, item))
                if len(ahead) > 2 * self.count:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


@contextmanager
def workers(device: torch.device) -> Iterator[Workers]:
    """As many workers as torch has threads on the CPU; one on any other device, which orders its work itself."""
    count = torch.get_num_threads() if device.type == "cpu" else 1
    if count == 1:
        yield Workers(1, None)
        return
    # In the calling thread too: its team of OpenMP threads would spin between operations and starve the workers.
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count, "samerge", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield Workers(count, pool)
    finally:
        torch.set_num_threads(count)
