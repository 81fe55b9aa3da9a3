"""What a selection ranks rank-1 components by.

    saliency      |w gamma eta|         structural sensitivity times agreement: SA-Merging
    sensitivity   |w gamma|             the sensitivity alone
    agreement     |w eta|               the agreement alone
    norm          |w| ||b|| ||a||       the component's own size
    random        uniform in [0, 1)     "random:<seed>" for another seed than 0

The last four are for comparison. w is the expert's weight; it matters only where components of several experts are
ranked together. Where there is no gamma (outside the flow graph, or where R = 0), `saliency` is |w eta| and
`sensitivity` is `norm`. With `agreement="signed"`, `saliency` is |gamma| w eta and `agreement` is w eta.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from samerge.linalg.factors import LoraFactors, component_norms
from samerge.methods.chance import generator
from samerge.saliency.scores import score

#: The criteria that need gamma, so the base's weights.
READ_BASE = frozenset({"saliency", "sensitivity"})
#: The criteria that look at eta, so have an `agreement`.
AGREE = frozenset({"saliency", "agreement"})

_LARGEST_LOG = 700.0  # exp of it is still finite


def kind_of(selection: str) -> str:
    """The criterion without its seed.

    Example:
        >>> kind_of("random:7"), kind_of("norm")
        ('random', 'norm')
    """
    return selection.partition(":")[0]


def seed_of(selection: str) -> int:
    """The seed of a random selection, 0 unless it says another."""
    found = re.fullmatch(r"random:(\d+)", selection)
    return int(found[1]) if found else 0


def drawn(selection: str, name: str, module: str, count: int) -> Tensor:
    """One random score for each of an expert's components at a site, (count,) in float64.

    It depends on the seed and the two names, not on the order of the experts.
    """
    random = generator(seed_of(selection), name, module, "components")
    return torch.rand(count, generator=random, dtype=torch.float64)


def relative(values: Tensor, log: float, log_connectivity: float) -> Tensor:
    """gamma relative to R: values * exp(log) / R, kept finite."""
    return values * math.exp(min(log - log_connectivity, _LARGEST_LOG))


def scores(
    criterion: str, factors: LoraFactors, gamma: Tensor | None, eta: Tensor | None, weight: float, signed: bool
) -> Tensor:
    """The score of every component of one expert at a site, by any criterion but `random`.

    Args:
        criterion: its name.
        factors: the components, (out, in), rank r.
        gamma: (r,) relative sensitivity; None where there is none.
        eta: (r,) agreement with the merge; None where the criterion does not ask for it.
        weight: the expert's weight.
        signed: whether components that disagree with the merge rank last.

    Example:
        >>> f = LoraFactors(torch.eye(2), torch.diag(torch.tensor([2.0, 3.0])))
        >>> scores("norm", f, None, None, -1.0, False)
        tensor([2., 3.], dtype=torch.float64)
    """
    if criterion == "sensitivity" and gamma is not None:
        return score(gamma, torch.ones_like(gamma), weight, signed=False)
    if eta is not None and criterion in AGREE:
        return score(torch.ones_like(eta) if gamma is None else gamma, eta, weight, signed)
    return component_norms(factors) * abs(weight)
