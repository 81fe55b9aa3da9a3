"""`localize-and-stitch`: each adapter's largest elements, averaged where they meet (dataless form; He et al. 2025).

arXiv 2408.13656. With v_i = w_i tau_i:

    m_i = 1 where |v_i| is among its top `density` over the whole flattened adapter, 0 elsewhere
    M   = sum_i m_i v_i / sum_i m_i,  0 where no adapter keeps the element

It is `ties` without the election of signs. The form with data learns m_i instead. Published without data: density 0.05
(language) or 0.1 (pictures). Values that equal the threshold stay together. Streamed, then truncated.
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
class LocalizeAndStitchOptions(Options):
    """Options of `localize-and-stitch`."""

    density: float = option(share(), 0.05, "Share of its elements that each adapter keeps.")


def prepare(layers: Sequence[Layer], options: LocalizeAndStitchOptions) -> Combine:
    """`localize-and-stitch` as `by_rows` runs it."""
    trim = Trim(layers, options.density, "adapter")

    def combine(layer: Layer, start: int, tiles: Tensor) -> tuple[Tensor, Tensor]:
        kept = trim(layer, tiles)
        return kept, kept.sum(dim=0) / (kept != 0).sum(dim=0).clamp_min(1)

    return combine


METHOD = Method("localize-and-stitch", by_rows(prepare), LocalizeAndStitchOptions, by_site=False)
