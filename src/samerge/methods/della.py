"""`della`: drop elements at random, small ones more often, elect signs (DELLA; Deep et al. 2024).

    p = (density - epsilon) + 2 epsilon (rank - 1) / (n - 1)
    v_i = w_i tau_i * m / p,  m ~ Bernoulli(p)

rank counts an element's magnitude among the n of its row (one output), the smallest first; so p runs from
density - epsilon to density + epsilon. M by the election of signs (`samerge.methods.sign_election`). Seeded.
Streamed, then truncated. mergekit's `della_linear` adds without an election.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samerge.errors import OptionError
from samerge.methods.chance import SeedOptions, uniform
from samerge.methods.method import Method
from samerge.methods.rows import Combine, Layer, by_rows
from samerge.methods.sign_election import SignOptions, elect
from samerge.options.kinds import flag, real, share
from samerge.options.option import option


@dataclass(frozen=True)
class DellaOptions(SignOptions, SeedOptions):
    """Options of `della`."""

    density: float = option(share(), 0.3, "Share of its elements that each adapter keeps.")
    epsilon: float = option(real(0), 0.05, "Half of the range of the probabilities.")
    elect: bool = option(flag(), True, "Whether there is a vote on signs; what is left is added otherwise.")

    def check(self) -> None:
        """Refuse probabilities outside (0, 1]."""
        if not 0 < self.density - self.epsilon <= self.density + self.epsilon <= 1:
            raise OptionError(
                f"density={self.density} with epsilon={self.epsilon}: the probabilities run from density - epsilon to "
                f"density + epsilon and must lie in (0, 1]"
            )


def prepare(layers: Sequence[Layer], options: DellaOptions) -> Combine:
    """`della` as `by_rows` runs it."""

    def combine(layer: Layer, start: int, tiles: Tensor) -> tuple[Tensor, Tensor]:
        keep = probabilities(tiles, options.density, options.epsilon)
        kept = tiles * (uniform(layer, start, tiles, options.seed) < keep) / keep
        return kept, elect(kept, options) if options.elect else kept.sum(dim=0)

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


METHOD = Method("della", by_rows(prepare), DellaOptions, by_site=False)
