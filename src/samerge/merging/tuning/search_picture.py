"""The picture of a search: scores over trials, and over each searched option."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from samerge.report.picture import new_figure, write

if TYPE_CHECKING:
    from samerge.merging.tuning.result import TuneResult

_COLUMNS = 3


def draw(result: TuneResult, path: Path) -> Path:
    """Draw a search into a file; returns the file.

    Raises:
        OptionError: matplotlib is not there, or does not know the format.
    """
    panels = 1 + len(result.search)
    rows = -(-panels // _COLUMNS)
    columns = min(panels, _COLUMNS)
    figure = new_figure(4.2 * columns, 3.2 * rows, path)
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(panels)]
    _over_trials(axes[0], result)
    for axis, (name, dimension) in zip(axes[1:], result.search.items(), strict=True):
        _over_option(axis, result, name, dimension)
    return write(figure, path)


def _over_trials(axis: Any, result: TuneResult) -> None:
    complete = [(trial.number, trial.score) for trial in result.trials if trial.score is not None]
    better = max if result.direction == "maximize" else min
    best = [better(score for _, score in complete[: i + 1]) for i in range(len(complete))]
    axis.plot([n for n, _ in complete], [score for _, score in complete], "o", color="0.6", label="trials")
    axis.step([n for n, _ in complete], best, where="post", color="tab:blue", label="best so far")
    if result.default_score is not None:
        axis.axhline(result.default_score, color="tab:orange", linestyle="--", label="untuned")
    for trial in result.trials:
        if trial.score is None:
            axis.axvline(trial.number, color="tab:red", alpha=0.3)
    axis.set(xlabel="trial", ylabel="score on the tuning data")
    axis.legend(fontsize="small")


def _over_option(axis: Any, result: TuneResult, name: str, dimension: Any) -> None:
    points = [(t.options[name], t.score) for t in result.trials if t.score is not None and name in t.options]
    if isinstance(dimension, list):
        axis.set_xticks(range(len(dimension)), [str(value) for value in dimension])
        points = [(dimension.index(value), score) for value, score in points]
    elif dimension["log"]:
        axis.set_xscale("log")
    axis.plot([value for value, _ in points], [score for _, score in points], "o", color="0.6")
    if result.default_score is not None:
        axis.axhline(result.default_score, color="tab:orange", linestyle="--")
    axis.set(xlabel=name if isinstance(dimension, list) else f"{name} {dimension.get('prefix', '')}", ylabel="score")
