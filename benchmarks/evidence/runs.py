"""The runs of one suite: every setting is one call of `samerge.merge`, and its answers are kept at once.

They go to a file of JSON lines in the cache; what is there is not computed again.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from suites.base import Evaluator, Suite, Update, single

import samerge
from evidence.scores import pack
from evidence.table import Budget, Family
from samerge.report.origin import versions


@dataclass(frozen=True)
class Setting:
    """One merge that is measured."""

    family: Family
    budget: Budget
    density: float | None
    seed: int | None
    scaling: float | str

    @property
    def published(self) -> bool:
        """Whether scale and density are those that a user gets who tunes nothing."""
        own = self.family
        return own.role != "variation" and self.scaling == own.published and self.density == own.densities[0]

    def key(self) -> tuple[Any, ...]:
        """What tells it from the others in the file."""
        options = json.dumps({k: str(v) for k, v in self.family.options.items()}, sort_keys=True)
        return (self.family.name, options, self.budget, self.density, self.seed, self.scaling)


def settings(families: Iterable[Family], only: str, budgets: Iterable[str]) -> list[Setting]:
    """All settings of the families whose name matches, the most telling ones first.

    Args:
        families: the table.
        only: a pattern of names, or several with commas.
        budgets: which.
    """
    patterns = only.split(",")
    found = [
        Setting(family, budget, density, seed, scaling)
        for family in families
        if any(fnmatch(family.name, pattern) for pattern in patterns)
        for density in family.densities
        for seed in family.seeds
        for budget in family.budgets
        if budget in budgets
        for scaling in family.all_scalings()
    ]
    return sorted(found, key=_turn)


def _turn(setting: Setting) -> tuple[int, int]:
    """When a setting's turn is: a run that is cut off shall have the breadth.

    What every method gives untuned comes first, then the scales at its published density, then other densities.
    """
    family = setting.family
    if setting.published and setting.budget == family.budgets[0]:
        return 0, 0
    return 1 + (setting.density != family.densities[0]), family.first


class Runs:
    """The measurements of one suite.

    Args:
        suite: the suite.
        items: rows of each task.
        store: the file of results.
        tasks: those that are asked, all by default; merges are of all tasks' adapters.
    """

    def __init__(self, suite: Suite, items: int, store: Path, tasks: Sequence[str] = ()) -> None:
        self._suite = suite
        self._items = items
        self._store = store
        self._tasks = tuple(tasks) or suite.tasks
        self._adapters = suite.adapters()
        self._digest = digest(self._adapters)
        self._evaluator: Evaluator = suite.evaluator()
        self._rank = max(config_rank(folder) for folder in self._adapters.values())
        self._done = {tuple(line["key"]) for line in self.lines()}

    def identity(self) -> str:
        """Suite, adapters and rows: lines of another identity are of another measurement."""
        asked = ",".join(self._tasks)
        return f"{self._suite.name}/{self._digest}/{self._items} of {asked}/{self._evaluator.precision}"

    def lines(self) -> list[dict[str, Any]]:
        """The measurements that are kept of these adapters on these rows."""
        return [line for line in read_lines(self._store) if line["identity"] == self.identity()]

    def references(self, all_tasks: bool = True) -> None:
        """The base, and every adapter on its own task, or on all tasks."""
        self._reference("base", lambda: None, self._tasks)
        for task in self._tasks:
            tasks = self._tasks if all_tasks else (task,)
            self._reference(f"expert {task}", lambda: single(self._adapters[task]), tasks)  # noqa: B023

    def _reference(self, name: str, update: Any, tasks: Iterable[str]) -> None:
        if (name,) not in self._done:
            self._keep((name,), {"merge": name, "role": "reference", **self._answers(update(), tasks)})

    def measure(self, setting: Setting) -> bool:
        """Merge, and ask the model; False if it is there already, or cannot be merged."""
        if setting.key() in self._done:
            return False
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                merged = samerge.merge(
                    self._suite.base(),
                    self._adapters,
                    scaling=setting.scaling,
                    dtype="float32",
                    progress=False,
                    **setting.family.arguments(setting.budget, self._rank, setting.density, setting.seed),
                )
        except samerge.SamergeError as error:
            print(f"{self._suite.name}: {setting.family.name} is left out: {error}", flush=True)
            return False
        figures = merged.report.adapters.values()
        line = {
            "merge": setting.family.name,
            "role": setting.family.role,
            "budget": setting.budget,
            "density": setting.density,
            "seed": setting.seed,
            "scaling": setting.scaling,
            "published": setting.published,
            "rank": max(update.rank for update in merged.factors.values()),
            "merge_seconds": round(time.perf_counter() - start, 2),
            "foretold": {key: fmean(getattr(one, key) for one in figures) for key in ("cosine", "interference")},
            **self._answers(Update(merged.factors, merged.layouts), self._tasks),
        }
        self._keep(setting.key(), line)
        return True

    def _answers(self, update: Update | None, tasks: Iterable[str]) -> dict[str, dict[str, str]]:
        """By task the rows' losses, right answers, numbers where they have such, and the documents for the base."""
        found = {task: self._evaluator.answers(update, task, self._items) for task in tasks}
        told: dict[str, dict[str, str]] = {"losses": {task: pack(one.losses) for task, one in found.items()}}
        correct = {task: pack(one.correct) for task, one in found.items() if one.correct is not None}
        documents = {task: one.documents.tolist() for task, one in found.items() if one.documents is not None}
        numbers = {task: one.numbers.tolist() for task, one in found.items() if one.numbers is not None}
        return (
            told
            | ({"correct": correct} if correct else {})
            | ({"numbers": numbers} if numbers else {})
            | ({"documents": documents} if documents and update is None else {})
        )

    def _keep(self, key: tuple[Any, ...], line: dict[str, Any]) -> None:
        self._done.add(key)
        whole = {"suite": self._suite.name, "identity": self.identity(), "key": list(key), **line}
        self._store.parent.mkdir(parents=True, exist_ok=True)
        with self._store.open("a", encoding="utf-8") as file:
            about = {"ready": self._suite.ready is not None, "machine": machine(), "versions": versions()}
            file.write(json.dumps({**whole, **about}) + "\n")


def read_lines(store: Path) -> list[dict[str, Any]]:
    """The lines of the file of results, none if there is no file."""
    if not store.is_file():
        return []
    return [json.loads(line) for line in store.read_text(encoding="utf-8").splitlines()]


def digest(adapters: Mapping[str, Path]) -> str:
    """Eight characters that tell these adapters from others."""
    sums = hashlib.sha256()
    for task in sorted(adapters):
        sums.update((adapters[task] / "adapter_model.safetensors").read_bytes())
    return sums.hexdigest()[:8]


def config_rank(folder: Path) -> int:
    """The rank in an adapter's configuration."""
    return int(json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["r"])


def machine() -> str:
    """Processor and threads."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"
