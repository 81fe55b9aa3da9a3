"""The picture of a search: scores over trials, and over each searched option."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from samerge.report.picture import new_figure, write

if TYPE_CHECKING:
    from samerge.merging.tuning.result import TuneResult

_COLUMNS = 3
_HOW_TO_READ = (
    "A dot is a trial. First: scores in the order of the trials; the others: by the value of one option. Dots that "
    "rise or fall from left to right say that the option matters; a cloud, that it does not. Dashed: the untuned merge."
)


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
    figure.supxlabel(textwrap.fill(_HOW_TO_READ, 50 * columns), fontsize=8)
    return write(figure, path)
