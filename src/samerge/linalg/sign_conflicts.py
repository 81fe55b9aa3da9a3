"""Where the signs of updates disagree, element by element.

Signs belong to single elements, which no factorisation shows, so they are counted on some rows of every layer: as many
as hold `SAMPLE` elements, evenly spaced, the same in each run. Elements that are zero have no sign and are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samerge.linalg.factors import LoraFactors

#: Elements of one update that are looked at in a layer; all of them where there are fewer. Below 2^24, so that counts
#: are exact in float32.
SAMPLE = 1 << 14

#: Elements below this share of an update's largest are rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Conflict:
    """Opposite signs over all pairs of several updates.

    Args:
        opposed: at how many elements the signs of two are opposite, summed over the pairs.
        compared: at how many elements both have a sign, likewise.
    """

    opposed: int
    compared: int

    @property
    def share(self) -> float | None:
        """Share of opposite signs; 0.5 is chance, None where none was compared, as for fewer than two updates."""
        return self.opposed / self.compared if self.compared else None


@dataclass(frozen=True)
class SignCounts:
    """Counts for every two of several updates.

    Args:
        opposed: at how many elements the signs are opposite, (N, N), int64.
        compared: at how many elements both have a sign, (N, N), int64.
    """

    opposed: Tensor
    compared: Tensor

    def share(self, i: int, j: int) -> float | None:
        """Share of the elements at which i and j have opposite signs; 0.5 is chance, None where none was compared."""
        return Conflict(int(self.opposed[i, j]), int(self.compared[i, j])).share

    def among(self, count: int) -> Conflict:
        """The same over all pairs of the first `count` updates."""
        above = torch.ones(count, count, dtype=torch.bool, device=self.opposed.device).triu(1)
        return Conflict(*(int(one[:count, :count][above].sum()) for one in (self.opposed, self.compared)))


def sample_rows(shape: tuple[int, int], sample: int = SAMPLE) -> Tensor:
    """The rows that are looked at: evenly spaced, as many as hold `sample` elements, at least one.

    Example:
        >>> sample_rows((8, 4), sample=16)
        tensor([1, 3, 5, 7])
    """
    count = min(shape[0], max(1, sample // max(1, shape[1])))
    return (2 * torch.arange(count) + 1) * shape[0] // (2 * count)


def sign_counts(updates: Sequence[LoraFactors], rows: Tensor) -> SignCounts:
    """Count opposite signs of every two updates on some rows.

    With signs s_i in {-1, 0, 1}, s_i . s_j is the number of like signs less that of opposite ones, and |s_i| . |s_j|
    the number of both.

    Args:
        updates: all of one shape.
        rows: their numbers, (m,).

    Example:
        >>> one, other = torch.tensor([[1.0, 1.0, 0.0, 2.0]]), torch.tensor([[1.0, -1.0, 2.0, 1.0]])
        >>> found = sign_counts([LoraFactors(A, torch.ones(1, 1)) for A in (one, other)], torch.tensor([0]))
        >>> found.opposed.tolist(), found.compared.tolist()
        ([[0, 1], [1, 0]], [[3, 3], [3, 4]])
    """
    return _counted([values_at(update, rows) for update in updates])


def conflict_among(values: Sequence[Tensor]) -> Conflict:
    """Count opposite signs over all pairs of several updates, from their values on some rows.

    Args:
        values: of each update at the same elements, in the same order; of any shape and scale.

    Example:
        >>> conflict_among([torch.tensor([1.0, 1.0, 0.0]), torch.tensor([3.0, -0.5, 2.0])])
        Conflict(opposed=1, compared=2)
    """
    return _counted(values).among(len(values)) if len(values) > 1 else Conflict(0, 0)


def values_at(update: LoraFactors, rows: Tensor) -> Tensor:
    """Some rows of an update, as far as signs go: without the size of its scale, (m, d_in)."""
    found = update.B[rows.to(update.B.device)] @ update.A
    return found if update.scale >= 0 else -found


def _signs(values: Tensor) -> Tensor:
    """-1, 0 or 1 for each row's elements; what is zero but for the rounding of a decomposition has none."""
    if not values.numel():
        return values.float()
    sizes = values.abs()
    # in float32, whose dot products are fast, and exact for whole numbers
    return values.sign().mul_(sizes > _ROUNDING * sizes.amax(dim=1, keepdim=True)).float()


def _counted(values: Sequence[Tensor]) -> SignCounts:
    signs = _signs(torch.stack([own.flatten() for own in values]))  # (N, m d_in)
    exist = signs.abs()
    compared = exist @ exist.T
    return SignCounts(((compared - signs @ signs.T) / 2).long(), compared.long())
