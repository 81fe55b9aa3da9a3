"""`dare-ties`: drop elements at random, rescale, elect signs (DARE with TIES; Yu et al. 2023).

    v_i as `dare` has it;  M by the election of signs (`samerge.methods.sign_election`)

PEFT's `dare_ties_svd` is the same with other random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from samerge.methods.dare import DareOptions, drop
from samerge.methods.method import Method
from samerge.methods.rows import Combine, Layer, by_rows
from samerge.methods.sign_election import SignOptions, elect


@dataclass(frozen=True)
class DareTiesOptions(SignOptions, DareOptions):
    """Options of `dare-ties`: those of the drop and those of the election."""


def prepare(layers: Sequence[Layer], options: DareTiesOptions) -> Combine:
    """`dare-ties` as `by_rows` runs it."""

    def combine(layer: Layer, start: int, tiles: Tensor) -> tuple[Tensor, Tensor]:
        kept = drop(layer, start, tiles, options.density, options.seed)
        return kept, elect(kept, options)

    return combine


METHOD = Method("dare-ties", by_rows(prepare), DareTiesOptions, by_site=False)
