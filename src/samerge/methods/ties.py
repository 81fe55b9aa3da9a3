"""`ties`: trim by magnitude, elect a sign for every element, merge what agrees (TIES; Yadav et al. 2023).

    v_i = w_i tau_i where |tau_i| is among its top `density` over the whole flattened adapter (trim="adapter"), or over
    the layer (trim="layer"); 0 elsewhere.  M by the election of signs (`samerge.methods.sign_election`).

Thresholds are exact, found by histograms over tiles; values that equal a threshold stay together. Streamed, then
truncated.

PEFT's `ties_svd` trims by layer. It elects signs before the values are weighted, and a draw
goes to plus; with equal weights and no draws it is the same, up to the truncation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from samerge.methods.method import Method
from samerge.methods.rows import Combine, Layer, by_rows, column, magnitudes
from samerge.methods.sign_election import SignOptions, elect
from samerge.options.kinds import share, word
from samerge.options.option import option


@dataclass(frozen=True)
class TrimOptions(SignOptions):
    """How much stays of each adapter, and how signs are elected."""

    density: float = option(share(), 0.2, "Share of its elements that each adapter keeps.")


@dataclass(frozen=True)
class TiesOptions(TrimOptions):
    """Options of `ties`."""

    trim: str = option(
        word("adapter", "layer"), "adapter", "The largest elements of the whole flattened adapter, or of each layer."
    )


def prepare(layers: Sequence[Layer], options: TiesOptions) -> Combine:
    """`ties` as `by_rows` runs it."""
    return trimmed(layers, options, options.trim)


def trimmed(layers: Sequence[Layer], options: TrimOptions, over: str) -> Combine:
    """Trim over each "adapter" or each "layer", elect, merge."""
    trim = Trim(layers, options.density, over)

    def combine(layer: Layer, start: int, tiles: Tensor) -> tuple[Tensor, Tensor]:
        kept = trim(layer, tiles)
        return kept, elect(kept, options)

    return combine


class Trim:
    """Keeps the largest magnitudes of every adapter.

    Args:
        layers: all layers.
        density: share of its elements that each adapter keeps.
        over: "adapter" or "layer".
    """

    def __init__(self, layers: Sequence[Layer], density: float, over: str) -> None:
        self.thresholds = magnitudes(layers, lambda size: [max(1, round(density * size))], over)

    def __call__(self, layer: Layer, tiles: Tensor) -> Tensor:
        """The adapters' tiles, zero where they are trimmed."""
        limits = column([self.thresholds(layer, n)[0] for n in layer.parts], tiles)
        return tiles * (tiles.abs() >= limits)


METHOD = Method("ties", by_rows(prepare), TiesOptions, by_site=False)
