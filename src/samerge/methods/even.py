"""`even`: the default's chain with the size of a component in place of its saliency; reads no base.

The adapters are brought to one norm in each layer, their singular vectors decorrelated, the r largest components of all
adapters together kept, all with one strength, and each times its adapter's weight (`samerge.methods.chain`). `saliency`
ranks them by what they do for the model and for the merge; here the rank of a component is |w_n| sigma_k.
"""

from __future__ import annotations

from torch import Tensor

from samerge.methods.chain import ChainOptions, Stack, chain_layer, count_of
from samerge.methods.method import Begun, Method
from samerge.methods.problem import Problem, Site


def begin(problem: Problem, options: ChainOptions) -> Begun:
    """The chain, ranked by size."""

    def ranked(site: Site, stack: Stack) -> Tensor:
        order = (stack.weights.abs() * stack.sigma).argsort(descending=True, stable=True)
        return order[: count_of(options, problem, len(order))]

    return Begun(chain_layer(problem, options, ranked))


METHOD = Method("even", begin, ChainOptions, balance="norm")
