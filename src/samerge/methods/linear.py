"""`linear`: the exact weighted sum (task arithmetic); its rank is the sum of the ranks.

    tau* = sum_n w_n s_n B_n A_n = [w_1 s_1 B_1 ... w_N s_N B_N] [A_1; ...; A_N]

Concatenating the factors is the sum itself; nothing is averaged factor by factor, so there are no cross terms (Ilharco
et al. 2023). Cost: a copy of the factors.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from samerge.linalg.factors import concatenate
from samerge.linalg.triplets import Triplets, from_factors, zero
from samerge.methods.memory import check_memory, factor_bytes
from samerge.methods.method import Begun, MergedLayer, Method, Share
from samerge.methods.problem import Part, Problem, Site
from samerge.options.option import Options


def weighted_sum(parts: Mapping[int, Part], weights: tuple[float, ...], shape: tuple[int, int]) -> Triplets:
    """The exact weighted sum of the adapters' updates, component by component as trained."""
    if not parts:
        return zero(shape)
    owners = torch.cat([torch.full((part.rank,), n) for n, part in parts.items()])
    summed = concatenate([part.factors for part in parts.values()], [weights[n] for n in parts])
    return from_factors(summed, owners.to(summed.A.device))


def begin(problem: Problem, options: Options) -> Begun:
    """The weighted sum of every layer."""
    check_memory(problem, work=factor_bytes)

    def layer(site: Site, parts: Mapping[int, Part]) -> MergedLayer:
        update = weighted_sum(parts, problem.weights_at(site), site.shape)
        return MergedLayer(update, {n: Share(part.rank) for n, part in parts.items()})

    return Begun(layer)


METHOD = Method("linear", begin, exact=True)
