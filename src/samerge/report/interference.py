"""What a merge changes of the experts' own outputs, measured without data.

The rows of A_i span the inputs that expert i reacts to, so (M - tau_i) A_i^T is what M does to them and tau_i does not.
Normalised by the expert's own effect and summed over experts and layers,

    E(M) = sum_l sum_i ||(M_l - tau_il) A_il^T||_F^2 / n_il,    n_il = ||tau_il A_il^T||_F^2

is a sum of squares in whatever M is linear in, and everything follows from small Gram matrices:

    scaling="interference"    M = lambda M':  lambda = sum <M' A_i^T, tau_i A_i^T> / n_i  over  sum ||M' A_i^T||^2 / n_i
    weights="auto"            M = sum_j w_j tau_j:  G w = h,
                              G_jk = sum <tau_j A_i^T, tau_k A_i^T> / n_i,  h_j = sum <tau_j A_i^T, tau_i A_i^T> / n_i

A_i are the right singular vectors of tau_i by default (basis="svd"), so that nothing depends on how B and A were
trained; with basis="native" the rows as trained. Experts whose tau_i A_i^T is zero take no part. The same quantity with
tau_i^T in place of A_i^T is the loss of WUDI (Cheng et al. 2025). Cost of
the weights O((d_in + d_out) R^2 + R^3) a layer, of the strength O((d_in + d_out + R) R k) with M' of rank k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from samerge.linalg.factors import LoraFactors
from samerge.linalg.truncation import svd_basis
from samerge.methods.problem import Problem, Site, by_module

#: Ridge of the weights, in units of the mean diagonal entry of G: it decides between experts that cannot be told apart.
RIDGE = 1e-8


def strength_terms(merged: LoraFactors, experts: Sequence[LoraFactors]) -> tuple[float, float]:
    """Numerator and denominator of lambda at one layer.

    Args:
        merged: M', (out, in), any rank.
        experts: tau_i, with the rows A_i that it is measured on.

    Example:
        >>> f = LoraFactors(torch.eye(2), torch.eye(2))
        >>> top, below = strength_terms(LoraFactors(torch.eye(2), 4 * torch.eye(2)), [f])
        >>> top / below
        0.25
    """
    B, A = _double(merged)
    above = below = 0.0
    for expert in experts:
        own_b, own_a = _double(expert)
        size = _effect(own_b, own_a)
        if size > 0:
            on = A @ own_a.T  # (k, r) what M's rows see of the expert's inputs
            above += float(((B.T @ own_b) * (on @ (own_a @ own_a.T))).sum()) / size
            below += float(((B.T @ B) * (on @ on.T)).sum()) / size
    return above, below


def strength(terms: Sequence[tuple[float, float]]) -> float:
    """lambda from the terms of the layers that share it; 1.0 where the merge is zero on all experts' inputs."""
    above, below = sum(a for a, _ in terms), sum(b for _, b in terms)
    return above / below if below > 0 else 1.0


def scalings(problem: Problem, updates: Mapping[str, LoraFactors], scaling: str, basis: str) -> dict[str, float]:
    """lambda of every module for scaling="interference" (one for all) or "interference:layer".

    Args:
        problem: the experts before anything was done to them.
        updates: the merged updates at scaling 1.0, of this process's sites.
        scaling: which of the two.
        basis: "svd" or "native", the rows A_i.
    """
    terms = by_module(
        problem.sites,
        lambda site: strength_terms(updates[site.module], list(experts_of(problem, site, basis).values())),
    )
    if scaling == "interference:layer":
        return {module: strength([own]) for module, own in terms.items()}
    return dict.fromkeys(terms, strength(list(terms.values())))


def weight_terms(experts: Mapping[int, LoraFactors], count: int) -> tuple[Tensor, Tensor]:
    """G (N, N) and h (N,) of one layer.

    Args:
        experts: tau_i by number, with the rows A_i that it is measured on.
        count: N, experts in all.
    """
    total, target = torch.zeros(count, count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    if not experts:
        return total, target
    parts = {n: _double(part) for n, part in experts.items()}
    numbers, ranks = list(parts), [B.shape[1] for B, _ in parts.values()]
    columns = torch.cat([B for B, _ in parts.values()], dim=1)
    rows = torch.cat([A for _, A in parts.values()])
    gram = columns.T @ columns  # (R, R)
    for n, (B, A) in parts.items():
        size = _effect(B, A)
        if size > 0:
            on = rows @ A.T  # (R, r)
            inner = _by_blocks(gram * (on @ on.T), ranks).cpu() / size  # <tau_j A^T, tau_k A^T> of those here
            for place, j in enumerate(numbers):
                total[j, numbers] += inner[place]
            target[numbers] += inner[:, numbers.index(n)]
    return total, target


def auto_weights(problem: Problem, basis: str = "svd") -> tuple[float, ...]:
    """`weights="auto"`: one weight for each expert, the least squares solution over all layers.

        (G + mu I) w = h,    mu = 1e-8 times the mean diagonal entry of G

    The small ridge divides a weight equally among experts that are the same. A zero expert gets weight 1.
    """
    count = len(problem.names)

    def add(sums: Tensor) -> None:
        for site in problem.own:
            gram, target = weight_terms(experts_of(problem, site, basis), count)
            sums[:count] += gram.to(sums.device)
            sums[count] += target.to(sums.device)

    like = torch.empty(0, dtype=torch.float64, device=problem.device)
    sums = problem.group.summed((count + 1, count), like, add).cpu()
    return least_squares(sums[:count], sums[count])


def least_squares(total: Tensor, target: Tensor) -> tuple[float, ...]:
    """The weights from G and h.

    Example:
        >>> least_squares(torch.tensor([[2.0, 0.0], [0.0, 0.0]]).double(), torch.tensor([1.0, 0.0]).double())[1]
        1.0
    """
    alive = total.diagonal() > 0
    weights = torch.ones(len(total), dtype=torch.float64)
    if bool(alive.any()):
        own = total[alive][:, alive]
        ridge = RIDGE * own.diagonal().mean() * torch.eye(len(own), dtype=own.dtype)
        weights[alive] = torch.linalg.solve(own + ridge, target[alive])
    return tuple(weights.tolist())


def experts_of(problem: Problem, site: Site, basis: str) -> dict[int, LoraFactors]:
    """The experts' updates at a site as B_i A_i with the rows A_i that the interference is measured on."""
    parts = problem.factors(site)
    return {n: svd_basis(part) for n, part in parts.items()} if basis == "svd" else parts


def _by_blocks(matrix: Tensor, sizes: Sequence[int]) -> Tensor:
    """The sums of the blocks of a square matrix."""
    rows = torch.stack([block.sum(dim=0) for block in torch.split(matrix, list(sizes))])
    return torch.stack([block.sum(dim=1) for block in torch.split(rows, list(sizes), dim=1)], dim=1)


def _double(factors: LoraFactors) -> tuple[Tensor, Tensor]:
    folded = factors.to(dtype=torch.float64).folded()
    return folded.B, folded.A


def _effect(B: Tensor, A: Tensor) -> float:
    """||B A A^T||_F^2."""
    gram = A @ A.T
    return float(((B.T @ B) * (gram @ gram)).sum())
