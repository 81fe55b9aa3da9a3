"""A budget of rank shared unevenly between layers: what truncating every layer to one rank is compared with.

Layers are truncated to ranks k_l with as many parameters together as uniform rank r has, and then made flat,

    Σ_l k_l c_l ≤ r Σ_l c_l,    c_l = d_in + d_out,    k_l ≥ 1

Components are given out one at a time, over all layers the one of highest priority first. With σ_i the singular values
of layer l, i = 0, 1, ..., its next component has the priority

    energy       σ_i² / c_l               the most energy for the parameters
    relative     σ_i² / Σ_j σ_j²          the share of the layer's energy, whatever it costs
    effective    e_l / (i + 1)            k_l in proportion to the effective rank e_l = (Σ_j σ_j²)² / Σ_j σ_j⁴

The rank of the file is the largest of all k_l, as every layer is padded to one rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from samerge.linalg.spectrum import flatten
from torch import Tensor

from samerge.linalg.factors import LoraFactors, component_norms
from samerge.linalg.truncation import svd_basis, truncate

Rule = Literal["energy", "relative", "effective"]


def shared(factors: Mapping[str, LoraFactors], rank: int, rule: Rule) -> dict[str, LoraFactors]:
    """All layers truncated to their share, with equal singular values and the norm that the truncation left.

    Args:
        factors: a merge that nothing was truncated of, by module.
        rank: the uniform rank whose number of parameters is shared.
        rule: of the priority.
    """
    values = [component_norms(svd_basis(update)).sort(descending=True).values for update in factors.values()]
    found = ranks(values, [sum(update.shape) for update in factors.values()], rank, rule)
    return {
        module: flatten(truncate(update, k)[0] if k else update)  # 0: the update is zero, and becomes of rank 0
        for (module, update), k in zip(factors.items(), found, strict=True)
    }


def ranks(values: Sequence[Tensor], costs: Sequence[int], rank: int, rule: Rule) -> list[int]:
    """The rank of every layer: at least 1, and no more than it has singular values; 0 where it has none.

    Args:
        values: each layer's singular values, descending, float64.
        costs: parameters of one component, by layer.
        rank: the uniform rank.
        rule: of the priority.

    Example:
        >>> import torch
        >>> values = [torch.tensor([4.0, 3.0, 2.0]).double(), torch.tensor([2.0, 1.0, 0.5]).double()]
        >>> ranks(values, [10, 10], 2, "energy")
        [3, 1]
    """
    left = rank * sum(costs)
    found = [min(1, len(own)) for own in values]
    left -= sum(k * cost for k, cost in zip(found, costs, strict=True))
    order = [
        (-priority, i, layer)
        for layer, (own, cost) in enumerate(zip(values, costs, strict=True))
        for i, priority in enumerate(_priorities(own, cost, rule))
        if i
    ]
    for _, i, layer in sorted(order):
        if found[layer] == i and costs[layer] <= left:  # a layer's components come in their order
            found[layer] += 1
            left -= costs[layer]
    return found


def _priorities(values: Tensor, cost: int, rule: Rule) -> list[float]:
    squares = values.square()
    total = float(squares.sum())
    if rule == "energy":
        return [float(square) / cost for square in squares]
    if rule == "relative":
        return [float(square) / total for square in squares]
    effective = total**2 / float(squares.square().sum()) if total else 0.0
    return [effective / (i + 1) for i in range(len(squares))]
