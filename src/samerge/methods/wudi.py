"""`wudi`: the merge that disturbs each adapter's own inputs least, in closed form (WUDI; Cheng et al. 2025).

The rows of tau_i span the inputs that adapter i reacts to. With the weighted updates w_i tau_i as targets,

    min over M of  sum_i ||(M - w_i tau_i) tau_i^T||_F^2 / ||tau_i||_F^2
    M = (sum_i w_i tau_i C_i) C^+,   C_i = tau_i^T tau_i / ||tau_i||_F^2,   C = sum_i C_i

`wudi` takes the pseudo-inverse with a relative cut-off of the eigenvalues of C, so that M is the minimiser of least
norm. When the stacked A_i have full row rank, the minimum is 0: M x = w_i tau_i x for every x in the row space of A_i.
Nearly collinear A_i make C ill-conditioned; a ridge `mu` > 0, in units of the mean non-zero eigenvalue l of C, pulls M
towards the weighted sum instead:

    M = (sum_i w_i tau_i C_i + mu l sum_i w_i tau_i) (C + mu l I)^-1

`aswudi` keeps only the leading K = (sum_k sqrt(l_k))^2 / sum_k l_k eigenvectors of C, rounded. Published is gradient
descent on the loss; this is where it ends.

With the singular triplets and n_i = ||tau_i||, C = X X^T for the stack X = [V_1 S_1 / n_1 ... V_N S_N / n_N], and its
own singular vectors X = Y diag(sqrt(l)) E^T say everything:

    M Y = [w_1 U_1 (S_1^2 / n_1 + mu l n_1) ... ] E diag(sqrt(l_k) / (l_k + mu l)),    M = (M Y) Y^T

Cost: the Gram matrix of X and its eigenproblem, as large as the lesser of R and d_in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from samerge.linalg.factors import LoraFactors
from samerge.linalg.gram import singular_vectors, times
from samerge.linalg.stack import stacked
from samerge.linalg.triplets import Triplets, from_factors
from samerge.methods.by_triplets import by_triplets
from samerge.methods.method import Method
from samerge.options.kinds import real
from samerge.options.option import Options, option

#: Eigenvalues of C below this share of the largest are zero.
_CUTOFF = 1e-6

#: Singular values of X below this share of the largest are rounding, whatever the cut-off.
_ROUNDING = 1e-7


@dataclass(frozen=True)
class WudiOptions(Options):
    """Options of `wudi`."""

    mu: float = option(real(0), 0.0, "Ridge in units of the mean non-zero eigenvalue; 0 for none.")


def wudi(
    parts: Mapping[int, Triplets], weights: Mapping[int, float], count: int, options: WudiOptions
) -> tuple[Triplets, Mapping[int, float]]:
    """The minimiser, with a cut-off or a ridge."""
    equations = NormalEquations(parts, weights)
    alive = equations.alive()
    if not options.mu:
        return equations.solved(alive), {}
    ridge = options.mu * float(equations.eigenvalues[alive].mean())
    return equations.solved(torch.arange(len(equations.eigenvalues), device=alive.device), ridge), {}


class NormalEquations:
    """C and sum_i w_i tau_i C_i of a layer, by the stack X that C is made of.

    Args:
        parts: the adapters' triplets by number.
        weights: theirs.
    """

    def __init__(self, parts: Mapping[int, Triplets], weights: Mapping[int, float]) -> None:
        norms = {n: float(torch.linalg.vector_norm(part.S)) for n, part in parts.items()}
        stack = stacked(parts)
        self.U = stack.U
        self.shares = torch.cat([part.S / norms[n] for n, part in parts.items()])  # S / n, (R,)
        self.loads = torch.cat([torch.full_like(part.S, weights[n] * norms[n]) for n, part in parts.items()])  # w n
        self.Y, values, self.E = singular_vectors(stack.V.double() * self.shares, _ROUNDING)
        self.eigenvalues = values.square()  # of C, descending

    def alive(self) -> Tensor:
        """Which eigenvalues are not zero."""
        return (self.eigenvalues > _CUTOFF * self.eigenvalues[0]).nonzero().flatten()

    def solved(self, kept: Tensor, ridge: float = 0.0) -> Triplets:
        """M within the span of some eigenvectors of C."""
        values = self.eigenvalues[kept]
        inverse = self.E[:, kept] * (values.sqrt() / (values + ridge))  # (R, k)
        left = times(self.U, (self.loads * (self.shares.square() + ridge))[:, None] * inverse)
        dtype = self.U.dtype
        return from_factors(LoraFactors(A=self.Y[:, kept].T.to(dtype), B=left.to(dtype)))


METHOD = Method("wudi", by_triplets(wudi), WudiOptions, exact=True)
