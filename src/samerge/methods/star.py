"""`star`: the mean of the adapters, each truncated and rescaled to keep its nuclear norm (STAR; Lee et al. 2025).

    tau_i = U S V^T;  r = the least number of leading singular values with s_1 + ... + s_r >= eta (s_1 + s_2 + ...)
    tau_i' = (s_1 + s_2 + ...) / (s_1 + ... + s_r) U_r S_r V_r^T        the nuclear norm is kept
    M = 1/N sum_i w_i tau_i'

N counts the experts of the whole merge, also those that do not adapt the layer. Exact in the core space, O(N R^3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samerge.linalg.core_space import existing_triplets
from samerge.methods.in_core import in_core
from samerge.methods.method import Method
from samerge.options.kinds import share
from samerge.options.option import Options, option


@dataclass(frozen=True)
class StarOptions(Options):
    """Options of `star`."""

    eta: float = option(share(), 0.4, "Share of the nuclear norm that the kept singular values reach.")


def star(
    cores: Sequence[Tensor], weights: Sequence[float], experts: int, eta: float = 0.4
) -> tuple[Tensor, list[float]]:
    """The merged core, and the share of its energy that each expert kept before it was rescaled."""
    merged, energies = torch.zeros_like(cores[0]), []
    for core, weight in zip(cores, weights, strict=True):
        u, s, vh = existing_triplets(core)
        if not len(s):
            energies.append(1.0)
            continue
        sums = s.cumsum(0)
        count = int((sums < eta * sums[-1] * (1 - 1e-12)).sum()) + 1  # the sum's own rounding costs no component
        merged += weight / experts * (sums[-1] / sums[count - 1]) * (u[:, :count] * s[:count]) @ vh[:count]
        energies.append(float(s[:count].square().sum() / s.square().sum()))
    return merged, energies


def combine(
    cores: Sequence[Tensor], weights: Sequence[float], experts: int, options: StarOptions
) -> tuple[Tensor, Sequence[float]]:
    """`star` as `in_core` runs it."""
    return star(cores, weights, experts, options.eta)


METHOD = Method("star", in_core(combine), StarOptions, exact=True)
