"""What a merge of some of a suite's adapters keeps on their own tasks."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from evidence.scores import has_score

import samerge
from suites.base import Suite, Update, single


class Kept:
    """A suite that is asked a number of rows a task.

    Args:
        one: the suite.
        rows: how many rows a task.
        tasks: those that are scored.
    """

    def __init__(self, one: Suite, rows: int, tasks: Iterable[str]) -> None:
        self.evaluator, self.rows, self.base = one.evaluator(), rows, one.base()
        self.folders: Mapping[str, Path] = one.adapters()
        ends = {task: (self._loss(None, task), self._loss(single(self.folders[task]), task)) for task in tasks}
        # as in quality.py: a task whose own adapter gains next to nothing has nothing to keep, but takes part
        self.ends = {task: (base, own) for task, (base, own) in ends.items() if has_score(base, own)}

    def shares(self, group: Iterable[str], **options: Any) -> dict[str, float]:
        """By task of a group that is scored, what a merge of the group keeps of its adapter's gain, in per cent."""
        chosen = {task: self.folders[task] for task in group}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merged = samerge.merge(self.base, chosen, dtype="float32", progress=False, **options)
        return self.of(Update(merged.factors, merged.layouts), chosen)

    def of(self, update: Update, group: Iterable[str] | None = None) -> dict[str, float]:
        """The same of a merge that is there; of all tasks by default."""
        losses = {task: self._loss(update, task) for task in group or self.ends if task in self.ends}
        return {task: 100 * (self.ends[task][0] - loss) / self._gain(task) for task, loss in losses.items()}

    def mean(self, groups: Iterable[Iterable[str]], **options: Any) -> float:
        """The mean over groups of the mean share of their tasks."""
        return fmean(fmean(self.shares(group, **options).values()) for group in groups)

    def _loss(self, update: Update | None, task: str) -> float:
        return float(self.evaluator.answers(update, task, self.rows).losses.mean())

    def _gain(self, task: str) -> float:
        base, own = self.ends[task]
        return base - own
