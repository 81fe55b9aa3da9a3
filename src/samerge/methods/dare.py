"""`dare`: drop elements at random, rescale, add (DARE; Yu et al. 2023).

    v_i = w_i tau_i * m / density,  m ~ Bernoulli(density) for every element, density = 1 - p;   M = sum_i v_i

Seeded. density="adaptive" gives every layer a density of its own (`samerge.linalg.adaptive_density`). Streamed, then
truncated: that averages much of the noise away again, so the result is nearer to the sum than the dense merge is.
PEFT's `dare_linear_svd` is the same with other random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from samerge.methods.chance import SeedOptions, uniform
from samerge.methods.density import densities
from samerge.methods.method import Method
from samerge.methods.rows import Combine, Layer, by_rows, column
from samerge.options.kinds import density
from samerge.options.option import option


@dataclass(frozen=True)
class DareOptions(SeedOptions):
    """Options of `dare`."""

    density: float | str = option(density(), 0.1, "Share of its elements that each adapter keeps.")


def prepare(layers: Sequence[Layer], options: DareOptions) -> Combine:
    """`dare` as `by_rows` runs it."""
    share = densities(layers, options.density)

    def combine(layer: Layer, start: int, tiles: Tensor) -> tuple[Tensor, Tensor]:
        kept = drop(layer, start, tiles, share, options.seed)
        return kept, kept.sum(dim=0)

    return combine


def drop(layer: Layer, start: int, tiles: Tensor, density: Callable[[Layer, int], float], seed: int) -> Tensor:
    """The adapters' tiles with a share of their elements kept and rescaled."""
    share = column([density(layer, n) for n in layer.parts], tiles)
    return tiles * (uniform(layer, start, tiles, seed) < share) / share


METHOD = Method("dare", by_rows(prepare), DareOptions, by_site=False)
