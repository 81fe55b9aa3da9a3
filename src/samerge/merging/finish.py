"""From a method's outcome to the merged adapter: truncated, scaled, of one rank and dtype, with its configuration."""

from __future__ import annotations

import math
import warnings as python_warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from samerge.adapters import Adapter, widest
from samerge.adapters.formats.header import carried
from samerge.adapters.formats.table import common
from samerge.adapters.layouts import Layout
from samerge.adapters.servable import cast, check_finite
from samerge.linalg.factors import LoraFactors, pad
from samerge.linalg.sums import Summed
from samerge.linalg.triplets import Triplets
from samerge.merging.alignment import assemble
from samerge.merging.companions import chosen_companions
from samerge.merging.configuration import settings_of
from samerge.merging.findings import notes_of, warnings_of
from samerge.merging.inputs import dtype_of
from samerge.merging.merged_adapter import MergedAdapter
from samerge.merging.plan import Plan
from samerge.merging.trained_parts import merge_extras
from samerge.methods.method import Begun, MergedLayer
from samerge.methods.problem import Part, Problem, Site
from samerge.methods.scaling import NORM_FACTOR, norm_rule
from samerge.options.scaling import auto_factor
from samerge.parallel.shared_work import collected, everywhere
from samerge.report.merged_layer import compared, layer_record
from samerge.report.origin import adapter_output, base_of, input_of, origin, seconds_of
from samerge.report.overlap import summed
from samerge.report.record import Record
from samerge.report.report import Report
from samerge.report.stored import LayerRecord


class Finisher:
    """Takes the merged layers one by one and makes the adapter and its record of them.

    Args:
        problem: the adapters as they were brought together.
        experts: the adapters.
        planned: what was to be done.
        begun: the method, at work.
        dora_lost: what the conversion of DoRA modules lost, by module and adapter.
        compare: whether to compare the merged update with the adapters' own.
        notes: what was done to bring them together.
    """

    def __init__(
        self,
        problem: Problem,
        experts: Sequence[Adapter],
        planned: Plan,
        begun: Begun,
        dora_lost: Mapping[str, Mapping[str, float]] | None = None,
        compare: bool = True,
        notes: Sequence[str] = (),
    ) -> None:
        self.problem, self.experts, self.planned, self.begun = problem, experts, planned, begun
        self.dora_lost, self.compare, self.notes = dora_lost or {}, compare, notes
        self.dtype = dtype_of(planned.common.dtype) or widest(
            expert.dtype for expert in self._active() if expert.modules
        )
        self.limit = problem.limit or (None if planned.method.exact else problem.rank)
        self.factors: dict[str, LoraFactors] = {}
        self.layers: dict[str, LayerRecord] = {}
        #: The adapters' updates in a layer, with what the balance has multiplied each with, by its number.
        self.sums: dict[str, tuple[Summed | None, Mapping[int, float]]] = {}

    def add(self, site: Site, parts: Mapping[int, Part], layer: MergedLayer) -> None:
        """Truncate, scale and cast a merged layer, and say what became of the adapters in it."""
        update, lost = (layer.update, 0.0) if self.limit is None else layer.update.truncated(self.limit)
        scale = self._scale(site, parts, update)
        written = cast(site.module, update.scaled(scale).factors(), self.dtype)
        self.factors[site.module] = written
        self.layers[site.module] = self._recorded(site, parts, layer, written, update.rank, scale, lost)

    def _recorded(
        self,
        site: Site,
        parts: Mapping[int, Part],
        layer: MergedLayer,
        written: LoraFactors,
        rank: int,
        scale: float,
        lost: float,
    ) -> LayerRecord:
        names, weights = self.problem.names, self.problem.weights_at(site)
        told = layer_record(written, parts, layer.shares, names, self.dora_lost.get(site.module, {}))
        if site.factors:
            loud = {names[n]: weights[n] for n in site.factors}
            told = replace(told, adapters={m: replace(one, weight=loud[m]) for m, one in told.adapters.items()})
        made = replace(
            told,
            rank=rank,
            scale=scale,
            lost=layer.lost + (1 - layer.lost) * lost,
            outside=self.problem.graph is not None and not site.inside,
        )
        if not self.compare:
            return made
        self.problem.sizes[site.module] = {n: p.norm / p.balance for n, p in parts.items()}
        one = layer.summed or (summed([p.factors for p in parts.values()]) if parts else None)
        self.sums[site.module] = one, {n: p.balance for n, p in parts.items()}
        trained = {
            names[n]: LoraFactors(p.factors.A, p.factors.B / p.balance)
            if p.known is None
            else p.known.scaled(1 / p.balance)
            for n, p in parts.items()
        }
        return compared(made, site.shape, written, trained, [p.factors for p in parts.values()], layer.conflict)

    def done(self) -> MergedAdapter:
        """The adapter: of one rank, with the layers that no adapter has, its configuration and its record."""
        problem, planned = self.problem, self.planned
        spectra = self._spectra()
        told = everywhere(problem.sites, lambda site: (self.layers[site.module], spectra.get(site.module)))
        rank = max(1, *(layer.rank or 0 for layer, _ in told.values()))
        layers = {module: replace(layer, reach=_reach(squares, rank)) for module, (layer, squares) in told.items()}
        layouts: dict[str, Layout] = {site.module: site.layout for site in problem.sites}
        factors = dict(self.factors)
        missing = assemble.missing_layers(problem.sites, problem.source)
        missing |= assemble.missing_partners(problem.sites, missing, problem.source)
        for module, (like, shape) in missing.items():
            empty = torch.zeros(0, shape[1], dtype=self.dtype), torch.zeros(shape[0], 0, dtype=self.dtype)
            factors[module] = LoraFactors(*empty)
            layouts[module] = like.layout
        factors = {m: pad(factors[m], rank) for m in factors}
        shapes = {site.module: site.shape for site in problem.sites}
        factors = collected(problem.sites, shapes, factors, rank, self.dtype, problem.device)
        factors = {m: factors[m] for m in sorted(factors)}
        heights = {module: one.B.shape[0] for module, one in factors.items()}
        beside = merge_extras(
            self.experts, problem.weights, problem.sites, layouts, heights, planned.common, problem.source
        )
        for name, tensor in beside.tensors.items():
            check_finite(name, tensor)
        settings = {
            **settings_of(problem, self._active(), factors, layouts, rank, planned.common.modules_to_save),
            **beside.settings,
        }
        companions, told_of = chosen_companions(self._active(), planned.common.companions)
        findings = warnings_of(problem, self._active(), layers, self.dtype)
        for text in findings.alarms:
            python_warnings.warn(text, stacklevel=4)
        record = Record(
            method=planned.method.name,
            base=base_of(problem.source),
            inputs=tuple(
                input_of(expert, weight) for expert, weight in zip(self.experts, problem.weights, strict=True)
            ),
            options=planned.record(),
            output=adapter_output(factors, self.dtype, rank, settings),
            layers=layers,
            log_connectivity={
                problem.names[n]: value for n, value in self.begun.log_connectivity.items() if problem.weights[n]
            },
            kernel=self.begun.kernel,
            timings=seconds_of(problem.progress),
            notes=(*self.notes, *notes_of(problem, planned, self.begun)),
            warnings=(*findings.alarms, *findings.others, *beside.warnings, *told_of),
            **origin(),
        )
        kept = {module: layouts[module] for module in factors}
        active = self._active()
        return MergedAdapter(
            factors,
            kept,
            settings,
            Report(record),
            beside.tensors,
            companions,
            common(expert.format for expert in active),
            carried([expert.metadata for expert in active]),
            {} if problem.source is None else problem.source.config,
        )

    def _active(self) -> list[Adapter]:
        """The adapters of a weight other than 0; all of them where there is none."""
        active = [expert for expert, weight in zip(self.experts, self.problem.weights, strict=True) if weight != 0]
        return active or list(self.experts)

    def _spectra(self) -> Mapping[str, list[float]]:
        """The squared singular values of the mean of the adapters' directions, by layer."""
        norms = self.problem.norms if self.compare else {}
        present = sum(size > 0 for size in norms.values())
        found = {}
        for site in self.problem.own:
            one, balance = self.sums.get(site.module, (None, {}))
            if one is not None:
                weights = self.problem.weights_at(site)
                voices = {n: norms[n] * present * size for n, size in balance.items()}
                found[site.module] = one.squares(
                    [math.copysign(1 / size, weights[n]) if size else 0.0 for n, size in voices.items()]
                )
        return found

    def _scale(self, site: Site, parts: Mapping[int, Part], update: Triplets) -> float:
        factor = auto_factor(self.planned.scaling)
        if factor is None:
            return float(self.planned.scaling)
        weights = self.problem.weights_at(site)
        loudness = {n: abs(weights[n]) * part.norm for n, part in parts.items()}
        return norm_rule(update.norm, list(loudness.values()), factor or NORM_FACTOR)


def _reach(squares: Sequence[float] | None, rank: int) -> float | None:
    return None if squares is None else math.sqrt(sum(squares[:rank]))
