"""`dare` and `dare-ties`: drop at random and rescale (Yu et al. 2023), then add, or elect signs.

    v_i = w_i tau_i * m / density,  m ~ Bernoulli(density) for every element, density = 1 - p
    dare: M = sum_i v_i        dare-ties: M by the election of signs (`samerge.methods.sign_election`)

Seeded. density="adaptive" gives every layer a density of its own (`samerge.linalg.adaptive_density`). Streamed, then
truncated to `svd_rank`: that averages much of the noise away again, so the result is nearer to the sum than the dense
merge is. PEFT's `dare_linear_svd` and `dare_ties_svd` are the same with other random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from samerge.methods.chance import SeedParameters, uniform
from samerge.methods.density import densities
from samerge.methods.parameters import own
from samerge.methods.rows import Combine, Layer, column
from samerge.methods.sign_election import SignParameters, elect
from samerge.options.merge_options import MergeOptions


@dataclass(frozen=True)
class DareTiesParameters(SignParameters, SeedParameters):
    """Options of `dare-ties`: those of the election, and the seed."""

    def __post_init__(self) -> None:
        SignParameters.__post_init__(self)
        SeedParameters.__post_init__(self)


def prepare_dare(layers: Sequence[Layer], options: MergeOptions) -> Combine:
    """`dare` as `by_rows` runs it."""
    density, seed = densities(layers, options, 0.1), own(options, SeedParameters).seed

    def combine(layer: Layer, start: int, tiles: Tensor) -> tuple[Tensor, Tensor]:
        kept = drop(layer, start, tiles, density, seed)
        return kept, kept.sum(dim=0)

    return combine


def prepare_dare_ties(layers: Sequence[Layer], options: MergeOptions) -> Combine:
    """`dare-ties` as `by_rows` runs it."""
    density, chosen = densities(layers, options, 0.1), own(options, DareTiesParameters)

    def combine(layer: Layer, start: int, tiles: Tensor) -> tuple[Tensor, Tensor]:
        kept = drop(layer, start, tiles, density, chosen.seed)
        return kept, elect(kept, chosen)

    return combine


def drop(layer: Layer, start: int, tiles: Tensor, density: Callable[[Layer, int], float], seed: int) -> Tensor:
    """The experts' tiles with a share of their elements kept and rescaled."""
    share = column([density(layer, n) for n in layer.parts], tiles)
    return tiles * (uniform(layer, start, tiles, seed) < share) / share
