"""The core space of several low-rank updates: small updates that stand for them exactly.

    Q_B, the left singular vectors of [tau_1 ... tau_N] = those of [U_1 S_1 ... U_N S_N]     (d_out, k)
    Q_A, the right ones of [tau_1; ...; tau_N] = the left ones of [V_1 S_1 ... V_N S_N]      (d_in, k')
    K_i = Q_B^T tau_i Q_A = (Q_B^T U_i) S_i (Q_A^T V_i)^T,    tau_i = Q_B K_i Q_A^T exactly

So the bases and the K_i depend on the updates alone, but for the signs of the basis vectors. A K_i is k x k' and of
rank r_i: it is held as its triplets, not as a matrix. Directions below the cut-off do not exist. Cost: a Gram matrix
of either side, n x n with n the lesser of R = r_1 + ... + r_N and the layer's width, and its eigenproblem, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samerge.linalg.gram import singular_vectors, times
from samerge.linalg.triplets import Triplets


@dataclass(frozen=True)
class CoreSpace:
    """Several updates of one linear map as small ones between common orthonormal bases.

    Args:
        left: Q_B, (d_out, k), float64.
        right: Q_A, (d_in, k'), float64.
        cores: K_i as U (k, r_i), S, V (k', r_i), float64.
    """

    left: Tensor
    right: Tensor
    cores: tuple[Triplets, ...]


def core_space(parts: Sequence[Triplets]) -> CoreSpace:
    """The core space of at least one update, all of one shape.

    Args:
        parts: their singular triplets.

    Example:
        >>> eye = torch.eye(5, dtype=torch.float64)
        >>> parts = [Triplets(eye[:, [n]], torch.tensor([n + 1.0]).double(), eye[:, [0]], True) for n in range(2)]
        >>> space = core_space(parts)
        >>> space.left.shape, space.right.shape, [core.shape for core in space.cores]
        (torch.Size([5, 2]), torch.Size([5, 1]), [(2, 1), (2, 1)])
    """
    left = common_basis([part.U for part in parts], [part.S for part in parts])
    right = common_basis([part.V for part in parts], [part.S for part in parts])
    cores = tuple(Triplets(times(left.T, part.U), part.S, times(right.T, part.V), False) for part in parts)
    return CoreSpace(left, right, cores)


def common_basis(vectors: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """The left singular vectors of [U_1 S_1 ... U_N S_N] that exist, (d, k) in float64.

    Args:
        vectors: U_i, (d, r_i).
        values: S_i, (r_i,).
    """
    return singular_vectors(torch.cat([U * S.to(U.dtype) for U, S in zip(vectors, values, strict=True)], dim=1))[0]
