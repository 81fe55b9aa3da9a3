"""`dare`: drop elements at random, rescale, add (DARE; Yu et al. 2023).

    v_i = w_i tau_i * m / density,  m ~ Bernoulli(density) for every element, density = 1 - p;   M = sum_i v_i

Seeded. Streamed, then truncated: that averages much of the noise away again, so the result is nearer to the sum than
the dense merge is.
PEFT's `dare_linear_svd` is the same with other random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from samerge.methods.chance import SeedOptions, uniform
from samerge.methods.method import Method
from samerge.methods.rows import Combine, Layer, by_rows
from samerge.options.kinds import share
from samerge.options.option import option


@dataclass(frozen=True)
class DareOptions(SeedOptions):
    """Options of `dare`."""

    density: float = option(share(), 0.1, "Share of its elements that each adapter keeps.")


def prepare(layers: Sequence[Layer], options: DareOptions) -> Combine:
    """`dare` as `by_rows` runs it."""

    def combine(layer: Layer, start: int, tiles: Tensor) -> tuple[Tensor, Tensor]:
        kept = drop(layer, start, tiles, options.density, options.seed)
        return kept, kept.sum(dim=0)

    return combine


def drop(layer: Layer, start: int, tiles: Tensor, density: float, seed: int) -> Tensor:
    """The adapters' tiles with a share of their elements kept and rescaled."""
    return tiles * (uniform(layer, start, tiles, seed) < density) / density


METHOD = Method("dare", by_rows(prepare), DareOptions, by_site=False)
