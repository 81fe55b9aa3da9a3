"""`adapter_config.json` of a merged adapter: which base, which task, and which modules, in PEFT's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from samerge.adapters import Adapter, servable
from samerge.adapters.layouts import Layout
from samerge.linalg.factors import LoraFactors
from samerge.merging.alignment.views import replication
from samerge.merging.targets import targets_of
from samerge.methods.problem import Problem

#: Tasks for which PEFT trains the model's head with every adapter.
_WITH_HEAD = frozenset({"SEQ_CLS", "TOKEN_CLS"})


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
    if task in _WITH_HEAD and modules_to_save == "drop":
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


def strangers_of(problem: Problem, experts: Sequence[Adapter]) -> str | None:
    """What to say when the adapters name different base models, or another than the one given."""
    named: dict[str, list[str]] = {}
    for expert in experts:
        base = expert.config.get("base_model_name_or_path")
        if base:
            named.setdefault(str(base), []).append(expert.name)
    ours = problem.source.name if problem.source is not None else None
    if ours is not None:
        known = {ours, str(problem.source.config.get("_name_or_path")) if problem.source else ""}
        last = {PurePath(name).name.lower() for name in known}
        named = {base: who for base, who in named.items() if PurePath(base).name.lower() not in last}
    elif len(named) < 2:
        named = {}
    if not named:
        return None
    listed = "; ".join(f"{', '.join(who)} on {base}" for base, who in named.items())
    what = f"another base than {ours}" if ours else "different bases"
    return f"by name these adapters were trained on {what}: {listed}. Shapes and modules fit"
