"""The progress of work, told to whoever shows it, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from samerge.parallel.progress import Advance, Progress

#: Is told the stage, how much of it is done, and of how much.
Tell = Callable[[str, int, int], None]


class ToldProgress(Progress):
    """Progress that is told on, in steps of at least a hundredth.

    Args:
        tell: is told the stage, how much of it is done, and of how much.
    """

    def __init__(self, tell: Tell) -> None:
        super().__init__(enabled=False)
        self._tell = tell

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        """One stage of `total` units; yields the function that advances it."""
        done = told = 0

        def advance(count: int) -> None:
            nonlocal done, told
            done += count
            if (done - told) * 100 >= total:
                told = done
                self._tell(name, min(done, total), total)

        with super().task(name, total):
            self._tell(name, 0, total)
            yield advance
