"""What the tests of element-wise methods share: layers in float64, and naive dense oracles' ingredients."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from samerge.linalg.factors import LoraFactors
from samerge.methods.registry import find
from samerge.methods.rows import Layer, merged_with_shares
from samerge.options.option import filled

WEIGHTS = {0: 1.0, 1: -0.5, 2: 2.0}
NAMES = {0: "zero", 1: "one", 2: "two"}


def layers(seed: int = 0, weights: Mapping[int, float] = WEIGHTS) -> list[Layer]:
    """Three layers; the second expert lacks the last one, the third the first one."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i, (shape, experts) in enumerate([((9, 7), (0, 1)), ((6, 11), (0, 1, 2)), ((8, 5), (0, 2))]):
        parts = {
            n: LoraFactors(
                torch.randn(2 + n, shape[1], generator=generator, dtype=torch.float64),
                torch.randn(shape[0], 2 + n, generator=generator, dtype=torch.float64) * weights[n] * (i + 1),
            )
            for n in experts
        }
        made.append(Layer(f"layers.{i}", shape, {n: NAMES[n] for n in experts}, parts))
    return made


def dense(made: list[Layer]) -> list[dict[int, Tensor]]:
    """The weighted updates, whole."""
    return [{n: part.delta() for n, part in layer.parts.items()} for layer in made]


def flat(updates: list[dict[int, Tensor]], n: int) -> Tensor:
    return torch.cat([update[n].flatten() for update in updates if n in update])


def top(values: Tensor, count: int) -> Tensor:
    """A mask of the largest, by a sort."""
    return values >= values.flatten().sort(descending=True).values[count - 1]


def election(values: list[Tensor], method: str = "total", aggregate: str = "mean") -> Tensor:
    """TIES, element by element in plain Python."""
    merged = torch.zeros_like(values[0])
    for place in range(merged.numel()):
        own = [float(v.flatten()[place]) for v in values]
        votes = sum(own) if method == "total" else sum((x > 0) - (x < 0) for x in own)
        agree = [x for x in own if x * votes > 0]
        if agree:
            merged.view(-1)[place] = sum(agree) / (len(agree) if aggregate == "mean" else 1)
    return merged


def run(method: str, made: list[Layer], density: float | str | None = None, **own: Any) -> list[Tensor]:
    """Every layer's merge before it is truncated, by the `prepare` of the method's file."""
    prepare = import_module(f"samerge.methods.{method.replace('-', '_')}").prepare
    combine = prepare(made, filled(find(method).options, {"density": density, **own}))
    return [merged_with_shares(layer, combine, [1.0] * 3)[0] for layer in made]
