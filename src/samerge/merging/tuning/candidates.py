"""Merges of the same adapters with different options: base and adapters are opened once, scored selections are kept."""

from __future__ import annotations

import warnings as python_warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import nn

from samerge.adapters import Adapter, widest
from samerge.adapters.servable import cast
from samerge.linalg.factors import LoraFactors, balanced
from samerge.merging.inputs import AdapterLike, dtype_of, open_adapters, open_base
from samerge.merging.merge_adapters import merge
from samerge.merging.merged_adapter import MergedAdapter
from samerge.methods.scaling import scale_of
from samerge.options.values import UNIT, auto_factor
from samerge.report.diagnostics.rescaling import rescaled
from samerge.report.diagnostics.whole_merge import summary
from samerge.report.report import Report

#: How many merges are kept for trials that differ from them in nothing but the scaling.
_KEPT = 4


class Candidates:
    """Merges of one set of adapters.

    A numeric scaling multiplies the merged update after everything else, and so do "auto:<c>" and "unit", layer by
    layer. Trials which differ in these alone are one merge, at scaling 1 and in float32, times numbers. Adapters that
    train biases are merged anew every time: a base's bias is not in proportion.

    Args:
        base: as for `merge`.
        adapters: as for `merge`.

    Raises:
        SamergeError: as for `merge`, where they cannot be read.
    """

    def __init__(
        self,
        base: str | Path | nn.Module | None,
        adapters: Mapping[str, AdapterLike] | Sequence[AdapterLike],
    ) -> None:
        self.adapters: list[Adapter] = open_adapters(base, adapters)
        self.base: Any = base if isinstance(base, nn.Module) else open_base(base, required=False)
        self._kept: OrderedDict[str, MergedAdapter] = OrderedDict()

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters' names, in order."""
        return tuple(adapter.name for adapter in self.adapters)

    def merged(self, options: Mapping[str, Any]) -> MergedAdapter:
        """The merge with some options, from a kept one where that is the same.

        Args:
            options: keyword arguments of `merge`.
        """
        scaling = options.get("scaling")
        comes_after = isinstance(scaling, Real) or scaling == UNIT or auto_factor(str(scaling))
        if not comes_after:  # "auto" alone depends on the spectrum
            return self._remember(options)
        unit = self._remember({**options, "scaling": 1.0, "dtype": torch.float32})
        if unit.extras:
            return self._remember(options)
        dtype = dtype_of(options.get("dtype"))
        return scaled(unit, scaling, dtype, dtype or widest(adapter.dtype for adapter in self.adapters))

    def exactly(self, options: Mapping[str, Any]) -> MergedAdapter:
        """The merge with some options, made anew, with its warnings."""
        return merge(self.base, {a.name: a for a in self.adapters}, progress=False, **options)

    def _remember(self, options: Mapping[str, Any]) -> MergedAdapter:
        key = repr(sorted(options.items()))
        if key not in self._kept:
            with python_warnings.catch_warnings():
                python_warnings.simplefilter("ignore")  # they come once, with the merge that is handed over
                self._kept[key] = self.exactly(options)
        self._kept.move_to_end(key)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]


def scaled(unit: MergedAdapter, scaling: Any, asked: torch.dtype | None, dtype: torch.dtype) -> MergedAdapter:
    """A merge at another scaling: the same factors times a number, one for each layer under "auto:<c>" and "unit".

    Args:
        unit: the merge at scaling 1.0, in float32, without extras.
        scaling: lambda, "auto:<c>" or "unit".
        asked: the dtype that the caller asked for, for the record.
        dtype: the dtype to write.
    """
    record = unit.report.record
    name = str(dtype).removeprefix("torch.")
    scales = {module: _scale(layer, record["inputs"], scaling) for module, layer in record["layers"].items()}
    factors = {
        module: cast(module, balanced(LoraFactors(f.A, f.B * scales.get(module, 1.0))), dtype)  # added layers: no scale
        for module, f in unit.factors.items()
    }
    layers = {
        module: rescaled(layer, scales[module])
        | {"scale": layer["scale"] * scales[module], "norm": layer["norm"] * abs(scales[module])}
        for module, layer in record["layers"].items()
    }
    changed = {
        "options": {**record["options"], "scaling": scaling, "dtype": None if asked is None else name},
        "output": {**record["output"], "dtype": name},
        "layers": layers,
        "diagnostics": summary(layers, list(record["diagnostics"]["experts"])),
    }
    return replace(unit, factors=factors, report=Report({**record, **changed}))


def _scale(layer: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]], scaling: Any) -> float:
    """What a layer at scaling 1.0 is multiplied with."""
    norms = {
        n: layer["experts"][one["name"]]["norm"] for n, one in enumerate(inputs) if one["name"] in layer["experts"]
    }
    return scale_of(layer["norm"], norms, [one["weight"] for one in inputs], scaling)
