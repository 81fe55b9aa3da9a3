"""The record of a merge of checkpoints, as plain JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from samerge.full.full_options import FullOptions
from samerge.full.given_models import Opened
from samerge.full.measure import Measured
from samerge.merging.alignment.checkpoints import Mismatch
from samerge.merging.inputs import dtype_of
from samerge.report.merge_record import versions
from samerge.saliency.elements import Pruner
from samerge.version import __version__

#: Why there are no diagnostics.
_UNDIAGNOSED = (
    "the experts are whole weights: comparing them with the merge would read all of them once more, and an update of "
    "full rank reacts to every input, so that interference is only the distance"
)


def record(
    base: Opened,
    experts: Sequence[Opened],
    weights: Sequence[float],
    method: str,
    options: FullOptions,
    pruner: Pruner,
    active: Sequence[int],
    measured: Mapping[str, Measured],
    outside: Sequence[str],
    found: Sequence[Mismatch],
    logs: Sequence[float],
    timings: Mapping[str, float],
    warnings: Sequence[str],
) -> dict[str, Any]:
    """The record: inputs, options, versions, output, what was kept of every expert in every weight, timings, warnings.

    Args:
        base: the base.
        experts: all of them.
        weights: one for each.
        method: "elementwise" or "paper".
        options: the merge's.
        pruner: the survivors.
        active: numbers of the experts that the pruner knows, those of a weight other than 0.
        measured: by weight of the graph.
        outside: float tensors outside the graph.
        found: where the experts and the base differ.
        logs: log R of each active expert.
        timings: seconds of each stage.
        warnings: what the user should know.
    """
    names = [experts[n].name for n in active]
    dtype = dtype_of(options.dtype) or base.dtype
    return {
        "samerge": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "method": method,
        "base": {"name": base.source.name, "model_type": base.source.config.get("model_type")},
        "inputs": [_input(expert, weight) for expert, weight in zip(experts, weights, strict=True)],
        "options": options.record(),
        "versions": versions(),
        "output": {
            "kind": "model",
            "dtype": str(dtype).removeprefix("torch."),
            "tensors": len(base.source.shapes),
            "modules": len(measured),
            "parameters": sum(_count(shape) for shape in base.source.shapes.values()),
        },
        "diagnostics": {"absent": _UNDIAGNOSED},
        "layers": {key.removesuffix(".weight"): _layer(item, names) for key, item in sorted(measured.items())},
        "outside": {"rule": options.outside, "tensors": sorted(outside)},
        "mismatched": [
            {
                "tensor": item.tensor,
                "expert": item.expert,
                "what": item.what,
                "base": None if item.base is None else list(item.base),
                "found": None if item.found is None else list(item.found),
            }
            for item in found
        ],
        "mask_bytes": pruner.masks.nbytes,
        "log_connectivity": dict(zip(names, logs, strict=True)),
        "timings": {stage: round(seconds, 4) for stage, seconds in timings.items()},
        "warnings": list(warnings),
    }


def _input(expert: Opened, weight: float) -> dict[str, Any]:
    return {
        "name": expert.name,
        "source": expert.source.name,
        "weight": weight,
        "rank": None,
        "modules": len(expert.source.shapes),
        "dtype": str(expert.dtype).removeprefix("torch."),
        "base_model": None,
        "sha256": expert.sha256(),
    }


def _layer(item: Measured, names: Sequence[str]) -> dict[str, Any]:
    return {
        "experts": {
            names[n]: {
                "components": 0,
                "kept": None,
                "elements": [kept.kept, kept.elements],
                "norm": kept.norm,
                "energy": kept.energy,
            }
            for n, kept in item.shares.items()
        },
        "scale": item.scale,
        "norm": item.norm,
        "lost": 0.0,
        "outside": False,
    }


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
