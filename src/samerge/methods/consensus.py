"""`consensus`: the sum, of the elements that several adapters use (Consensus task arithmetic; Wang et al. 2024).

arXiv 2405.07813, TALL masks. With v_i = w_i tau_i and their sum V, element by element:

    adapter i uses the element where |v_i| > threshold |V - v_i|
    M = V where at least `used_by` adapters use it, 0 elsewhere

so that neither what nobody uses nor what one alone uses is in M. In a layer that fewer adapters change, an element must
be used by all of them. The authors choose the threshold for each adapter from 0.2, 0.3, ... 0.6, and lambda, by
validation data. Here there are none: one threshold for all, by default the middle one, and lambda 1. Streamed, then
truncated. Cost: one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from samerge.linalg.factors import norm
from samerge.methods.method import Method
from samerge.methods.rows import Combine, Layer, by_rows
from samerge.options.kinds import real, whole
from samerge.options.option import Options, option


@dataclass(frozen=True)
class ConsensusOptions(Options):
    """Options of `consensus`."""

    threshold: float = option(
        real(0), 0.4, "An adapter uses an element where it exceeds this times the sum of the others."
    )
    used_by: int = option(whole(), 2, "How many adapters must use an element of the sum for it to stay.")


def prepare(layers: Sequence[Layer], options: ConsensusOptions) -> Combine:
    """`consensus` as `by_rows` runs it."""

    # An adapter whose update is zero there does not change a layer, and cannot use an element of it.
    changing = {one.module: sum(bool(norm(part)) for part in one.parts.values()) for one in layers}

    def combine(layer: Layer, start: int, tiles: Tensor) -> tuple[Tensor, Tensor]:
        total = tiles.sum(dim=0)
        users = (tiles.abs() > options.threshold * (total - tiles).abs()).sum(dim=0)
        stays = users >= min(options.used_by, changing[layer.module])
        return tiles * stays, total * stays

    return combine


METHOD = Method("consensus", by_rows(prepare), ConsensusOptions, by_site=False)
