"""Methods that are functions of the adapters' singular triplets, layer by layer.

Such a method commutes with orthogonal maps on either side, M(P tau_1 Q, ...) = P M(tau_1, ...) Q, so that it needs no
more than the triplets and their Gram matrices, never a dense update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from samerge.linalg.triplets import Triplets, zero
from samerge.methods.memory import check_memory
from samerge.methods.method import Begun, MergedLayer, Share
from samerge.methods.problem import Part, Problem, Site, taken_apart

#: From the adapters' triplets by number, at least one of them not zero, their weights, the number of adapters in the
#: whole merge and the options: the merged update, and for adapters that were truncated before they were combined the
#: share of energy that they kept.
Combine = Callable[[Mapping[int, Triplets], Mapping[int, float], int, Any], tuple[Triplets, Mapping[int, float]]]


def by_triplets(combine: Combine) -> Callable[[Problem, Any], Begun]:
    """The method that runs `combine` on every layer; zero updates take no part in it."""

    def begin(problem: Problem, options: Any) -> Begun:
        check_memory(problem)
        count = sum(weight != 0 for weight in problem.weights)

        def layer(site: Site, parts: Mapping[int, Part]) -> MergedLayer:
            present = {n: own for n, own in taken_apart(parts).items() if own.rank}
            update: Triplets = zero(site.shape)
            energies: Mapping[int, float] = {}
            if present:
                own = problem.weights_at(site)
                weights = {n: own[n] for n in present}
                update, energies = combine(present, weights, count, options)
            return MergedLayer(update, {n: Share(p.rank, energy=energies.get(n, 1.0)) for n, p in parts.items()})

        return Begun(layer)

    return begin
