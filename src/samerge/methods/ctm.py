"""`ctm`: compress all adapters to one space of the output's rank, TIES in it (Compress then Merge; arXiv 2606.03723).

    tau_i' = tau_i / ||tau_i|| (own_norm ||tau_i|| + (1 - own_norm) mean_j ||tau_j||)       in each layer
    U (d_out, r), V (d_in, r) orthonormal, of the largest sum_i ||U^T tau_i' V||_F^2       Tucker-2, by HOOI
    M = U ties(w_1 U^T tau_1 V, ..., w_N U^T tau_N V) V^T

Balanced norms have a say in the space; what is merged in it are the updates as they are. TIES trims each layer by
itself, as the authors' code does. HOOI takes turns: U from the leading left singular vectors of [tau_1 V ... tau_N V],
V likewise; it starts from the right singular vectors of [tau_1; ...; tau_N] and ends where the fit stands still. r is
the rank of the result, so nothing is truncated after the merge.
Published: own_norm 0.25, density 0.25, lambda 0.75. Exact in the core space of k = min(R, width) dimensions; a turn is
k^2 R operations and a k x k eigenproblem, k R r where k is large.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samerge.linalg.core_space import core_space
from samerge.linalg.gram import gram
from samerge.linalg.triplets import Triplets
from samerge.methods.aligned import Aligned, aligned_ties, held
from samerge.methods.method import Method
from samerge.methods.ties import TrimOptions
from samerge.options.kinds import share
from samerge.options.option import option

#: How much of its own norm an adapter keeps in the choice of the space; the rest is the mean's.
_OWN_NORM = 0.25

#: Turns of HOOI at most, and the relative gain of the fit below which it stands still.
_TURNS, _GAIN = 200, 1e-12

#: Rows of a matrix whose leading singular vectors are found anew in each turn.
_SMALL = 512


@dataclass(frozen=True)
class CtmOptions(TrimOptions):
    """Options of `ctm`."""

    density: float = option(share(), 0.25, "Share of the elements of its core that each adapter keeps.")


def by_tucker(parts: Mapping[int, Triplets], rank: int, options: CtmOptions) -> Aligned:
    """The alignment of `ctm`."""
    space = core_space(list(parts.values()))
    u, v = tucker(balanced(space.cores), rank)
    left, right = space.left @ u, space.right @ v
    within = (Triplets(u.T @ core.U, core.S, v.T @ core.V, False) for core in space.cores)
    return Aligned(left, {n: held(core) for n, core in zip(parts, within, strict=True)}, right)


def balanced(cores: Sequence[Triplets]) -> list[Triplets]:
    """The updates with their norms drawn towards their mean."""
    norms = [float(torch.linalg.vector_norm(core.S)) for core in cores]
    mean = sum(norms) / len(norms)
    return [
        core.scaled((_OWN_NORM * size + (1 - _OWN_NORM) * mean) / size) for core, size in zip(cores, norms, strict=True)
    ]


def tucker(cores: Sequence[Triplets], rank: int) -> tuple[Tensor, Tensor]:
    """U (m, r) and V (n, r) of the Tucker-2 decomposition of stacked (m, n) matrices, r = min(rank, m, n) columns.

    Args:
        cores: singular triplets of each matrix, in float64.
        rank: of the space.
    """
    lefts, rights = [core.U * core.S for core in cores], [core.V for core in cores]
    m, n = cores[0].shape
    v = leading(torch.cat([core.V * core.S for core in cores], dim=1), min(rank, m, n))
    seen = _seen(lefts, rights, v)
    u = leading(seen, v.shape[1])
    fit = 0.0
    for _ in range(_TURNS):
        v = leading(_seen(rights, lefts, u), v.shape[1], v)
        seen = _seen(lefts, rights, v)
        u = leading(seen, v.shape[1], u)
        found = float((u.T @ seen).square().sum())
        if found <= fit * (1 + _GAIN):
            break
        fit = found
    return u, v


def _seen(near: Sequence[Tensor], far: Sequence[Tensor], basis: Tensor) -> Tensor:
    """[near_1 far_1^T basis, ..., near_N far_N^T basis], (m, N r)."""
    return torch.cat([one @ (other.T @ basis) for one, other in zip(near, far, strict=True)], dim=1)


def leading(matrix: Tensor, rank: int, start: Tensor | None = None) -> Tensor:
    """The leading left singular vectors of a matrix (m, n), in float64.

    Of a matrix of more than `_SMALL` rows they are improved from `start`, one step of a block Krylov method, since the
    next turn asks for others anyway; without a start they are exact. Thin products are made with the thin side first,
    which takes a third of the time.

    Args:
        matrix: the matrix.
        rank: at most m.
        start: (m, rank) orthonormal, near the result.
    """
    if start is None or len(matrix) <= _SMALL:
        found: Tensor = torch.linalg.eigh(gram(matrix.T)).eigenvectors[:, -rank:].flip(1)
        return found
    image = (start.T @ matrix) @ matrix.T  # (rank, m)
    block: Tensor = torch.linalg.qr(torch.cat([start, image.T], dim=1))[0]
    turn: Tensor = torch.linalg.eigh(gram((block.T @ matrix).T)).eigenvectors[:, -rank:].flip(1)
    return block @ turn


METHOD = Method("ctm", aligned_ties(by_tucker, "layer"), CtmOptions, scaling=0.75, by_site=False)
