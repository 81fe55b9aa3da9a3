"""`aswudi`: wudi within its leading directions, as many as the spectrum counts.

K = (sum_k sqrt(l_k))^2 / sum_k l_k of the eigenvectors of the normal equations of `wudi` are kept, rounded.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from samerge.methods.in_core import in_core
from samerge.methods.method import Method
from samerge.methods.wudi import CutoffOptions, aswudi


def combine(
    cores: Sequence[Tensor], weights: Sequence[float], experts: int, options: CutoffOptions
) -> tuple[Tensor, Sequence[float]]:
    """`aswudi` as `in_core` runs it."""
    return aswudi(cores, weights, options.cutoff), [1.0] * len(cores)


METHOD = Method("aswudi", in_core(combine), CutoffOptions, exact=True)
