"""`tsv`: task singular vectors, decorrelated (Gargiulo et al. 2024).

    tau_i = U_i S_i V_i^T, its leading k_i triplets;  U = [U_1 ... U_N] = X D Y^T,  V = [V_1 ... V_N] = X' D' Y'^T
    M = (X Y^T) diag(w_1 S_1, ..., w_N S_N) (X' Y'^T)^T

The polar factors X Y^T are the orthonormal columns nearest to the concatenated ones; directions that several experts
share are divided among them. k_i is all of r_i by default, `density` keeps a share. Exact in the core space, O(R^3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from samerge.linalg.core_space import existing_triplets, isometry
from samerge.options.merge_options import MergeOptions


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


def combine_tsv(
    cores: Sequence[Tensor], weights: Sequence[float], experts: int, options: MergeOptions
) -> tuple[Tensor, Sequence[float]]:
    """`tsv` as the registry runs it."""
    return tsv(cores, weights, options.mean_density or 1.0)
