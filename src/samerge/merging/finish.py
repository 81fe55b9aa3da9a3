"""From a method's outcome to the merged adapter: truncated, scaled, of one rank and dtype, with its configuration."""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import torch

from samerge.adapters import Adapter, widest
from samerge.adapters import servable as profile
from samerge.adapters.layouts import Layout, expert_of
from samerge.linalg.factors import LoraFactors, balanced, norm, pad
from samerge.linalg.spectrum import flatten
from samerge.linalg.truncation import truncate
from samerge.merging.alignment import assemble
from samerge.merging.alignment.views import replication
from samerge.merging.merged_adapter import MergedAdapter
from samerge.merging.trained_parts import merge_extras
from samerge.methods.problem import MergedLayer, Outcome, Problem, Site, by_module
from samerge.methods.scaling import ROUNDING, fixed_scale, scale_of
from samerge.options.lines import is_lines, layer_scalings
from samerge.options.merge_options import MergeOptions
from samerge.options.values import INTERFERENCE
from samerge.parallel.supply import elsewhere, send_all
from samerge.report.diagnostics.diagnose import diagnosed
from samerge.report.interference import scalings
from samerge.report.merge_record import record
from samerge.report.report import Report

#: Share of a layer's energy that a truncation may lose before the report says so in words.
_NOTABLE_LOSS = 0.2

#: Tasks for which PEFT trains the model's head with every adapter.
_WITH_HEAD = frozenset({"SEQ_CLS", "TOKEN_CLS"})


def finish(
    problem: Problem,
    experts: Sequence[Adapter],
    outcome: Outcome,
    options: MergeOptions,
    default_svd_rank: int | None,
    dora_lost: Mapping[str, Mapping[str, float]] | None = None,
    undiagnosed: str | None = None,
) -> MergedAdapter:
    """Truncate, flatten, scale, bring to one rank and dtype, fill in missing layers, write the record."""
    dtype = options.dtype or widest(expert.dtype for expert in experts)
    svd_rank = options.svd_rank or default_svd_rank
    factors: dict[str, LoraFactors] = {}
    updates: dict[str, LoraFactors] = {}

    def shortened(site: Site) -> float:
        layer = outcome.layers[site.module]
        update, lost = (layer.factors, 0.0) if svd_rank is None else truncate(layer.factors, svd_rank)
        updates[site.module] = flatten(update) if options.spectrum == "flat" else update
        return layer.lost + (1 - layer.lost) * lost

    losses = by_module(problem.sites, shortened)
    scales = _scales(problem, outcome, updates, options)

    def scaled(site: Site) -> dict[str, Any]:
        layer, update, scale = outcome.layers[site.module], updates.pop(site.module), scales[site.module]
        update = balanced(LoraFactors(update.A, update.B * scale))
        factors[site.module] = profile.cast(site.module, update, dtype)
        return _layer_record(problem, site, layer, scale, losses[site.module], update)

    layers = by_module(problem.sites, scaled)
    layouts: dict[str, Layout] = {site.module: site.layout for site in problem.sites}
    for module, (like, shape) in assemble.missing_layers(problem.sites, problem.source).items():
        factors[module] = LoraFactors(torch.zeros(0, shape[1], dtype=dtype), torch.zeros(shape[0], 0, dtype=dtype))
        layouts[module] = like.layout
    rank = max(1, *(layer["rank"] for layer in layers.values()))
    factors = {m: pad(factors[m], rank) for m in factors}
    factors.update(_from_others(problem, rank, dtype, factors))
    factors = {m: factors[m] for m in sorted(factors)}
    beside = merge_extras(experts, problem.weights, problem.sites, layouts, options, problem.source)
    for name, tensor in beside.tensors.items():
        profile.check_finite(name, tensor)
    settings = {**_settings(problem, experts, factors, layouts, rank, options), **beside.settings}
    for module, shares in (dora_lost or {}).items():
        layers[module]["dora_lost"] = dict(shares)
    diagnostics = {"absent": undiagnosed} if undiagnosed else diagnosed(problem, outcome, factors, layers)
    usual = options.fit and options.svd_rank is None
    warnings = [*_warnings(problem, experts, layers, options.method, usual), *beside.warnings]
    record_ = record(problem, experts, outcome, options, factors, rank, dtype, layers, diagnostics, warnings)
    return MergedAdapter(factors, {m: layouts[m] for m in factors}, settings, Report(record_), beside.tensors)


def _from_others(
    problem: Problem, rank: int, dtype: torch.dtype, own: Mapping[str, LoraFactors]
) -> dict[str, LoraFactors]:
    """The merged layers of the other processes, which get this one's."""
    found = {}
    for site in problem.sites:
        if site.owner is not None:
            ours = own.get(site.module, elsewhere(rank, site.shape, dtype))
            [layer] = send_all(problem.group, site.owner, [ours], problem.device)
            if site.module not in own:  # with a storage for each tensor, as files want it
                found[site.module] = LoraFactors(layer.A.clone(), layer.B.clone())
    return found


def _scales(
    problem: Problem, outcome: Outcome, updates: Mapping[str, LoraFactors], options: MergeOptions
) -> dict[str, float]:
    """lambda of every module, or of this process's."""
    scaling = options.scaling
    if scaling in INTERFERENCE:
        return scalings(problem, updates, str(scaling), options.basis)
    if is_lines(scaling):
        modules = {site.module: site.layout.kind == "embedding" for site in problem.sites}
        return layer_scalings(modules, problem.source.shapes if problem.source else (), str(scaling))
    fixed = fixed_scale(problem.weights, scaling)
    if fixed is not None:
        return dict.fromkeys(updates, fixed)
    flat = outcome.flat or options.spectrum == "flat"
    return {
        module: scale_of(
            float(norm(update)),
            {n: s.norm for n, s in outcome.layers[module].shares.items()},
            problem.weights,
            scaling,
            flat,
        )
        for module, update in updates.items()
    }


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
                **({} if share.elements is None else {"elements": list(share.elements)}),
                **({} if share.balance == 1.0 else {"balance": share.balance}),
            }
            for n, share in layer.shares.items()
        },
        "rank": update.rank,
        "scale": scale,
        "norm": float(norm(update)),
        "lost": lost,
        "outside": problem.graph is not None and not site.inside,
    }


def _settings(
    problem: Problem,
    experts: Sequence[Adapter],
    factors: Mapping[str, LoraFactors],
    layouts: Mapping[str, Layout],
    rank: int,
    options: MergeOptions,
) -> dict[str, Any]:
    """`adapter_config.json` in the servable profile."""
    modules, parameters = _targets(problem, factors, layouts)
    parameters = _as_trained(experts, parameters, problem)
    replicated = replication(experts)
    bases = [expert.config.get("base_model_name_or_path") for expert in experts]
    tasks = {expert.config.get("task_type") for expert in experts}
    task = tasks.pop() if len(tasks) == 1 else None
    if task in _WITH_HEAD and options.modules_to_save == "drop":
        task = None  # PEFT would look for a trained head in the file
    return {
        **profile.settings(
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
    taken = set(adapted.values()) | set(profile.siblings(adapted, stems).values())
    others = set(stems) - taken
    owners = {parameter.rpartition(".")[0] for parameter in parameters}
    bare = {stems[stem] for stem in others} | {f"{m}.weight" for m in plain}
    return (
        profile.target_modules(plain, others | owners | {f"{m}.out_proj" for m in plain}),
        profile.target_modules(parameters, bare),
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


def _warnings(
    problem: Problem, experts: Sequence[Adapter], layers: Mapping[str, Any], method: str, usual: bool
) -> list[str]:
    """`usual`: the rank is the recipe's own, whose loss is no news; the report's table tells it."""
    found = []
    strangers = _strangers(problem, experts)
    if strangers:
        found.append(strangers)
        python_warnings.warn(strangers, stacklevel=5)
    nothing = _nothing(problem, layers)
    if nothing:
        found.append(nothing)
        python_warnings.warn(nothing, stacklevel=5)
    ignored = [name for name, weight in zip(problem.names, problem.weights, strict=True) if weight == 0]
    if ignored and len(ignored) < len(problem.names):
        found.append(f"weight 0 leaves these adapters out: {', '.join(ignored)}")
    dtypes = {e.name: str(e.dtype).removeprefix("torch.") for e in experts}
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{name}: {kind}" for name, kind in dtypes.items())
        found.append(
            f"the adapters have different dtypes ({listed}); the widest is written unless dtype= says otherwise"
        )
    found += _dora_warnings(layers)
    heavy = {m: layer["lost"] for m, layer in layers.items() if layer["lost"] > _NOTABLE_LOSS}
    if heavy and not usual:
        worst = max(heavy, key=lambda m: heavy[m])
        option = "rank" if method in ("compress", "extract") else "svd_rank"
        found.append(
            f"truncation to {option} lost over {_NOTABLE_LOSS:.0%} of the energy in {len(heavy)} of {len(layers)} "
            f"layers (most in {worst}: {heavy[worst]:.0%}); a larger {option} keeps more"
        )
    return found


def _nothing(problem: Problem, layers: Mapping[str, Any]) -> str | None:
    """What to say when the merged update is zero in every layer, and why it is, as far as can be told."""
    weights = dict(zip(problem.names, problem.weights, strict=True))

    def most(layer: Mapping[str, Any]) -> float:
        """The largest norm that an expert's part of the sum has."""
        return max((abs(weights[n] * layer["scale"]) * one["norm"] for n, one in layer["experts"].items()), default=0.0)

    if any(layer["norm"] > ROUNDING * most(layer) for layer in layers.values()):
        return None
    if not any(weights.values()):
        why = "all weights are 0; give one adapter another"
    elif not any(one["norm"] for layer in layers.values() for one in layer["experts"].values()):
        why = "every update that went in is zero already (B is 0 in LoRA that was never trained)"
    elif not any(one["norm"] * one["energy"] for layer in layers.values() for one in layer["experts"].values()):
        why = "pruning kept nothing; choose a larger density, or a rank"
    elif not any(layer["scale"] for layer in layers.values()):
        why = "the scaling is 0; choose another"
    else:
        why = (
            "the weighted updates cancel each other, but for rounding; check the adapters (is one given twice, with "
            "weights of opposite sign?) with samerge inspect A B"
        )
    return f"the merged update is zero in every layer, so that the adapter does nothing: {why}"


def _dora_warnings(layers: Mapping[str, Any]) -> list[str]:
    """What the conversion of DoRA adapters lost, for each of them."""
    lost: dict[str, dict[str, float]] = {}
    for module, layer in layers.items():
        for name, share in layer.get("dora_lost", {}).items():
            lost.setdefault(name, {})[module] = share
    found = []
    for name, shares in lost.items():
        worst = max(shares, key=lambda module: shares[module])
        mean = sum(shares.values()) / len(shares)
        text = (
            f"converting the DoRA adapter {name} to LoRA lost {mean:.1%} of its update's energy on average (most in "
            f"{worst}: {shares[worst]:.1%})"
        )
        if max(shares.values()) > _NOTABLE_LOSS:
            text += "; that is much: the merged adapter will not behave like it. dora='exact:<rank>' keeps more"
        found.append(text)
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
