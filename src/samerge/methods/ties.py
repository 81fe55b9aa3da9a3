"""`ties` and `magnitude-prune`: trim by magnitude, elect a sign, merge what agrees (Yadav et al. 2023).

    v_i = w_i tau_i where |tau_i| is among its top `density` over the whole flattened adapter (trim="adapter"), or over
    the layer (trim="layer"); 0 elsewhere.  M by the election of signs (`samerge.methods.sign_election`).

`magnitude-prune` trims by layer and adds: M = sum_i v_i. Thresholds are exact, found by histograms over tiles; values
that equal a threshold stay together. density="adaptive" trims every layer to a density of its own
(`samerge.linalg.adaptive_density`). Streamed, then truncated to `svd_rank`.

PEFT's `ties_svd` and `magnitude_prune_svd` trim by layer. It elects signs before the values are weighted, and a draw
goes to plus; with equal weights and no draws it is the same, up to the truncation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from samerge.methods.density import densities
from samerge.methods.parameters import own
from samerge.methods.rows import Combine, Layer, column, magnitudes
from samerge.methods.sign_election import SignParameters, elect
from samerge.options.merge_options import MergeOptions
from samerge.options.values import choice


@dataclass(frozen=True)
class TiesParameters(SignParameters):
    """Options of `ties`.

    Args:
        trim: "adapter", the largest values of the whole flattened adapter; or "layer", of each layer.
    """

    trim: str = "adapter"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("trim", self.trim, ("adapter", "layer"))


def prepare_ties(layers: Sequence[Layer], options: MergeOptions) -> Combine:
    """`ties` as `by_rows` runs it."""
    chosen = own(options, TiesParameters)
    trim = Trim(layers, options, chosen.trim)

    def combine(layer: Layer, start: int, tiles: Tensor) -> tuple[Tensor, Tensor]:
        kept = trim(layer, tiles)
        return kept, elect(kept, chosen)

    return combine


def prepare_magnitude_prune(layers: Sequence[Layer], options: MergeOptions) -> Combine:
    """`magnitude-prune` as `by_rows` runs it."""
    trim = Trim(layers, options, "layer")

    def combine(layer: Layer, start: int, tiles: Tensor) -> tuple[Tensor, Tensor]:
        kept = trim(layer, tiles)
        return kept, kept.sum(dim=0)

    return combine


class Trim:
    """Keeps the largest magnitudes of every expert.

    Args:
        layers: all layers.
        options: their density; an adaptive one is by layer.
        over: "adapter" or "layer".
    """

    def __init__(self, layers: Sequence[Layer], options: MergeOptions, over: str) -> None:
        mean = options.mean_density or 0.2
        if isinstance(options.density, str):
            own_density = densities(layers, options, mean)
            self.thresholds = magnitudes(
                layers,
                lambda size: [size],
                "layer",
                lambda layer, n: [max(1, round(own_density(layer, n) * layer.size))],
            )
        else:
            self.thresholds = magnitudes(layers, lambda size: [max(1, round(mean * size))], over)

    def __call__(self, layer: Layer, tiles: Tensor) -> Tensor:
        """The experts' tiles, zero where they are trimmed."""
        limits = column([self.thresholds(layer, n)[0] for n in layer.parts], tiles)
        return tiles * (tiles.abs() >= limits)
