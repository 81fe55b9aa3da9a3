"""`tsv`: the singular triplets of all adapters side by side, decorrelated (TSV-Merge; Gargiulo et al. 2024).

    tau_i = U_i S_i V_i^T, its leading k_i triplets;  U = [U_1 ... U_N] = X D Y^T,  V = [V_1 ... V_N] = X' D' Y'^T
    M = (X Y^T) diag(w_1 S_1, ..., w_N S_N) (X' Y'^T)^T

The polar factors X Y^T are the orthonormal columns nearest to the concatenated ones; directions that several experts
share are divided among them. k_i is all of r_i by default, `density` keeps a share. Exact in the core space, O(R^3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samerge.linalg.core_space import existing_triplets, isometry
from samerge.methods.in_core import in_core
from samerge.methods.method import Method
from samerge.options.kinds import share
from samerge.options.option import Options, option


@dataclass(frozen=True)
class TsvOptions(Options):
    """Options of `tsv`."""

    density: float = option(share(), 1.0, "Share of its leading singular triplets that each adapter brings.")


def tsv(cores: Sequence[Tensor], weights: Sequence[float], density: float = 1.0) -> tuple[Tensor, list[float]]:
    """The merged core, and the share of its energy that each expert's kept triplets hold."""
    lefts, values, rights, energies = [], [], [], []
    for core, weight in zip(cores, weights, strict=True):
        u, s, vh = existing_triplets(core)
        count = max(1, round(density * len(s)))
        total = float(s.square().sum())
        energies.append(float(s[:count].square().sum()) / total if total else 1.0)
        lefts.append(u[:, :count])
        values.append(weight * s[:count])
        rights.append(vh[:count])
    left, right = isometry(torch.cat(lefts, dim=1)), isometry(torch.cat(rights))
    return (left * torch.cat(values)) @ right, energies


def combine(
    cores: Sequence[Tensor], weights: Sequence[float], experts: int, options: TsvOptions
) -> tuple[Tensor, Sequence[float]]:
    """`tsv` as `in_core` runs it."""
    return tsv(cores, weights, options.density)


METHOD = Method("tsv", in_core(combine), TsvOptions, exact=True)
