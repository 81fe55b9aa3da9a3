"""`even`: the default's chain with the size of a component in place of its saliency; reads no base.

The adapters are brought to one norm in each layer, their singular vectors decorrelated, the r largest components of all
adapters together kept, all with one strength, and each times its adapter's weight (`samerge.methods.chain`). `saliency`
ranks them by what they do for the model and for the merge; here the rank of a component is |w_k| sigma_k, w_k its
adapter's weight but for twins. Of those that are near-equal, as the components of merged adapters are, the
ones that agree more with the merge, by |w_k eta_k|, come first.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from samerge.linalg.agreement import agreement
from samerge.linalg.canonical import blocks
from samerge.linalg.independent import independent
from samerge.methods.chain import ChainOptions, Stack, chain_layer, count_of
from samerge.methods.memory import check_memory
from samerge.methods.method import Begun, Method
from samerge.methods.problem import Problem, Site


def begin(problem: Problem, options: ChainOptions) -> Begun:
    """The chain, ranked by size."""
    check_memory(problem)

    def ranked(site: Site, stack: Stack) -> Tensor:
        return independent(stack.triplets, by_size(stack), count_of(options, problem, len(stack.sigma)))

    return Begun(chain_layer(problem, options, ranked, settle=True))


def by_size(stack: Stack) -> Tensor:
    """The numbers of all components, the largest |w_k| sigma_k first; of near-equal ones the largest |w_k eta_k|."""
    weights = stack.heard
    sizes, order = (weights.abs() * stack.sigma).sort(descending=True, stable=True)
    tied = blocks(replace(stack.triplets, S=sizes, owners=None))
    if tied:
        wanted = [order[block] for block in tied]
        eta = agreement(stack.triplets, stack.weights, torch.cat(wanted), stack.products)
        for block, own, agreed in zip(tied, wanted, torch.split(eta, [len(own) for own in wanted]), strict=True):
            order[block] = own[(weights[own] * agreed).abs().argsort(descending=True, stable=True)]
    return order


METHOD = Method("even", begin, ChainOptions, balance="norm", exact=True)
