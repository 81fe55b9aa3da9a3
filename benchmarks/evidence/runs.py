"""The runs of one suite: a merge is computed once, scaled and truncated many times, and every result kept at once.

Scaling and truncation come after the method (`samerge.merging.finish`), so a merge at scaling 1 gives all of them
exactly. Results go to a file of JSON lines in the cache; what is there is not computed again.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from suites.base import SPLITS, Evaluator, Split, Suite, Update, single

import samerge
from evidence.scores import pack, unpack
from evidence.shares import shared
from evidence.table import Budget, Family
from samerge.linalg.factors import LoraFactors, norm
from samerge.linalg.truncation import truncate
from samerge.methods.scaling import norm_rule
from samerge.report.diagnostics.overlap import overlaps
from samerge.report.diagnostics.whole_merge import summary
from samerge.report.merge_record import versions


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
        return self.scaling == self.family.published and self.density == self.family.densities[0]

    def key(self) -> tuple[Any, ...]:
        """What tells it from the others in the file."""
        options = json.dumps({k: str(v) for k, v in self.family.options.items()}, sort_keys=True)
        return (self.family.name, options, self.budget, self.density, self.seed, self.scaling)


def settings(families: Iterable[Family], only: str, budgets: Iterable[str], judge: bool) -> list[Setting]:
    """All settings of the families whose name matches, the most telling ones first.

    Args:
        families: the table.
        only: a pattern of names, or several with commas.
        budgets: which.
        judge: whether the suite is one to judge by, on which design studies are not run.
    """
    patterns = only.split(",")
    chosen = [f for f in families if any(fnmatch(f.name, p) for p in patterns) and not (judge and f.design)]
    found = [
        Setting(family, budget, density, seed, scaling)
        for family in chosen
        for density in family.densities
        for seed in family.seeds
        for budget in family.budgets
        if budget in budgets
        for scaling in family.all_scalings()
    ]
    return sorted(found, key=_turn)


def _turn(setting: Setting) -> tuple[int, int]:
    """When a setting's turn is: a run that is cut off shall have the breadth.

    What every method gives untuned comes first, then the scales at its published density, at all output ranks one
    after the other, which are of one merge; then other densities.
    """
    family = setting.family
    if setting.published and setting.budget == family.budgets[0]:
        return 0, 2 * family.design
    return 1 + 2 * (setting.density != family.densities[0]), family.first


class Runs:
    """The measurements of one suite."""

    def __init__(self, suite: Suite, items: Mapping[Split, int], store: Path) -> None:
        self._suite = suite
        self._items = dict(items)
        self._store = store
        self._adapters = suite.adapters()
        self._experts = {task: single(folder) for task, folder in self._adapters.items()}
        self._digest = digest(self._adapters)
        self._evaluator: Evaluator = suite.evaluator()
        self._rank = max(config_rank(folder) for folder in self._adapters.values())
        self._merged: tuple[Any, samerge.MergedAdapter, float] | None = None
        self._cut: tuple[Any, dict[str, Any]] | None = None
        #: Mean accuracy of the last measurement on the test rows, per cent.
        self.last = 0.0
        self._done = {tuple(line["key"]) for line in read_lines(store) if line["identity"] == self.identity()}

    def identity(self) -> str:
        """Suite, adapters and items: lines of another identity are of another measurement."""
        counts = "+".join(str(self._items[split]) for split in SPLITS)
        return f"{self._suite.name}/{self._digest}/{counts}/{self._evaluator.precision}"

    def references(self) -> None:
        """The base, every expert on its own task, and every expert on all tasks."""
        self._reference("base", None, self._suite.tasks)
        for task, expert in self._experts.items():
            self._reference(f"expert {task}", expert, self._suite.tasks)

    def _reference(self, name: str, update: Update | None, tasks: Iterable[str]) -> None:
        if (name,) in self._done:
            return
        self._keep((name,), {"merge": name, "role": "reference", "correct": self._answers(update, tasks)})

    def measure(self, setting: Setting) -> bool:
        """Merge, and count right answers of both splits; False if it is there already, or cannot be merged."""
        if setting.key() in self._done:
            return False
        try:
            update, facts = self._update(setting)
        except samerge.SamergeError as error:
            print(f"{self._suite.name}: {setting.family.name} is left out: {error}", flush=True)
            return False
        line = {
            "merge": setting.family.name,
            "role": setting.family.role,
            "budget": setting.budget,
            "density": setting.density,
            "seed": setting.seed,
            "scaling": setting.scaling,
            "published": setting.published,
            **facts,
            "correct": self._answers(update, self._suite.tasks),
        }
        self._keep(setting.key(), line)
        return True

    def _answers(self, update: Update | None, tasks: Iterable[str]) -> dict[str, dict[str, str]]:
        return {
            split: {
                task: pack(self._evaluator.correct(update, task, split, self._items[split]))  # type: ignore[index]
                for task in tasks
            }
            for split in SPLITS
        }

    def _update(self, setting: Setting) -> tuple[Update, dict[str, Any]]:
        """The update of a setting, with what is known of it."""
        ruled = isinstance(setting.scaling, str) and setting.scaling.startswith("auto:")
        known = isinstance(setting.scaling, float | int) or (ruled and "weights" not in setting.family.options)
        merged, seconds = self._merge(setting, 1.0 if known else setting.scaling)
        factors = self._truncated(setting, merged)
        scale: float | dict[str, float] = 1.0
        if isinstance(setting.scaling, float | int):
            scale = float(setting.scaling)
        elif known:
            c = float(setting.scaling.removeprefix("auto:"))
            scale = norm_scales(factors, merged.report.record["layers"], c)
        facts = {
            "rank": max(update.rank for update in factors.values()),
            "merge_seconds": round(seconds, 2),
            "mean_scale": mean_scale(merged.report.record["layers"]) if not known else mean_scale(scale),
        }
        update = Update(factors, merged.layouts, scale)
        facts["foretold"] = foretold(update, self._experts)
        return update, facts

    def _merge(self, setting: Setting, scaling: float | str) -> tuple[samerge.MergedAdapter, float]:
        arguments = setting.family.arguments(setting.budget, self._rank, setting.density, setting.seed)
        if not isinstance(scaling, float) and setting.budget != "free" and setting.family.sizing == "truncate":
            arguments["svd_rank"] = self.output_rank(setting.budget)  # such a rule looks at what is truncated
        key = (json.dumps({k: str(v) for k, v in arguments.items()}, sort_keys=True), scaling)
        if self._merged is None or self._merged[0] != key:
            self._cut = None
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                merged = samerge.merge(
                    self._suite.base(), self._adapters, scaling=scaling, dtype="float32", progress=False, **arguments
                )
            self._merged = (key, merged, time.perf_counter() - start)
        return self._merged[1], self._merged[2]

    def _truncated(self, setting: Setting, merged: samerge.MergedAdapter) -> dict[str, Any]:
        if setting.budget == "free" or setting.family.sizing != "truncate":
            return dict(merged.factors)
        assert self._merged is not None
        key = (self._merged[0], setting.budget, setting.family.shares)
        if self._cut is None or self._cut[0] != key:
            rank, rule, whole = self.output_rank(setting.budget), setting.family.shares, merged.factors
            cut = shared(whole, rank, rule) if rule else {m: truncate(update, rank)[0] for m, update in whole.items()}
            self._cut = (key, cut)
        return self._cut[1]

    def output_rank(self, budget: Budget) -> int:
        """The rank of a budget."""
        return self._rank * (2 if budget == "2r" else 1)

    def _keep(self, key: tuple[Any, ...], line: dict[str, Any]) -> None:
        self._done.add(key)
        if len(line["correct"]["test"]) == len(self._suite.tasks):
            rates = [unpack(bits).float().mean() for bits in line["correct"]["test"].values()]
            self.last = 100 * float(sum(rates) / len(rates))
        whole = {"suite": self._suite.name, "identity": self.identity(), "key": list(key), **line}
        self._store.parent.mkdir(parents=True, exist_ok=True)
        with self._store.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**whole, "machine": machine(), "versions": versions()}) + "\n")


def norm_scales(factors: Mapping[str, Any], layers: Mapping[str, Any], c: float) -> dict[str, float]:
    """For every module, the factor that brings its update to c times the experts' mean norm.

    Args:
        factors: the update at scaling 1, truncated already.
        layers: of the merge's record: the experts' norms.
        c: 1 where a single expert adapts a module, as `scaling="auto"` has it.
    """
    scales = {}
    for module, update in factors.items():
        if module not in layers:
            scales[module] = 1.0
            continue
        norms = {n: expert["norm"] for n, expert in enumerate(layers[module]["experts"].values())}
        scales[module] = norm_rule(float(norm(update)), norms, [1.0] * len(norms), c)
    return scales


def foretold(update: Update, experts: Mapping[str, Update]) -> dict[str, float]:
    """What the library's diagnostics say of an update without data, mean over the experts.

    The figures of a merge's own record; computed here because scale and rank come after the merge.
    """
    layers: dict[str, Any] = {}
    for module, factors in update.factors.items():
        by = update.scale if isinstance(update.scale, float | int) else update.scale[module]
        merged = LoraFactors(factors.A, factors.B * by)
        own = {task: expert.factors[module] for task, expert in experts.items() if module in expert.factors}
        found = zip(own.items(), overlaps(merged, list(own.values())), strict=True)
        layers[module] = {
            "norm": float(norm(merged)),
            # These do not tell merges apart that differ in scale alone, and are not looked at here.
            **{"effective_rank": 0.0, "sampled": (0, 0)},
            **dict.fromkeys(("sign_conflict", "sign_conflict_after", "signs_left")),
            "experts": {
                task: {"norm": float(norm(tau)), "kept": None, "sign_conflict": None, **overlap.figures()}
                for (task, tau), overlap in found
            },
        }
    rows = list(summary(layers, list(experts))["experts"].values())
    names = [name for name, value in rows[0].items() if value is not None and name != "norm"]
    return {name: round(sum(row[name] or 0.0 for row in rows) / len(rows), 4) for name in names}


def mean_scale(scale: float | Mapping[str, Any]) -> float:
    """The mean over modules of one number for each, or of the `layers` of a merge's record."""
    if isinstance(scale, float | int):
        return float(scale)
    values = [float(value["scale"] if isinstance(value, Mapping) else value) for value in scale.values()]
    return round(sum(values) / len(values), 4)


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
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.is_file() else []
