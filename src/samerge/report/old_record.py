"""Records of version 0.1.0 in the words of today.

There the adapters of a layer were `experts` and their kept energy `energy`, methods had a second namespace (`recipe`),
and `norm` was that after the balance. With the layer's cosine c, its retention p = <M, tau> / ||tau||^2 and the merged
norm M, the norm as trained is c M / p; the figures of the whole come from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Below this the retention is rounding.
_LEAST = 1e-4


def renewed(told: Mapping[str, Any]) -> dict[str, Any]:
    """An old record as today's plain values. What is of another kind than it should be stays as it is.

    Args:
        told: what the file holds.
    """
    options = told.get("options")
    balanced = isinstance(options, Mapping) and options.get("balance") not in (None, "none")
    layers = told.get("layers")
    output = told.get("output")
    new = {
        **told,
        "method": told.get("recipe") or told.get("method"),
        "layers": {module: _layer(layer, balanced) for module, layer in layers.items()}
        if isinstance(layers, Mapping)
        else layers,
        "output": {"kind": "adapter", **output} if isinstance(output, Mapping) else output,
    }
    return {key: value for key, value in new.items() if value is not None}


def _layer(layer: Any, balanced: bool) -> Any:
    experts = layer.get("experts") if isinstance(layer, Mapping) else None
    if not isinstance(experts, Mapping):
        return layer
    lost = layer.get("dora_lost")
    adapters = {name: _adapter(one, layer.get("norm"), balanced) for name, one in experts.items()}
    for name, share in lost.items() if isinstance(lost, Mapping) else ():
        if isinstance(adapters.get(name), dict):
            adapters[name]["dora_lost"] = share
    return {**layer, "adapters": adapters}


def _adapter(one: Any, merged: Any, balanced: bool) -> Any:
    if not isinstance(one, Mapping):
        return one
    new = {**one, "energy_kept": one.get("energy", 1.0)}
    if one.get("elements") and not one.get("components"):
        new["components"] = None  # of a whole weight
    if balanced:
        retention, cosine = one.get("retention"), one.get("cosine")
        numbers = [value for value in (retention, cosine, merged) if isinstance(value, (int, float))]
        if len(numbers) == 3 and abs(numbers[0]) > _LEAST:
            new["norm"] = abs(numbers[1] * numbers[2] / numbers[0])
            if new["norm"] and isinstance(one.get("norm"), (int, float)):
                new["balance"] = one["norm"] / new["norm"]
    return new
