"""Scores, schedule and selection of rank-1 components. Pure functions on tensors and numbers."""

from __future__ import annotations

import math

from torch import Tensor

from samerge.linalg.largest import keep_largest


def score(gamma: Tensor, eta: Tensor) -> Tensor:
    """The saliency of an adapter's components, |gamma eta|.

    Args:
        gamma: (r,) structural sensitivity.
        eta: (r,) agreement with the merge.
    """
    return (gamma * eta).abs()


def kept_count(available: int, fraction: float, step: int, steps: int) -> int:
    """How many of `available` components survive a step: max(1, round(available * fraction^(step / steps))).

    Python's rounding (half to even). 0 where nothing is available.

    Example:
        >>> [kept_count(16, 0.125, t, 4) for t in range(1, 5)]
        [10, 6, 3, 2]
    """
    return min(available, max(1, round(available * math.pow(fraction, step / steps))))


def top(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest scores, ascending; among equal scores the lower index stays.

    Example:
        >>> import torch
        >>> top(torch.tensor([1.0, 3.0, 3.0, 3.0]), 2)
        tensor([1, 2])
    """
    return keep_largest(scores, min(count, len(scores))).nonzero().flatten()
