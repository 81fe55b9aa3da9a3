"""`della`: drop at random, large values less often (Deep et al. 2024), then elect signs.

    p = (density - epsilon) + 2 epsilon (rank - 1) / (n - 1)
    v_i = w_i tau_i * m / p,  m ~ Bernoulli(p)

rank counts an element's magnitude among the n of its row (one output), the smallest first; so p runs from
density - epsilon to density + epsilon. M by the election of signs (`samerge.methods.sign_election`). Seeded.
Streamed, then truncated to `svd_rank`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samerge.errors import OptionError
from samerge.methods.chance import uniform
from samerge.methods.dare import DareTiesParameters
from samerge.methods.parameters import own
from samerge.methods.rows import Combine, Layer
from samerge.methods.sign_election import elect
from samerge.options.merge_options import MergeOptions
from samerge.options.values import number


@dataclass(frozen=True)
class DellaParameters(DareTiesParameters):
    """Options of `della`.

    Args:
        epsilon: half of the range of the probabilities, at least 0.
    """

    epsilon: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if number("epsilon", self.epsilon) < 0:
            raise OptionError(f"method_options: epsilon={self.epsilon!r} must be 0 or more")


def prepare_della(layers: Sequence[Layer], options: MergeOptions) -> Combine:
    """`della` as `by_rows` runs it."""
    density, chosen = options.mean_density or 0.3, own(options, DellaParameters)
    if not 0 < density - chosen.epsilon <= density + chosen.epsilon <= 1:
        raise OptionError(
            f"density={density} with epsilon={chosen.epsilon}: the probabilities run from density - epsilon to "
            f"density + epsilon and must lie in (0, 1]"
        )

    def combine(layer: Layer, start: int, tiles: Tensor) -> tuple[Tensor, Tensor]:
        keep = probabilities(tiles, density, chosen.epsilon)
        kept = tiles * (uniform(layer, start, tiles, chosen.seed) < keep) / keep
        return kept, elect(kept, chosen)

    return combine


def probabilities(tiles: Tensor, density: float, epsilon: float) -> Tensor:
    """How likely each element is kept, by the rank of its magnitude in its row; of equal ones the later ranks higher.

    Example:
        >>> probabilities(torch.tensor([[3.0, -1.0, 2.0]]), 0.5, 0.25)
        tensor([[0.7500, 0.2500, 0.5000]])
    """
    n = tiles.shape[-1]
    if n == 1:
        return torch.full_like(tiles, density)
    order = tiles.abs().argsort(dim=-1, stable=True)
    steps = torch.arange(n, dtype=tiles.dtype, device=tiles.device) * (2 * epsilon / (n - 1)) + (density - epsilon)
    return torch.empty_like(tiles).scatter_(-1, order, steps.expand_as(tiles))
