"""`star`: spectral truncation and rescale (Lee et al. 2025).

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

from samerge.errors import OptionError
from samerge.linalg.core_space import existing_triplets
from samerge.methods.parameters import own
from samerge.options.merge_options import MergeOptions
from samerge.options.values import number


@dataclass(frozen=True)
class StarParameters:
    """Options of `star`.

    Args:
        eta: share of the nuclear norm that the kept singular values reach, in (0, 1].
    """

    eta: float = 0.4

    def __post_init__(self) -> None:
        if not 0 < number("eta", self.eta) <= 1:
            raise OptionError(f"method_options: eta={self.eta!r} must lie in (0, 1]")


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


def combine_star(
    cores: Sequence[Tensor], weights: Sequence[float], experts: int, options: MergeOptions
) -> tuple[Tensor, Sequence[float]]:
    """`star` as the registry runs it."""
    return star(cores, weights, experts, own(options, StarParameters).eta)
