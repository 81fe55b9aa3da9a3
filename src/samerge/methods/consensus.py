"""`consensus`: the sum, of the elements that several adapters use (Consensus task arithmetic; Wang et al. 2024).

arXiv 2405.07813, TALL masks. With v_i = w_i tau_i and their sum V, element by element:

    adapter i uses the element where |v_i| > threshold |V - v_i|
    M = V where at least two adapters use it, 0 elsewhere

so that neither what nobody uses nor what one alone uses is in M. In a layer that one adapter
alone changes, all that it uses stays. The authors choose the threshold for each adapter from 0.2, 0.3, ... 0.6, and
lambda, by validation data. Here there are none: one threshold for all, the middle one, and lambda 1. Streamed, then
truncated. Cost: one pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from samerge.linalg.factors import norm
from samerge.methods.method import Method
from samerge.methods.rows import Combine, Layer, by_rows
from samerge.options.option import Options

#: An adapter uses an element where it exceeds this times the sum of the others.
_THRESHOLD = 0.4

#: How many adapters must use an element of the sum for it to stay.
_USED_BY = 2


def prepare(layers: Sequence[Layer], options: Options) -> Combine:
    """`consensus` as `by_rows` runs it."""

    # An adapter whose update is zero there does not change a layer, and cannot use an element of it.
    changing = {one.module: sum(bool(norm(part)) for part in one.parts.values()) for one in layers}

    def combine(layer: Layer, start: int, tiles: Tensor) -> tuple[Tensor, Tensor]:
        total = tiles.sum(dim=0)
        users = (tiles.abs() > _THRESHOLD * (total - tiles).abs()).sum(dim=0)
        stays = users >= min(_USED_BY, changing[layer.module])
        return tiles * stays, total * stays

    return combine


METHOD = Method("consensus", by_rows(prepare), by_site=False)
