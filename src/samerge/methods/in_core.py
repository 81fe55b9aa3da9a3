"""Methods that commute with orthogonal maps: each is a function of the adapters' cores, run layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from samerge.linalg.core_space import core_space
from samerge.linalg.triplets import singular, zero
from samerge.methods.method import Begun, MergedLayer, Share
from samerge.methods.problem import Part, Problem, Site

#: From the cores of the adapters in a layer, their weights, the number of adapters in the whole merge and the options,
#: the merged core and the share of its energy that each adapter kept before it was combined.
Combine = Callable[[Sequence[Tensor], Sequence[float], int, Any], tuple[Tensor, Sequence[float]]]


def in_core(combine: Combine) -> Callable[[Problem, Any], Begun]:
    """The method that runs `combine` on the cores of every layer."""

    def begin(problem: Problem, options: Any) -> Begun:
        count = sum(weight != 0 for weight in problem.weights)

        def layer(site: Site, parts: Mapping[int, Part]) -> MergedLayer:
            if not any(part.rank for part in parts.values()):
                return MergedLayer(zero(site.shape), {n: Share(0) for n in parts})
            space = core_space([part.factors for part in parts.values()])
            merged, energies = combine(space.cores, [problem.weights[n] for n in parts], count, options)
            shares = {n: Share(parts[n].rank, energy=energy) for n, energy in zip(parts, energies, strict=True)}
            return MergedLayer(singular(space.lift(merged)), shares)

        return Begun(layer)

    return begin
