"""`aswudi`: wudi within its leading directions, as many as the spectrum counts.

K = (sum_k sqrt(l_k))^2 / sum_k l_k of the eigenvectors of the normal equations of `wudi` are kept, rounded.
"""

from __future__ import annotations

from collections.abc import Mapping

from samerge.linalg.triplets import Triplets
from samerge.methods.by_triplets import by_triplets
from samerge.methods.method import Method
from samerge.methods.wudi import NormalEquations
from samerge.options.option import Options


def aswudi(
    parts: Mapping[int, Triplets], weights: Mapping[int, float], count: int, options: Options
) -> tuple[Triplets, Mapping[int, float]]:
    """The minimiser within the leading eigenvectors of C."""
    equations = NormalEquations(parts, weights)
    alive = equations.alive()
    values = equations.eigenvalues[alive]
    return equations.solved(alive[: max(1, round(float(values.sqrt().sum() ** 2 / values.sum())))]), {}


METHOD = Method("aswudi", by_triplets(aswudi), exact=True)
