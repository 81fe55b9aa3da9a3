"""`ctm`: compress, then merge (arXiv 2606.03723): the whole merge takes place in one common space of the output's rank.

    tau_i' = tau_i / ||tau_i|| (balance ||tau_i|| + (1 - balance) mean_j ||tau_j||)       in each layer
    U (d_out, r), V (d_in, r) orthonormal, of the largest sum_i ||U^T tau_i' V||_F^2       Tucker-2, by HOOI
    M = U ties(w_1 U^T tau_1 V, ..., w_N U^T tau_N V) V^T

Balanced norms have a say in the space; what is merged in it are the updates as they are. TIES trims each layer by
itself, as the authors' code does, unless trim="adapter". HOOI takes turns: U from the leading left singular vectors of
[tau_1 V ... tau_N V], V likewise; it starts from the right singular vectors of [tau_1; ...; tau_N] and ends where the
fit stands still. r is `svd_rank`, by default the largest source rank, so nothing is truncated after the merge.
Published: balance 0.25, density 0.25, lambda 0.75. Exact in the core space; O(N R^2 r) a turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samerge.errors import OptionError
from samerge.linalg.core_space import CoreSpace
from samerge.methods.aligned import Aligned, held
from samerge.methods.parameters import own
from samerge.methods.ties import TiesParameters
from samerge.options.merge_options import MergeOptions
from samerge.options.values import number

#: Turns of HOOI at most, and the relative gain of the fit below which it stands still.
_TURNS, _GAIN = 200, 1e-12


@dataclass(frozen=True)
class CtmParameters(TiesParameters):
    """Options of `ctm`.

    Args:
        balance: how much of its own norm an expert keeps, in [0, 1]; the rest is the experts' mean norm.
    """

    trim: str = "layer"
    balance: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= number("balance", self.balance) <= 1:
            raise OptionError(f"method_options: balance={self.balance!r} must lie in [0, 1]")


def by_tucker(space: CoreSpace, rank: int, options: MergeOptions) -> Aligned:
    """The alignment of `ctm`."""
    u, v = tucker(balanced(space.cores, own(options, CtmParameters).balance), rank)
    return Aligned(space.left @ u, tuple(held(u.T @ core @ v) for core in space.cores), (space.right @ v).T)


def balanced(cores: Sequence[Tensor], balance: float) -> list[Tensor]:
    """The updates with their norms drawn towards their mean; zero ones stay zero and do not count in the mean."""
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
