"""From a method's outcome to the merged adapter: truncated, scaled, of one rank and dtype, with its configuration."""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import torch

from samerge import assemble, profile
from samerge.adapters import Adapter, widest
from samerge.compress import truncate
from samerge.factors import LoraFactors, balanced, norm, pad
from samerge.layouts import Layout
from samerge.merged import MergedAdapter
from samerge.methods.problem import MergedLayer, Outcome, Problem, Site
from samerge.options import MergeOptions
from samerge.record import record
from samerge.report import Report
from samerge.scaling import scale_of

#: Share of a layer's energy that a truncation may lose before the report says so in words.
_NOTABLE_LOSS = 0.2


def finish(
    problem: Problem, experts: Sequence[Adapter], outcome: Outcome, options: MergeOptions, default_svd_rank: int | None
) -> MergedAdapter:
    """Truncate, scale, bring to one rank and dtype, fill in missing layers, write the record."""
    dtype = options.dtype or widest(expert.dtype for expert in experts)
    svd_rank = options.svd_rank or default_svd_rank
    factors: dict[str, LoraFactors] = {}
    layers: dict[str, Any] = {}
    for site in problem.sites:
        layer = outcome.layers[site.module]
        update, lost = (layer.factors, 0.0) if svd_rank is None else truncate(layer.factors, svd_rank)
        scale = scale_of(update, {n: s.norm for n, s in layer.shares.items()}, problem.weights, options.scaling)
        update = balanced(LoraFactors(update.A, update.B * scale))
        factors[site.module] = update
        layers[site.module] = _layer_record(problem, site, layer, scale, lost, update)
    layouts: dict[str, Layout] = {site.module: site.layout for site in problem.sites}
    for module, (like, shape) in assemble.missing_layers(problem.sites, problem.source).items():
        factors[module] = LoraFactors(torch.zeros(0, shape[1]), torch.zeros(shape[0], 0))
        layouts[module] = like.layout
    rank = max(1, *(update.rank for update in factors.values()))
    factors = {m: pad(factors[m], rank).to(dtype=dtype) for m in sorted(factors)}
    settings = _settings(problem, experts, factors, layouts, rank)
    warnings = _warnings(problem, experts, layers)
    record_ = record(problem, experts, outcome, options, factors, rank, dtype, layers, warnings)
    return MergedAdapter(factors, {m: layouts[m] for m in factors}, settings, Report(record_))


def _layer_record(
    problem: Problem, site: Site, layer: MergedLayer, scale: float, lost: float, update: LoraFactors
) -> dict[str, Any]:
    return {
        "experts": {
            problem.names[n]: {
                "components": share.components,
                "kept": None if share.kept is None else list(share.kept),
                "norm": share.norm,
                "energy": share.energy,
            }
            for n, share in layer.shares.items()
        },
        "scale": scale,
        "norm": float(norm(update)),
        "lost": lost,
        "outside": not site.inside,
    }


def _settings(
    problem: Problem,
    experts: Sequence[Adapter],
    factors: Mapping[str, LoraFactors],
    layouts: Mapping[str, Layout],
    rank: int,
) -> dict[str, Any]:
    """`adapter_config.json` in the servable profile."""
    others: set[str] | None = None
    if problem.source is not None:
        adapted = {site.module: (site.key or "").removesuffix(".weight") for site in problem.sites}
        stems = {t.removesuffix(".weight") for t, shape in problem.source.shapes.items() if len(shape) >= 2}
        taken = set(adapted.values()) | set(profile.siblings(adapted, stems).values())
        others = stems - taken
    bases = [expert.config.get("base_model_name_or_path") for expert in experts]
    tasks = {expert.config.get("task_type") for expert in experts}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": next((b for b in bases if b), problem.source.name if problem.source else None),
        "task_type": tasks.pop() if len(tasks) == 1 else None,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": profile.target_modules(factors, others) if others is not None else sorted(factors),
        "fan_in_fan_out": any(layout.kind == "linear" and layout.transposed for layout in layouts.values()),
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _warnings(problem: Problem, experts: Sequence[Adapter], layers: Mapping[str, Any]) -> list[str]:
    found = []
    strangers = _strangers(problem, experts)
    if strangers:
        found.append(strangers)
        python_warnings.warn(strangers, stacklevel=4)
    ignored = [name for name, weight in zip(problem.names, problem.weights, strict=True) if weight == 0]
    if ignored:
        found.append(f"weight 0 leaves these adapters out: {', '.join(ignored)}")
    dtypes = {e.name: str(e.dtype).removeprefix("torch.") for e in experts}
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{name}: {kind}" for name, kind in dtypes.items())
        found.append(
            f"the adapters have different dtypes ({listed}); the widest is written unless dtype= says otherwise"
        )
    heavy = {m: layer["lost"] for m, layer in layers.items() if layer["lost"] > _NOTABLE_LOSS}
    if heavy:
        worst = max(heavy, key=lambda m: heavy[m])
        found.append(
            f"truncation to svd_rank lost over {_NOTABLE_LOSS:.0%} of the energy in {len(heavy)} of {len(layers)} "
            f"layers (most in {worst}: {heavy[worst]:.0%}); a larger svd_rank keeps more"
        )
    return found


def _strangers(problem: Problem, experts: Sequence[Adapter]) -> str | None:
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
