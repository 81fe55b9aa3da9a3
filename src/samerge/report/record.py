"""The record of what was made: one frozen value, made once. `samerge.json`, tables, card and pictures are views of it.

What is known of a single layer is stored; everything that is said of an adapter or of the whole is computed from that,
here and nowhere else (`Record.adapters`, `Record.whole`), so that two views cannot disagree. Squares add up over
layers: with l running over the layers of adapter n,

    norm^2          = sum_l norm_l^2
    cosine          = sum_l cosine_l norm_l M_l / (norm M),   M_l the norms of the merged layers, M^2 = sum over all
    interference^2  = sum_l interference_l^2 norm_l^2 / norm^2
    energy_kept     = sum_l energy_kept_l norm_l^2 / norm^2
    balance^2       = sum_l balance_l^2 norm_l^2 / norm^2

docs/diagnostics.md says what each figure means.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from samerge.report.stored import AdapterInLayer, Base, Input, LayerRecord, Output

#: Of the JSON. A reader refuses what is newer than itself.
FORMAT = 1


@dataclass(frozen=True)
class AdapterRecord:
    """One adapter over all its layers; the figures of `AdapterInLayer`, put together.

    Args:
        weight: in the merge.
        layers: how many of its own are in the merge; none where its weight is 0.
        norm: of its update as trained, over those layers; None where there are none, since nobody read it.
        energy_kept: None for a zero update.
        components: None where the method knows none.
        kept: how many of the components; None where the method does not choose any.
        elements: how many elements were kept, and of how many.
        balance: norm after the balance over that before.
        cosine: of the whole updates.
        interference: over all its layers.
        sign_conflict: with the merged update.
        log_connectivity: log R of the base with the adapter on it, where it was computed.
    """

    weight: float
    layers: int
    norm: float | None = None
    energy_kept: float | None = None
    components: int | None = None
    kept: int | None = None
    elements: tuple[int, int] | None = None
    balance: float | None = None
    cosine: float | None = None
    interference: float | None = None
    sign_conflict: float | None = None
    log_connectivity: float | None = None


@dataclass(frozen=True)
class Whole:
    """The merged update as a whole.

    Args:
        norm: of all merged layers together.
        cosine: with the adapters, their mean; with an adapter of negative weight, less it.
        best_cosine: the largest that this mean can be for any update of the output's rank.
        interference: the mean over the adapters.
        lost: share of the squared norm that truncation lost, all layers together.
        most_lost: the share in the layer that lost most.
        most_lost_in: that layer.
        effective_rank: the mean over the layers.
        sign_conflict: among the adapters.
        sign_conflict_after: among what pruning left of them.
        signs_left: of the pairs of signs before pruning, how many still are.
        sampled: elements that were looked at for signs, and of how many.
    """

    norm: float
    cosine: float | None = None
    best_cosine: float | None = None
    interference: float | None = None
    lost: float | None = None
    most_lost: float = 0.0
    most_lost_in: str | None = None
    effective_rank: float | None = None
    sign_conflict: float | None = None
    sign_conflict_after: float | None = None
    signs_left: float | None = None
    sampled: tuple[int, int] | None = None


@dataclass(frozen=True)
class Record:
    """What was made of what, and what became of it.

    Args:
        method: how it was merged: a method's name, "extract" or "compress".
        inputs: what went in, in the user's order.
        output: what came out.
        layers: by module, sorted.
        base: the base.
        options: all of them, as plain JSON values.
        log_connectivity: log R by adapter, where it was computed.
        samerge: the version that made it.
        created: when, in ISO 8601.
        versions: of Python and the libraries.
        kernel: what swept over the base, where something did.
        timings: seconds by stage.
        notes: what is worth knowing and no cause for concern, a sentence each.
        warnings: what the user should look at, a sentence each.
        outside: of a whole model: what became of the tensors outside the graph (`rule`, `tensors`).
        mismatched: of a whole model: where the checkpoints and the base differ.
        mask_bytes: of a whole model: what the masks took.
        left_out: of an extracted adapter: what changed and is not in it, by tensor: how much, or why.
        tuning: of a tuned merge: the search.
        files: sha256 of the other files beside it, by name; known when it is written.
    """

    method: str
    inputs: tuple[Input, ...]
    output: Output
    layers: Mapping[str, LayerRecord]
    base: Base = field(default_factory=Base)
    options: Mapping[str, Any] = field(default_factory=dict)
    log_connectivity: Mapping[str, float | None] = field(default_factory=dict)
    samerge: str = ""
    created: str = ""
    versions: Mapping[str, str | None] = field(default_factory=dict)
    kernel: str | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    outside: Mapping[str, Any] | None = None
    mismatched: tuple[Mapping[str, Any], ...] | None = None
    mask_bytes: int | None = None
    left_out: Mapping[str, Any] | None = None
    tuning: Mapping[str, Any] | None = None
    files: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        names = {one.name for one in self.inputs}
        for module, layer in self.layers.items():
            if not names.issuperset(layer.adapters):
                raise ValueError(f"layers.{module} has the adapter {min(set(layer.adapters) - names)!r}, no input")

    @cached_property
    def adapters(self) -> Mapping[str, AdapterRecord]:
        """What became of every input, by name, in the inputs' order."""
        merged = _norm(layer.norm for layer in self.layers.values())
        return {
            one.name: adapter_record(one.name, self.layers, merged, one.weight, self.log_connectivity.get(one.name))
            for one in self.inputs
        }

    @cached_property
    def whole(self) -> Whole:
        """The merged update as a whole."""
        layers = self.layers.values()
        active = [one for one in self.adapters.values() if one.weight and one.norm]
        worst = max(self.layers, key=lambda module: self.layers[module].lost, default=None)
        reaches = [layer.reach for layer in layers]
        looked = [layer.sampled for layer in layers if layer.sampled]
        return Whole(
            norm=_norm(layer.norm for layer in layers),
            cosine=mean([_towards(one) for one in active]),
            best_cosine=None
            if None in reaches or not reaches
            else min(1.0, _norm(r for r in reaches if r is not None)),
            interference=mean([one.interference for one in active]),
            lost=lost(layers),
            most_lost=self.layers[worst].lost if worst else 0.0,
            most_lost_in=worst,
            effective_rank=mean([layer.effective_rank for layer in layers]),
            sampled=(sum(one for one, _ in looked), sum(of for _, of in looked)) if looked else None,
            **signs(layers),
        )

    def json(self) -> dict[str, Any]:
        """Plain JSON values; what does not exist is left out. `adapters` and `whole` are there for who reads it."""
        told = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        del told["log_connectivity"]  # it is in `adapters`
        found: dict[str, Any] = _plain({"format": FORMAT, **told, "adapters": self.adapters, "whole": self.whole})
        return {key: value for key, value in found.items() if value is not None}


def _towards(adapter: AdapterRecord) -> float | None:
    """How far the merge goes the adapter's way, or the other where its weight is negative."""
    return None if adapter.cosine is None else adapter.cosine if adapter.weight > 0 else -adapter.cosine


def adapter_record(
    name: str,
    layers: Mapping[str, LayerRecord],
    merged: float,
    weight: float = 1.0,
    log_connectivity: float | None = None,
) -> AdapterRecord:
    """What is said of an adapter, from its layers.

    Args:
        name: of the adapter.
        layers: all of the merge.
        merged: norm of all merged layers together.
        weight: of the adapter.
        log_connectivity: log R.
    """
    found = [(layer, layer.adapters[name]) for layer in layers.values() if name in layer.adapters]
    own = [one for _, one in found]
    size = _norm(one.norm for one in own)
    chosen = any(one.kept is not None for one in own)
    counts = [one.components for one in own]
    interference = _over([(None if one.interference is None else one.interference**2, one.norm) for one in own])
    balance = _over([(one.balance**2, one.norm) for one in own])
    return AdapterRecord(
        weight=weight,
        layers=len(own),
        norm=size if own else None,
        energy_kept=energy_kept(own),
        components=None if None in counts or not own else sum(c for c in counts if c is not None),
        kept=sum(one.left for one in own) if chosen else None,
        elements=elements(own),
        balance=None if balance is None else math.sqrt(balance),
        cosine=_cosine(found, size, merged),
        interference=None if interference is None else math.sqrt(interference),
        sign_conflict=weighted_mean((one.sign_conflict, layer.sampled[0]) for layer, one in found if layer.sampled),
        log_connectivity=log_connectivity,
    )


def _cosine(found: list[tuple[LayerRecord, AdapterInLayer]], size: float, merged: float) -> float | None:
    """Of an adapter's whole update, of norm `size`, and the whole merged one."""
    present = [(layer, one) for layer, one in found if one.norm]
    if not present or any(one.cosine is None for _, one in present):
        return None
    if not merged:
        return 0.0
    inner = sum((one.cosine or 0.0) * (one.norm / size) * (layer.norm / merged) for layer, one in present)
    return max(-1.0, min(1.0, inner))


def energy_kept(shares: Iterable[AdapterInLayer]) -> float | None:
    """Share of the squared norm that was kept, over several adapters or layers; None where all are zero."""
    return _over([(one.energy_kept, one.norm) for one in shares])


def elements(shares: Iterable[AdapterInLayer]) -> tuple[int, int] | None:
    """How many elements were kept, and of how many; None where no method kept elements."""
    known = [one.elements for one in shares if one.elements]
    return (sum(kept for kept, _ in known), sum(of for _, of in known)) if known else None


def lost(layers: Iterable[LayerRecord]) -> float | None:
    """Share of the merged squared norm that truncation lost, several layers together; None where there was none.

    The norm before is that after over the share that is left; a layer that lost everything does not tell how much.
    """
    return weighted_mean((layer.lost, layer.norm**2 / (1 - layer.lost)) for layer in layers if layer.lost < 1)


def signs(layers: Iterable[LayerRecord]) -> dict[str, float | None]:
    """`sign_conflict`, `sign_conflict_after` and `signs_left` of several layers, by the elements looked at."""
    known = [layer for layer in layers if layer.sampled]
    return {
        key: weighted_mean((getattr(layer, key), (layer.sampled or (0, 0))[0]) for layer in known)
        for key in ("sign_conflict", "sign_conflict_after", "signs_left")
    }


def weighted_mean(pairs: Iterable[tuple[float | None, float]]) -> float | None:
    """The weighted mean of what is known; None where nothing is."""
    known = [(value, weight) for value, weight in pairs if value is not None]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None


def _over(pairs: list[tuple[float | None, float]]) -> float | None:
    """The mean by squared norm over what is not zero; None where something is not known."""
    present = [(value, norm) for value, norm in pairs if norm]
    return None if any(value is None for value, _ in present) else weighted_mean((v, n**2) for v, n in present)


def _norm(parts: Iterable[float]) -> float:
    return math.hypot(*parts)


def mean(values: list[float | None]) -> float | None:
    """The mean; None where one is not known, or there is none."""
    return None if None in values else weighted_mean((value, 1.0) for value in values)


def _plain(value: Any) -> Any:
    if isinstance(value, (str, int, float)):
        return value
    if dataclasses.is_dataclass(value):
        told = ((one.name, getattr(value, one.name)) for one in dataclasses.fields(value))
        return {name: _plain(item) for name, item in told if item is not None}
    if isinstance(value, (dict, Mapping)):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
