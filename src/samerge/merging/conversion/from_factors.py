"""Factors of linear weights of a base as one adapter in the servable profile, where no adapter was the source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from samerge.adapters.layouts import Layout
from samerge.adapters.servable import cast, settings, target_modules
from samerge.linalg.factors import LoraFactors, balanced, pad
from samerge.weights import WeightSource


def servable(
    updates: Mapping[str, tuple[LoraFactors, bool]], source: WeightSource, dtype: torch.dtype
) -> tuple[dict[str, LoraFactors], dict[str, Layout], dict[str, Any]]:
    """Updates of whole weights, brought to one rank and dtype.

    Args:
        updates: by the weight's name in the base, ending in `.weight`: the update as (out, in) factors, and whether
            the weight is stored (in, out).
        source: the base.
        dtype: of the adapter.

    Returns:
        Factors and layouts by module, sorted, and what `adapter_config.json` says.
    """
    modules = {tensor.removesuffix(".weight"): update for tensor, update in sorted(updates.items())}
    rank = max(1, *(factors.rank for factors, _ in modules.values()))
    factors = {module: cast(module, pad(balanced(f), rank), dtype) for module, (f, _) in modules.items()}
    layouts = {module: Layout(transposed=transposed) for module, (_, transposed) in modules.items()}
    matrices = {tensor.removesuffix(".weight") for tensor, shape in source.shapes.items() if len(shape) >= 2}
    targets = target_modules(list(modules), matrices - set(modules))
    return factors, layouts, settings(source.name, rank, targets, layouts.values())
