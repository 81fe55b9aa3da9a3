"""`adapter_config.json` of a merged adapter: which base, which task, and which modules, in PEFT's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from samerge.adapters import Adapter, servable
from samerge.adapters.layouts import Layout, expert_of
from samerge.linalg.factors import LoraFactors
from samerge.merging.alignment.views import replication
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
    modules, parameters = _targets(problem, factors, layouts)
    parameters = _as_trained(experts, parameters, problem)
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
            modules,
            layouts.values(),
        ),
        "task_type": task,
        **({"target_parameters": parameters} if parameters else {}),
        **({"layer_replication": [list(pair) for pair in replicated]} if replicated else {}),
    }


def _targets(
    problem: Problem, factors: Mapping[str, LoraFactors], layouts: Mapping[str, Layout]
) -> tuple[list[str], list[str]]:
    """`target_modules` and `target_parameters`, which resolve to exactly the merged adapter's modules."""
    plain = sorted(layouts[m].path(m) for m in factors if layouts[m].kind not in ("parameter", "out_proj"))
    parameters = sorted({expert_of(m)[0] for m in factors if layouts[m].kind == "parameter"})
    if problem.source is None:
        return plain, parameters
    adapted = {expert_of(site.module)[0].removesuffix(".weight"): _stem(site.key or "") for site in problem.sites}
    stems = {_stem(t): t for t, shape in problem.source.shapes.items() if len(shape) >= 2}
    taken = set(adapted.values()) | set(servable.siblings(adapted, stems).values())
    others = set(stems) - taken
    owners = {parameter.rpartition(".")[0] for parameter in parameters}
    bare = {stems[stem] for stem in others} | {f"{m}.weight" for m in plain}
    return (
        servable.target_modules(plain, others | owners | {f"{m}.out_proj" for m in plain}),
        servable.target_modules(parameters, bare),
    )


def _as_trained(experts: Sequence[Adapter], parameters: list[str], problem: Problem) -> list[str]:
    """`target_parameters` in the experts' own words, where these mean the same parameters.

    PEFT puts adapters of parameters on one model only if their `target_parameters` are the same, word for word.
    """
    spelled = {tuple(sorted(set(e.config.get("target_parameters") or ()))) for e in experts} - {()}
    if not parameters or len(spelled) != 1 or problem.source is None:
        return parameters
    [words] = spelled
    names = {_stem(tensor) for tensor in problem.source.shapes} | set(problem.source.shapes)

    def means(entries: Sequence[str]) -> set[str]:
        return {name for name in names if any(name == word or name.endswith(f".{word}") for word in entries)}

    return list(words) if means(words) == means(parameters) else parameters


def _stem(key: str) -> str:
    return expert_of(key)[0].removesuffix(".weight")


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
