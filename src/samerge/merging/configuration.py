"""`adapter_config.json` of a merged adapter: which base, which task, and which modules, in PEFT's words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from samerge.adapters import Adapter, servable
from samerge.adapters.extras import HEADS
from samerge.adapters.layouts import Layout
from samerge.linalg.factors import LoraFactors
from samerge.merging.alignment.views import replication
from samerge.merging.targets import targets_of
from samerge.methods.problem import Problem
from samerge.weights import WeightSource


def settings_of(
    problem: Problem,
    experts: Sequence[Adapter],
    factors: Mapping[str, LoraFactors],
    layouts: Mapping[str, Layout],
    rank: int,
    modules_to_save: str | None,
) -> dict[str, Any]:
    """`adapter_config.json` in the servable profile."""
    targets = targets_of(problem, experts, factors, layouts)
    replicated = replication(experts)
    bases = [expert.config.get("base_model_name_or_path") for expert in experts]
    tasks = {expert.config.get("task_type") for expert in experts}
    task = tasks.pop() if len(tasks) == 1 else None
    if task in HEADS and modules_to_save == "drop":
        task = None  # PEFT would look for a trained head in the file
    return {
        **servable.settings(
            next((b for b in bases if b), problem.source.name if problem.source else None),
            rank,
            targets["target_modules"],
            layouts.values(),
        ),
        "task_type": task,
        **{key: value for key, value in targets.items() if value is not None},
        **({"layer_replication": [list(pair) for pair in replicated]} if replicated else {}),
    }


def strangers_of(source: WeightSource | None, experts: Sequence[Adapter]) -> str | None:
    """What to say when the adapters name different base models, or another than the one given.

    A folder of any name may hold a copy of the base that an adapter names, so that only what has a name on the Hub is
    compared.
    """
    named: dict[str, list[str]] = {}
    for expert in experts:
        base = expert.config.get("base_model_name_or_path")
        if base:
            named.setdefault(_short(str(base)), []).append(expert.name)
    ours = None if source is None else _hub_name(source)
    if ours is not None and source is not None:
        # config.json of a base may still name what that was trained from: then the folder's name is the base's
        known = (ours, _short(source.name))
        named = {base: who for base, who in named.items() if base not in known}
    if len(named) < (2 if ours is None else 1):
        return None
    listed = "; ".join(f"{', '.join(who)} on {base}" for base, who in named.items())
    what = "different bases" if ours is None else f"another base than {ours}"
    who = "these adapters were" if len(experts) > 1 else "it was"
    checked = "module names" if source is None else "module names against the base"
    return (
        f"by name {who} trained on {what}: {listed}. The shapes of the updates and the {checked} fit; whether it is "
        f"the same model was not checked"
    )


def _short(name: str) -> str:
    """The last part of a base's name, by which copies are known; of a folder of the Hub's cache, the repository's."""
    cached = re.search(r"models--(?:.*--)?([^/\\]+)[/\\]snapshots", name)
    return (cached[1] if cached else PurePath(name).name).lower()


def _hub_name(source: WeightSource) -> str | None:
    """The last part of a base's name on the Hub; None where only the name of a folder is known, or of a class."""
    said = [source.name, str(source.config.get("_name_or_path") or "")]
    for name in said:
        if "models--" in name or (re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists()):
            return _short(name)
    return None
