"""Progress bars for long work: one helper, silent unless a person is watching."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]


class Progress:
    """Progress bars on stderr when it is a terminal, and the seconds that each stage took, always.

    Args:
        enabled: False keeps silent even on a terminal.
        of: what the stages are of, where there are several such; stands before their names.
    """

    def __init__(self, enabled: bool = True, of: str = "") -> None:
        self._shown = enabled and sys.stderr.isatty()
        self._of = of
        self.seconds: dict[str, float] = {}
        self._note: Callable[[str], None] = _nowhere

    def note(self, text: str) -> None:
        """Say something beside the bar of the task that is running."""
        self._note(text)

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        """One stage of `total` units; yields the function that advances it."""
        start = time.perf_counter()
        try:
            if not self._shown:
                yield lambda count: None
                return
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            columns = (
                *([TextColumn(self._of, markup=False)] if self._of else []),
                TextColumn("{task.description:>10}", markup=False),
                BarColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
            )
            with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
                bar = bars.add_task(name, total=total, note="")
                self._note = lambda text: bars.update(bar, note=text)
                yield lambda count: bars.advance(bar, count)
        finally:
            self._note = _nowhere
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def _nowhere(text: str) -> None:
    """Where notes go while no bar is shown."""
