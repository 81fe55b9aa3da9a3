"""`tsv`: the singular triplets of all adapters side by side, decorrelated (TSV-Merge; Gargiulo et al. 2025).

    tau_i = U_i S_i V_i^T, its leading k_i triplets;  U = [U_1 ... U_N] = X D Y^T,  V = [V_1 ... V_N] = X' D' Y'^T
    M = (X Y^T) diag(w_1 S_1, ..., w_N S_N) (X' Y'^T)^T

The polar factors X Y^T are the orthonormal columns nearest to the concatenated ones; directions that several adapters
share are divided among them. k_i is all of r_i by default, `density` keeps a share. Cost: the Gram matrices of both
stacks and their eigenproblems (`samerge.linalg.polar`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from samerge.linalg.polar import polar
from samerge.linalg.stack import stacked
from samerge.linalg.triplets import Triplets
from samerge.methods.by_triplets import by_triplets
from samerge.methods.method import Method
from samerge.options.kinds import share
from samerge.options.option import Options, option


@dataclass(frozen=True)
class TsvOptions(Options):
    """Options of `tsv`."""

    density: float = option(share(), 1.0, "Share of its leading singular triplets that each adapter brings.")


def tsv(
    parts: Mapping[int, Triplets], weights: Mapping[int, float], count: int, options: TsvOptions
) -> tuple[Triplets, Mapping[int, float]]:
    """The merged update, and the share of its energy that each adapter's kept triplets hold."""
    kept = {n: leading(part, max(1, round(options.density * part.rank))) for n, part in parts.items()}
    stack = stacked({n: part.scaled(weights[n]) for n, part in kept.items()})
    left, right = polar(stack.U), polar(stack.V)
    dtype = stack.U.dtype
    merged = replace(stack, U=left.columns.to(dtype), V=right.columns.to(dtype), orthonormal=left.full and right.full)
    energies = {n: float(kept[n].S.square().sum() / part.S.square().sum()) for n, part in parts.items()}
    return merged.select(merged.S.abs().argsort(descending=True, stable=True)).compact(), energies


def leading(part: Triplets, count: int) -> Triplets:
    """The first components of singular triplets."""
    return part.select(torch.arange(count, device=part.S.device))


METHOD = Method("tsv", by_triplets(tsv), TsvOptions, exact=True)
