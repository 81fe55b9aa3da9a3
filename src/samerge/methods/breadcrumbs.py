"""`breadcrumbs`: drop the largest and the smallest values of every tensor, and add (Davari and Belilovsky 2024).

    v_i = w_i tau_i without the `top` share of largest magnitudes of the layer and without all but the next `density`
    M = sum_i v_i

Published: the top 1 % and the bottom 85 % dropped, so density 0.14; lambda 0.3. Thresholds are exact; values that equal
the upper one are dropped, those that equal the lower one stay. Streamed, then truncated to `svd_rank`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from samerge.errors import OptionError
from samerge.methods.parameters import own
from samerge.methods.rows import Combine, Layer, column, magnitudes
from samerge.options.merge_options import MergeOptions
from samerge.options.values import number


@dataclass(frozen=True)
class BreadcrumbsParameters:
    """Options of `breadcrumbs`.

    Args:
        top: share of largest values of every tensor that is dropped, in [0, 1).
    """

    top: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= number("top", self.top) < 1:
            raise OptionError(f"method_options: top={self.top!r} must lie in [0, 1)")


def prepare_breadcrumbs(layers: Sequence[Layer], options: MergeOptions) -> Combine:
    """`breadcrumbs` as `by_rows` runs it."""
    density, top = options.mean_density or 0.14, own(options, BreadcrumbsParameters).top
    if density + top > 1 + 1e-9:
        raise OptionError(f"density={density} with top={top}: together they are more than 1; nothing is left below")

    def ranks(size: int) -> Sequence[int]:
        dropped = min(round(top * size), size - 1)
        return [max(1, dropped), min(size, dropped + max(1, round(density * size)))]

    limits = magnitudes(layers, ranks, over="layer")

    def combine(layer: Layer, start: int, tiles: Tensor) -> tuple[Tensor, Tensor]:
        bounds = [limits(layer, n) for n in layer.parts]
        size = tiles.abs()
        kept = tiles * (size >= column([low for _, low in bounds], tiles))
        if round(top * layer.size):
            kept = kept * (size < column([high for high, _ in bounds], tiles))
        return kept, kept.sum(dim=0)

    return combine
