"""`ctm`: compress all adapters to one space of the output's rank, TIES in it (Compress then Merge; arXiv 2606.03723).

    tau_i' = tau_i / ||tau_i|| (own_norm ||tau_i|| + (1 - own_norm) mean_j ||tau_j||)       in each layer
    U (d_out, r), V (d_in, r) orthonormal, of the largest sum_i ||U^T tau_i' V||_F^2       Tucker-2, by HOOI
    M = U ties(w_1 U^T tau_1 V, ..., w_N U^T tau_N V) V^T

Balanced norms have a say in the space; what is merged in it are the updates as they are. TIES trims each layer by
itself, as the authors' code does, unless trim="adapter". HOOI takes turns: U from the leading left singular vectors of
[tau_1 V ... tau_N V], V likewise; it starts from the right singular vectors of [tau_1; ...; tau_N] and ends where the
fit stands still. r is the rank of the result, so nothing is truncated after the merge.
Published: own_norm 0.25, density 0.25, lambda 0.75. Exact in the core space; O(N R^2 r) a turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samerge.linalg.core_space import CoreSpace
from samerge.methods.aligned import Aligned, aligned_ties, held
from samerge.methods.core_ties import CoreTiesOptions
from samerge.methods.method import Method
from samerge.options.kinds import density, real
from samerge.options.option import option

#: Turns of HOOI at most, and the relative gain of the fit below which it stands still.
_TURNS, _GAIN = 200, 1e-12


@dataclass(frozen=True)
class CtmOptions(CoreTiesOptions):
    """Options of `ctm`."""

    density: float | str = option(density(), 0.25, "Share of the elements of its core that each adapter keeps.")
    own_norm: float = option(
        real(0, 1),
        0.25,
        "How much of its own norm an adapter keeps in the choice of the space; the rest is the mean's.",
    )


def by_tucker(space: CoreSpace, rank: int, options: CtmOptions) -> Aligned:
    """The alignment of `ctm`."""
    u, v = tucker(balanced(space.cores, options.own_norm), rank)
    return Aligned(space.left @ u, tuple(held(u.T @ core @ v) for core in space.cores), (space.right @ v).T)


def balanced(cores: Sequence[Tensor], balance: float) -> list[Tensor]:
    """The updates with their norms own_norm towards their mean; zero ones stay zero and do not count in the mean."""
    norms = [float(torch.linalg.vector_norm(core)) for core in cores]
    mean = sum(norms) / max(1, sum(size > 0 for size in norms))
    return [
        core * ((balance * size + (1 - balance) * mean) / size) if size else core
        for core, size in zip(cores, norms, strict=True)
    ]


def tucker(cores: Sequence[Tensor], rank: int) -> tuple[Tensor, Tensor]:
    """U (m, r) and V (n, r) of the Tucker-2 decomposition of stacked (m, n) matrices, r = min(rank, m, n) columns."""
    v = _leading(torch.cat(list(cores)).T, rank)
    u = _leading(torch.cat([core @ v for core in cores], dim=1), rank)
    fit = 0.0
    for _ in range(_TURNS):
        v = _leading(torch.cat([core.T @ u for core in cores], dim=1), rank)
        u = _leading(torch.cat([core @ v for core in cores], dim=1), rank)
        found = sum(float((u.T @ core @ v).square().sum()) for core in cores)
        if found <= fit * (1 + _GAIN):
            break
        fit = found
    return u, v


def _leading(matrix: Tensor, rank: int) -> Tensor:
    """The leading left singular vectors."""
    u: Tensor = torch.linalg.svd(matrix, full_matrices=False)[0]
    return u[:, :rank]


METHOD = Method("ctm", aligned_ties(by_tucker), CtmOptions, scaling=0.75, by_site=False)
