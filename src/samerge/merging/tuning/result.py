"""What a search found: the best options, their merge, and every trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from samerge.merging.merged_adapter import MergedAdapter


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
    direction: Literal["maximize", "minimize"]
    search: Mapping[str, Any] = field(repr=False)

    @property
    def improvement(self) -> float | None:
        """How much better than the untuned merge, 0 or more; None where that failed."""
        return None if self.default_score is None else abs(self.score - self.default_score)

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the best candidate in PEFT's format; its `samerge.json` tells of the search under "tuning".

        Args:
            path: the folder to make.
            overwrite: replace an adapter that is there already.

        Raises:
            OutputExistsError: the folder is taken.
        """
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


def best_of(trials: tuple[TuneTrial, ...], direction: str) -> TuneTrial | None:
    """The trial with the best score, the first of equals; None where all failed."""
    sign = 1 if direction == "maximize" else -1
    complete = [trial for trial in trials if trial.score is not None]
    return max(complete, key=lambda trial: (sign * (trial.score or 0.0), -trial.number), default=None)


def tuning_record(
    trials: tuple[TuneTrial, ...], best: TuneTrial, default: float | None, direction: str, search: Mapping[str, Any]
) -> dict[str, Any]:
    """What `samerge.json` says of the search. Messages of failed trials stay out: they may name folders."""
    return {
        "score": best.score,
        "default_score": default,
        "direction": direction,
        "search": dict(search),
        "best": best.number,
        "trials": [{key: v for key, v in asdict(trial).items() if key != "error"} for trial in trials],
    }


def caution(best: TuneTrial, default: float | None, trials: int) -> str:
    """The warning that goes with every tuned adapter."""
    untuned = "" if default is None else f", {default:.6g} untuned"
    return (
        f"the options are the best of {trials} trials by their score on the tuning data ({best.score:.6g}{untuned}); "
        f"a score that was searched for is too good, so check the adapter on data that took no part"
    )
