"""The record of a merge of checkpoints.

A whole weight reacts to every input, so that there is no interference on an expert's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from samerge.full.full_options import FullOptions
from samerge.full.given_models import Opened
from samerge.full.measure import Measured
from samerge.merging.alignment.checkpoints import Mismatch
from samerge.merging.inputs import dtype_of
from samerge.parallel.progress import Progress
from samerge.report.origin import base_of, here, origin, seconds_of
from samerge.report.record import Record
from samerge.report.stored import AdapterInLayer, Input, LayerRecord, Output
from samerge.saliency.elements import Pruner
from samerge.weights.stored import name_of


def record(
    base: Opened,
    experts: Sequence[Opened],
    weights: Sequence[float],
    method: str,
    options: FullOptions,
    pruner: Pruner,
    active: Sequence[int],
    measured: Mapping[str, Measured],
    outside: Mapping[str, Measured],
    found: Sequence[Mismatch],
    logs: Sequence[float],
    progress: Progress,
    warnings: Sequence[str],
) -> Record:
    """What went in, what was kept of every expert in every weight, how it compares with the merge, what came out.

    Args:
        base: the base.
        experts: all of them.
        weights: one for each.
        method: "elementwise" or "paper".
        options: the merge's.
        pruner: the survivors.
        active: numbers of the experts that the pruner knows, those of a weight other than 0.
        measured: by weight of the graph.
        outside: by float tensor outside the graph.
        found: where the experts and the base differ.
        logs: log R of each active expert.
        progress: which knows the seconds of each stage.
        warnings: what the user should know.
    """
    names = [experts[n].name for n in active]
    return Record(
        method=method,
        base=base_of(base.source),
        inputs=tuple(_input(expert, weight) for expert, weight in zip(experts, weights, strict=True)),
        options=options.record(),
        output=Output(
            kind="model",
            dtype=name_of(dtype_of(options.dtype) or base.dtype),
            modules=len(measured),
            parameters=sum(math.prod(shape) for shape in base.source.shapes.values()),
            tensors=len(base.source.shapes),
        ),
        layers={
            key.removesuffix(".weight"): _layer(item, names, key in outside)
            for key, item in sorted({**measured, **outside}.items())
        },
        outside={"rule": options.outside, "tensors": sorted(outside)},
        mismatched=tuple(
            {"tensor": item.tensor, "expert": item.expert, "what": item.what, "base": item.base, "found": item.found}
            for item in found
        ),
        mask_bytes=pruner.masks.nbytes,
        log_connectivity=dict(zip(names, logs, strict=True)),
        timings=seconds_of(progress),
        warnings=tuple(warnings),
        **origin(),
    )


def _input(expert: Opened, weight: float) -> Input:
    return Input(
        name=expert.name,
        source=expert.source.name,
        weight=weight,
        modules=len(expert.source.shapes),
        dtype=name_of(expert.dtype),
        sha256=expert.sha256(),
        revision=expert.published.revision,
        card=expert.published.card,
        local=here(expert.source.name),
    )


def _layer(item: Measured, names: Sequence[str], outside: bool) -> LayerRecord:
    shares = {
        names[n]: AdapterInLayer(
            norm=kept.norm,
            energy_kept=kept.energy,
            elements=None if kept.kept is None or kept.elements is None else (kept.kept, kept.elements),
            cosine=kept.cosine,
        )
        for n, kept in item.shares.items()
    }
    return LayerRecord(shares, item.norm, scale=item.scale, outside=outside)
