"""`breadcrumbs`: drop the largest and the smallest elements of every layer, add (Davari and Belilovsky 2024).

    v_i = w_i tau_i without the `top` share of largest magnitudes of the layer and without all but the next `density`
    M = sum_i v_i

Published: the top 1 % and the bottom 85 % dropped, so density 0.14; lambda 0.3. Thresholds are exact; values that equal
the upper one are dropped, those that equal the lower one stay. Streamed, then truncated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from samerge.errors import OptionError
from samerge.methods.method import Method
from samerge.methods.rows import Combine, Layer, by_rows, column, magnitudes
from samerge.options.kinds import real, share
from samerge.options.option import Options, option


@dataclass(frozen=True)
class BreadcrumbsOptions(Options):
    """Options of `breadcrumbs`."""

    density: float = option(share(), 0.14, "Share of its elements that each adapter keeps in each layer.")
    top: float = option(real(0, 1, below=True), 0.01, "Share of largest values of every tensor that is dropped.")

    def check(self) -> None:
        """Refuse shares that are more than 1 together."""
        if self.density + self.top > 1 + 1e-9:
            raise OptionError(
                f"density={self.density} with top={self.top}: together they are more than 1; nothing is left below"
            )


def prepare(layers: Sequence[Layer], options: BreadcrumbsOptions) -> Combine:
    """`breadcrumbs` as `by_rows` runs it."""
    density, top = options.density, options.top

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


METHOD = Method("breadcrumbs", by_rows(prepare), BreadcrumbsOptions, scaling=0.3, by_site=False)
