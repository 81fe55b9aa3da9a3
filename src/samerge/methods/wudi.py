"""`wudi`: the merge that disturbs each adapter's own inputs least, in closed form (WUDI; Cheng et al. 2025).

The rows of tau_i span the inputs that expert i reacts to. With the weighted updates w_i tau_i as targets,

    min over M of  sum_i ||(M - w_i tau_i) tau_i^T||_F^2 / ||tau_i||_F^2
    M = (sum_i w_i tau_i C_i) C^+,   C_i = tau_i^T tau_i / ||tau_i||_F^2,   C = sum_i C_i

`wudi` takes the pseudo-inverse with a relative cut-off of the eigenvalues of C, so that M is the minimiser of least
norm. When the stacked A_i have full row rank, the minimum is 0: M x = w_i tau_i x for every x in the row space of A_i.
Nearly collinear A_i make C ill-conditioned; a ridge `mu` > 0, in units of the mean non-zero eigenvalue l of C, pulls M
towards the weighted sum instead:

    M = (sum_i w_i tau_i C_i + mu l sum_i w_i tau_i) (C + mu l I)^-1

`aswudi` keeps only the leading K = (sum_k sqrt(l_k))^2 / sum_k l_k eigenvectors of C, rounded. Published is gradient
descent on the loss; this is where it ends. Cost: O(R^3) a site.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samerge.methods.in_core import in_core
from samerge.methods.method import Method
from samerge.options.kinds import real
from samerge.options.option import Options, option


@dataclass(frozen=True)
class CutoffOptions(Options):
    """Options of `aswudi`, and of `wudi`."""

    cutoff: float = option(
        real(0, 1, below=True), 1e-6, "Eigenvalues of the normal equations below this share of the largest are zero."
    )


@dataclass(frozen=True)
class WudiOptions(CutoffOptions):
    """Options of `wudi`."""

    mu: float = option(real(0), 0.0, "Ridge in units of the mean non-zero eigenvalue; 0 for none.")


def wudi(cores: Sequence[Tensor], weights: Sequence[float], cutoff: float = 1e-6, mu: float = 0.0) -> Tensor:
    """The minimiser, with a cut-off or a ridge."""
    target, values, vectors = _normal_equations(cores, weights)
    alive = values > cutoff * values[-1].clamp_min(0)
    if not bool(alive.any()):
        return torch.zeros_like(cores[0])
    if mu:
        ridge = mu * float(values[alive].mean())
        total = torch.stack([w * core for w, core in zip(weights, cores, strict=True)]).sum(dim=0)
        # where C is 0 so is every tau_i; what rounding leaves there must not be divided by a small ridge
        there = values > len(values) * torch.finfo(values.dtype).eps * values[-1]
        values, vectors = values[there], vectors[:, there]
        return ((target + ridge * total) @ vectors / (values + ridge)) @ vectors.T
    return (target @ vectors[:, alive] / values[alive]) @ vectors[:, alive].T


def aswudi(cores: Sequence[Tensor], weights: Sequence[float], cutoff: float = 1e-6) -> Tensor:
    """The minimiser within the leading eigenvectors of C."""
    target, values, vectors = _normal_equations(cores, weights)
    alive = values > cutoff * values[-1].clamp_min(0)
    values, vectors = values[alive], vectors[:, alive]
    if not len(values):
        return torch.zeros_like(cores[0])
    count = max(1, round(float(values.sqrt().sum() ** 2 / values.sum())))
    return (target @ vectors[:, -count:] / values[-count:]) @ vectors[:, -count:].T


def combine(
    cores: Sequence[Tensor], weights: Sequence[float], experts: int, options: WudiOptions
) -> tuple[Tensor, Sequence[float]]:
    """`wudi` as `in_core` runs it."""
    return wudi(cores, weights, options.cutoff, options.mu), [1.0] * len(cores)


def _normal_equations(cores: Sequence[Tensor], weights: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """sum_i w_i tau_i C_i, and the eigenvalues of C in ascending order with their vectors."""
    target = torch.zeros_like(cores[0])
    total = cores[0].new_zeros(cores[0].shape[1], cores[0].shape[1])
    for core, weight in zip(cores, weights, strict=True):
        square = core.square().sum()
        if square > 0:
            own_ = core.T @ core / square
            target += weight * core @ own_
            total += own_
    values, vectors = torch.linalg.eigh(total)
    return target, values, vectors


METHOD = Method("wudi", in_core(combine), WudiOptions, exact=True)
