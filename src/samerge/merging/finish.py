"""From a method's outcome to the merged adapter: truncated, scaled, of one rank and dtype, with its configuration."""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from samerge.adapters import Adapter, widest
from samerge.adapters.layouts import Layout
from samerge.adapters.servable import cast, check_finite
from samerge.linalg.factors import LoraFactors, norm, pad
from samerge.linalg.triplets import Triplets
from samerge.merging.alignment import assemble
from samerge.merging.configuration import settings_of, strangers_of
from samerge.merging.inputs import dtype_of
from samerge.merging.merged_adapter import MergedAdapter
from samerge.merging.plan import Plan
from samerge.merging.trained_parts import merge_extras
from samerge.methods.method import Begun, MergedLayer
from samerge.methods.problem import MOST_BALANCE, Part, Problem, Site
from samerge.methods.scaling import NORM_FACTOR, ROUNDING, norm_rule
from samerge.options.lines import is_lines, layer_scalings
from samerge.options.scaling import auto_factor
from samerge.parallel.shared_work import collected, everywhere
from samerge.report.diagnostics.diagnose import diagnosed_layer
from samerge.report.diagnostics.whole_merge import summary
from samerge.report.merge_record import record
from samerge.report.report import Report

#: Share of a layer's energy that a truncation may lose before the report says so in words.
_NOTABLE_LOSS = 0.2


class Finisher:
    """Takes the merged layers one by one and makes the adapter and its record of them.

    Args:
        problem: the adapters as they were brought together.
        experts: the adapters.
        planned: what was to be done.
        begun: the method, at work.
        dora_lost: what the conversion of DoRA modules lost, by module and adapter.
        undiagnosed: why the merge is not compared with its adapters; empty where it is.
        notes: what was done to bring them together.
    """

    def __init__(
        self,
        problem: Problem,
        experts: Sequence[Adapter],
        planned: Plan,
        begun: Begun,
        dora_lost: Mapping[str, Mapping[str, float]] | None = None,
        undiagnosed: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        self.problem, self.experts, self.planned, self.begun = problem, experts, planned, begun
        self.dora_lost, self.undiagnosed, self.notes = dora_lost or {}, undiagnosed, notes
        self.dtype = dtype_of(planned.common.dtype) or widest(expert.dtype for expert in self._active())
        self.limit = problem.limit or (None if planned.method.exact else problem.rank)
        self.scales = self._by_depth()
        self.factors: dict[str, LoraFactors] = {}
        self.layers: dict[str, dict[str, Any]] = {}

    def add(self, site: Site, parts: Mapping[int, Part], layer: MergedLayer) -> None:
        """Truncate, scale and cast a merged layer, and say what became of the adapters in it."""
        update, lost = (layer.update, 0.0) if self.limit is None else layer.update.truncated(self.limit)
        scale = self._scale(site, parts, update)
        written = cast(site.module, update.scaled(scale).factors(), self.dtype)
        self.factors[site.module] = written
        weights = {self.problem.names[n]: self.problem.weights[n] for n in parts}
        self.layers[site.module] = {
            "experts": {
                self.problem.names[n]: {
                    "components": share.components,
                    "kept": None if share.kept is None else list(share.kept),
                    "norm": parts[n].norm / parts[n].balance if share.norm is None else share.norm,
                    "energy": share.energy,
                    **({} if share.elements is None else {"elements": list(share.elements)}),
                    **({} if parts[n].balance == 1.0 else {"balance": parts[n].balance}),
                }
                for n, share in layer.shares.items()
            },
            "rank": update.rank,
            "scale": scale,
            "norm": float(norm(written.to(dtype=torch.float32))),
            "lost": layer.lost + (1 - layer.lost) * lost,
            "outside": self.problem.graph is not None and not site.inside,
            **({"dora_lost": dict(self.dora_lost[site.module])} if site.module in self.dora_lost else {}),
        }
        if not self.undiagnosed:
            trained = {n: LoraFactors(p.factors.A, p.factors.B / p.balance) for n, p in parts.items()}
            found = diagnosed_layer(site.shape, written, trained, layer.conflict, self.problem.names, weights)
            of = self.layers[site.module]["experts"]
            experts = {name: {**of[name], **own} for name, own in found["experts"].items()}
            self.layers[site.module] |= {**found, "experts": experts}

    def done(self) -> MergedAdapter:
        """The adapter: of one rank, with the layers that no adapter has, its configuration and its record."""
        problem, planned = self.problem, self.planned
        layers = everywhere(problem.sites, lambda site: self.layers[site.module])
        layouts: dict[str, Layout] = {site.module: site.layout for site in problem.sites}
        factors = dict(self.factors)
        for module, (like, shape) in assemble.missing_layers(problem.sites, problem.source).items():
            empty = torch.zeros(0, shape[1], dtype=self.dtype), torch.zeros(shape[0], 0, dtype=self.dtype)
            factors[module] = LoraFactors(*empty)
            layouts[module] = like.layout
        rank = max(1, *(layer["rank"] for layer in layers.values()))
        factors = {m: pad(factors[m], rank) for m in factors}
        shapes = {site.module: site.shape for site in problem.sites}
        factors = collected(problem.sites, shapes, factors, rank, self.dtype, problem.device)
        factors = {m: factors[m] for m in sorted(factors)}
        beside = merge_extras(self.experts, problem.weights, problem.sites, layouts, planned.common, problem.source)
        for name, tensor in beside.tensors.items():
            check_finite(name, tensor)
        settings = {
            **settings_of(problem, self._active(), factors, layouts, rank, planned.common.modules_to_save),
            **beside.settings,
        }
        active = [name for name, weight in zip(problem.names, problem.weights, strict=True) if weight != 0]
        diagnostics = {"absent": self.undiagnosed} if self.undiagnosed else summary(layers, active)
        warnings = [
            *([planned.note] if planned.note else []),
            *self.notes,
            *self.begun.notes,
            *_warnings(problem, self._active(), layers, planned),
            *beside.warnings,
        ]
        told = record(
            problem, self.experts, planned, self.begun, factors, rank, self.dtype, layers, diagnostics, warnings
        )
        return MergedAdapter(factors, {m: layouts[m] for m in factors}, settings, Report(told), beside.tensors)

    def _active(self) -> list[Adapter]:
        """The adapters of a weight other than 0; all of them where there is none."""
        active = [expert for expert, weight in zip(self.experts, self.problem.weights, strict=True) if weight != 0]
        return active or list(self.experts)

    def _by_depth(self) -> Mapping[str, float]:
        """lambda of every module where it follows the depth; nothing otherwise."""
        if not is_lines(self.planned.scaling):
            return {}
        modules = {site.module: site.layout.kind == "embedding" for site in self.problem.sites}
        names = self.problem.source.shapes if self.problem.source else ()
        return layer_scalings(modules, names, str(self.planned.scaling))

    def _scale(self, site: Site, parts: Mapping[int, Part], update: Triplets) -> float:
        if self.scales:
            return self.scales[site.module]
        factor = auto_factor(self.planned.scaling)
        if factor is None:
            return float(self.planned.scaling)
        loudness = {n: abs(self.problem.weights[n]) * part.norm for n, part in parts.items()}
        return norm_rule(update.norm, list(loudness.values()), factor or NORM_FACTOR)


def _warnings(problem: Problem, experts: Sequence[Adapter], layers: Mapping[str, Any], planned: Plan) -> list[str]:
    found = [note for expert in experts for note in expert.notes]
    strangers = strangers_of(problem, experts)
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
    if heavy:
        worst = max(heavy, key=lambda m: heavy[m])
        found.append(
            f"truncation to the rank lost over {_NOTABLE_LOSS:.0%} of the energy in {len(heavy)} of {len(layers)} "
            f"layers (most in {worst}: {heavy[worst]:.0%}); a larger rank keeps more"
        )
    capped = sorted(
        {n for layer in layers.values() for n, one in layer["experts"].items() if one.get("balance") == MOST_BALANCE}
    )
    if capped:
        found.append(
            f"far smaller than the others: {', '.join(capped)}. The balance makes an adapter {MOST_BALANCE:g} times as "
            f"strong at most, so it stays relatively small; was it trained?"
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
        why = "every update that went in is zero already (B is 0 in LoRA that was never trained, or lora_alpha is 0)"
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
