"""The picture of a search: scores over trials, and over each searched option."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from samerge.report.picture import new_figure, write

if TYPE_CHECKING:
    from samerge.merging.tuning.result import TuneResult

_COLUMNS = 3


def draw(result: TuneResult, path: Path) -> Path:
    """Draw a search into a file; returns the file.

    Raises:
        OptionError: matplotlib is not there, or does not know the format.
    """
    panels = ["trial", *result.search]
    rows, columns = -(-len(panels) // _COLUMNS), min(len(panels), _COLUMNS)
    figure = new_figure(4.2 * columns, 3.2 * rows, path)
    for place, name in enumerate(panels, 1):
        axis = figure.add_subplot(rows, columns, place)
        scored = [({"trial": t.number, **t.options}, t.score) for t in result.trials if t.score is not None]
        points = [(values[name], score) for values, score in scored if name in values]
        given = result.search.get(name)
        if isinstance(given, list):
            axis.set_xticks(range(len(given)), [str(value) for value in given])
            points = [(given.index(value), score) for value, score in points]
        elif given is not None and given["log"]:
            axis.set_xscale("log")
        axis.plot([value for value, _ in points], [score for _, score in points], "o", color="0.6")
        if result.default_score is not None:
            axis.axhline(result.default_score, color="tab:orange", linestyle="--", label="untuned")
            axis.legend(fontsize="small")
        axis.set(xlabel=name, ylabel="score on the tuning data")
    return write(figure, path)
