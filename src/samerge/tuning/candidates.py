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
from samerge.api import merge
from samerge.factors import LoraFactors, balanced
from samerge.inputs import AdapterLike, dtype_of, open_adapters, open_base
from samerge.merged import MergedAdapter
from samerge.report import Report

#: How many merges are kept for trials that differ from them in nothing but the scaling.
_KEPT = 4


class Candidates:
    """Merges of one set of adapters.

    A numeric scaling multiplies the merged update after everything else, so that trials which differ in it alone are
    one merge, at scaling 1 and in float32, times a number. Adapters that train biases are merged anew every time: a
    base's bias is not in proportion.

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
        """The merge with some options, from a kept one where that is the same to the bit.

        Args:
            options: keyword arguments of `merge`.
        """
        scaling = options.get("scaling")
        if not isinstance(scaling, Real):
            return self._remember(options)
        unit = self._remember({**options, "scaling": 1.0, "dtype": torch.float32})
        if unit.extras:
            return self._remember(options)
        dtype = dtype_of(options.get("dtype"))
        return scaled(unit, float(scaling), dtype, dtype or widest(adapter.dtype for adapter in self.adapters))

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


def scaled(unit: MergedAdapter, scaling: float, asked: torch.dtype | None, dtype: torch.dtype) -> MergedAdapter:
    """A merge at another scaling: the same factors times a number.

    Args:
        unit: the merge at scaling 1.0, in float32, without extras.
        scaling: lambda.
        asked: the dtype that the caller asked for, for the record.
        dtype: the dtype to write.
    """
    record = unit.report.record
    name = str(dtype).removeprefix("torch.")
    factors = {module: balanced(LoraFactors(f.A, f.B * scaling)).to(dtype=dtype) for module, f in unit.factors.items()}
    changed = {
        "options": {**record["options"], "scaling": scaling, "dtype": None if asked is None else name},
        "output": {**record["output"], "dtype": name},
        "layers": {
            module: {**layer, "scale": layer["scale"] * scaling, "norm": layer["norm"] * abs(scaling)}
            for module, layer in record["layers"].items()
        },
    }
    return replace(unit, factors=factors, report=Report({**record, **changed}))
