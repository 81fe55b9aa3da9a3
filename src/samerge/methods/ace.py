"""`ace`: the merge that suits the inputs each adapter's own update tells of, evened out (ACE-Merging; CVPR 2026).

arXiv 2603.02945, as its authors' code has it. With the T adapters that change the layer, W_t = tau_t less the mean of
its rows, and h_t = 1, or ||W_t||^2 where the layer is uneven (below):

    C_t = W_t^T W_t / h_t                       stands for the covariance of the inputs of task t
    D_t = C_t + (eps / h_t) I
    c^T = the mean of the rows of sum_t C_t     divided by mean ||tau_t||^2 where the layer is uneven
    M   = (sum_t w_t W_t D_t) (sum_t D_t + 1 c^T)^-1

A layer is uneven where var(l) > 0.3 mean(l)^2 for l_t = log ||tau_t||^2. There M is given more of its leading part:

    M + sum_t w_t tau_t (C_t - mean D) = U diag(S) V^T;   M := M + mean(S_k) U_k V_k^T,   the leading 0.3 of them

The authors count that share of min(d_out, d_in): full weights have as many directions, low-rank updates R at most. All
rows of M lie in those of the tau_t, so the inverse is that of an R x R matrix. Means over rows and columns depend on
the axes, log ||tau||^2 and eps on the unit of the weights, as published. eps is 0.01.
Cost: that of `tsv`, and O(N R^3).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from samerge.linalg.factors import LoraFactors
from samerge.linalg.triplets import Triplets, from_factors
from samerge.methods.by_triplets import by_triplets
from samerge.methods.iso_c import existing
from samerge.methods.method import Method
from samerge.methods.tsv import leading
from samerge.options.option import Options

#: What is added to the diagonal of each adapter's covariance.
_EPS = 0.01

#: In uneven layers, the share of leading directions that M is given more of.
_LEADING = 0.3

#: A layer is uneven where the variance of log ||tau||^2 exceeds this share of its squared mean.
_UNEVEN = 0.3

#: ||W||^2 where all rows of tau are alike.
_LEAST = 1e-12


def ace(
    parts: Mapping[int, Triplets], weights: Mapping[int, float], count: int, options: Options
) -> tuple[Triplets, Mapping[int, float]]:
    """The merged update."""
    taus = list(parts.values())
    basis, _ = torch.linalg.qr(torch.cat([tau.V.double() for tau in taus], dim=1))  # Q, (d_in, q), spans all rows
    squares = torch.stack([tau.S.square().sum() for tau in taus])
    uneven = is_uneven(squares)
    tasks = [_Task(tau, basis, uneven) for tau in taus]

    covariance = basis.new_zeros(basis.shape[1], basis.shape[1])  # Q^T (sum_t C_t) Q, however many t
    for task in tasks:
        covariance.addmm_(task.right.T, task.weighted)
    ridge = sum(task.ridge for task in tasks) * torch.eye(len(covariance), device=basis.device, dtype=basis.dtype)
    sums = basis.sum(dim=0)  # Q^T 1
    shared = sums @ covariance / len(basis) / (squares.mean() if uneven else 1.0)  # c^T Q
    loads = [weights[n] for n in parts]
    rows = torch.cat([w * (task.moved + task.ridge * task.right) for w, task in zip(loads, tasks, strict=True)])
    merged = torch.linalg.solve(covariance + ridge + torch.outer(sums, shared), rows, left=False)
    left = torch.cat([tau.U.double() for tau in taus], dim=1)
    found = (left - left.mean(dim=0)) @ merged  # M Q, (d_out, q)
    if uneven:
        mean = (covariance + ridge) / len(tasks)
        moves = [w * (task.moved - task.right @ mean) for w, task in zip(loads, tasks, strict=True)]
        found = found + _lifted(found + left @ torch.cat(moves), _LEADING)
    dtype = taus[0].U.dtype
    return from_factors(LoraFactors(A=basis.T.to(dtype), B=found.to(dtype))).compact(), {}


def is_uneven(squares: Tensor) -> bool:
    """Whether adapters of these squared norms, (T,), differ so much that each is brought to norm 1.

    Example:
        >>> is_uneven(torch.tensor([100.0, 1000.0])), is_uneven(torch.tensor([0.5, 40.0]))
        (False, True)
    """
    logs = squares.log()
    return len(logs) > 1 and float(logs.var()) > _UNEVEN * float(logs.mean()) ** 2


class _Task:
    """One adapter, its rows in the coordinates of Q: tau Q = U right, and W likewise with U less the mean of its rows.

    Args:
        tau: its singular triplets.
        basis: Q.
        uneven: whether its covariance is divided by ||W||^2.
    """

    def __init__(self, tau: Triplets, basis: Tensor, uneven: bool) -> None:
        self.right = tau.S[:, None] * (tau.V.double().T @ basis)  # S V^T Q, (r, q)
        U = tau.U.double()
        centred = U - U.mean(dim=0)
        weighted = centred.T @ centred @ self.right
        size = max(float((self.right * weighted).sum()), _LEAST) if uneven else 1.0
        self.ridge = _EPS / size
        self.weighted = weighted / size  # right^T weighted = Q^T C Q
        self.moved = tau.S.square()[:, None] * self.weighted  # right Q^T C Q: right right^T is diag(S^2)


def _lifted(matrix: Tensor, part: float) -> Tensor:
    """mean(S_k) U_k V_k^T of its leading directions."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = existing(Triplets(u, s, vh.T, True), float(s[0]))
    kept = leading(found, max(1, int(part * found.rank)))
    return kept.S.mean() * kept.U @ kept.V.T


METHOD = Method("ace", by_triplets(ace), exact=True)
