"""What a search found: the best options, their merge, and every trial."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from samerge.errors import TuningError
from samerge.merging.merged_adapter import MergedAdapter
from samerge.merging.tuning.space import Space
from samerge.report.report import Report


@dataclass(frozen=True)
class TuneTrial:
    """One trial.

    Args:
        number: in the order of the study, from 0; interrupted ones leave gaps.
        state: "complete", or "failed": the merge or the score raised, or the score is no finite number.
        score: what the score returned; None when failed.
        options: the searched options; none for the untuned merge, which is the first trial.
        seconds: merge and score together.
        error: why it failed.
    """

    number: int
    state: Literal["complete", "failed"]
    score: float | None
    options: Mapping[str, Any]
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class TuneResult:
    """The result of `samerge.tune`.

    Args:
        best: keyword arguments of `samerge.merge` that give the best candidate.
        score: its score, on the data that it was chosen by.
        default_score: the score of the untuned merge; None where that failed.
        merged: the best candidate, with the search in its record.
        trials: all of them, failed ones too.
        direction: "maximize" or "minimize".
        search: what was searched, as plain JSON.
    """

    best: Mapping[str, Any]
    score: float
    default_score: float | None
    merged: MergedAdapter = field(repr=False)
    trials: tuple[TuneTrial, ...] = field(repr=False)
    direction: str
    search: Mapping[str, Any] = field(repr=False)

    def _repr_html_(self) -> str:
        """The report of the best candidate, for notebooks."""
        return self.merged._repr_html_()

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the best candidate as `MergedAdapter.save` does; its record tells of the search under "tuning"."""
        return self.merged.save(path, overwrite=overwrite)

    def picture(self, path: str | Path) -> Path:
        """Draw the scores over the trials, and over each searched option. Needs matplotlib (`samerge[report]`).

        Args:
            path: a file whose ending says the format: .png, .svg, .pdf.

        Raises:
            OptionError: matplotlib is not there, or does not know the format.
        """
        from samerge.merging.tuning.search_picture import draw

        return draw(self, Path(path))


def finished(study: Any) -> tuple[TuneTrial, ...]:
    """The trials of an optuna study that ended by themselves; interrupted ones are left out."""
    found = []
    for trial in study.get_trials(deepcopy=False):
        error = trial.user_attrs.get("error")
        seconds = trial.duration.total_seconds() if trial.duration else 0.0
        if trial.state.name == "COMPLETE":
            found.append(TuneTrial(trial.number, "complete", float(trial.value), dict(trial.params), seconds))
        elif error is not None and trial.state.is_finished():
            found.append(TuneTrial(trial.number, "failed", None, dict(trial.params), seconds, error))
    return tuple(found)


def result_of(
    trials: Sequence[TuneTrial], direction: str, space: Space, merged: Callable[[Mapping[str, Any]], MergedAdapter]
) -> TuneResult:
    """The best of the trials, the first of equals.

    Args:
        trials: all of them.
        direction: "maximize" or "minimize".
        space: what was searched.
        merged: merges with the best options.

    Raises:
        TuningError: all failed.
    """
    complete = [(trial.score, trial) for trial in trials if trial.score is not None]
    if not complete:
        counted = Counter(trial.error for trial in trials).most_common(3)
        listed = "; ".join(f"{count} times: {error}" for error, count in counted)
        raise TuningError(f"tuning: all {len(trials)} trials failed, {listed}. Put that right and call again")
    score, best = (max if direction == "maximize" else min)(complete, key=lambda pair: pair[0])
    default = next((score for score, trial in complete if not trial.options), None)
    options, search = space.options(best.options), space.record()
    made = merged(options)
    untuned = "" if default is None else f", {default:.6g} untuned"
    caution = (
        f"the options are the best of {len(trials)} trials by their score on the tuning data ({score:.6g}{untuned}); "
        f"a score that was searched for is too good, so check the adapter on data that took no part"
    )
    # messages of failed trials stay out of the record: they may name folders
    listed_trials = [{key: value for key, value in asdict(trial).items() if key != "error"} for trial in trials]
    tuning = {
        "score": score,
        "default_score": default,
        "direction": direction,
        "search": search,
        "best": best.number,
        "trials": listed_trials,
    }
    record = replace(made.report.record, tuning=tuning, warnings=(*made.report.warnings, caution))
    made = replace(made, report=Report(record))
    return TuneResult(options, score, default, made, tuple(trials), direction, search)
