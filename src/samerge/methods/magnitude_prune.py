"""`magnitude-prune`: trim every layer by magnitude and add, without a vote on signs.

    v_i = w_i tau_i where |tau_i| is among the top `density` of the layer, 0 elsewhere;  M = sum_i v_i

PEFT's `magnitude_prune_svd`. Streamed, then truncated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from samerge.methods.method import Method
from samerge.methods.rows import Combine, Layer, by_rows
from samerge.methods.ties import Trim
from samerge.options.kinds import share
from samerge.options.option import Options, option


@dataclass(frozen=True)
class MagnitudePruneOptions(Options):
    """Options of `magnitude-prune`."""

    density: float = option(share(), 0.2, "Share of its elements that each adapter keeps in each layer.")


def prepare(layers: Sequence[Layer], options: MagnitudePruneOptions) -> Combine:
    """`magnitude-prune` as `by_rows` runs it."""
    trim = Trim(layers, options.density, "layer")

    def combine(layer: Layer, start: int, tiles: Tensor) -> tuple[Tensor, Tensor]:
        kept = trim(layer, tiles)
        return kept, kept.sum(dim=0)

    return combine


METHOD = Method("magnitude-prune", by_rows(prepare), MagnitudePruneOptions, by_site=False)
