"""Singular vectors where equal singular values leave them free: chosen by what the adapter has in common with the sum.

The triplets of a block P_b, Q_b of equal singular values may be any (P_b O, Q_b O), O orthogonal: the update is the
same. Which one an SVD gives is chance, and a choice among them would be, too. With T = sum_j w_j tau_j,

    C = P_b^T T Q_b,   (C + C^T) / 2 = W diag(c) W^T,   P_b <- P_b W,   Q_b <- Q_b W

depends on the update alone: C becomes O^T C O, so W becomes O^T W. It is the same for the transposed updates, and
sigma c_k is the agreement eta of the new component k. Where the c are equal, too, the rest stays free.
"""

from __future__ import annotations

import torch
from torch import Tensor

from samerge.linalg.stack import TILE, images
from samerge.linalg.triplets import Triplets

#: Singular values that are less than the first of their block by no more than this share belong to it.
NEAR = 1e-4


def canonical(stack: Triplets, weights: Tensor) -> Triplets:
    """The stack with a basis of its own in every block of near-equal singular values.

    Within a block all S become its root mean square (a change of `NEAR` at most), and the components are sorted by
    |c|, descending. The rest of the stack is as it was; the stack itself comes back where no two values are near.

    Args:
        stack: components of all adapters, each adapter's together and with S > 0 descending; `owners` tells them apart.
        weights: (R,), of the adapter that each component comes from; what T is made with.

    Example:
        >>> turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
        >>> flat, other = torch.ones(2, dtype=torch.float64), torch.eye(2, 1, dtype=torch.float64)
        >>> stack = Triplets(
        ...     torch.cat([turn, other], 1), torch.ones(3).double(), torch.cat([turn, other], 1), False,
        ...     torch.tensor([0, 0, 1]),
        ... )
        >>> canonical(stack, torch.ones(3)).U.abs().round(decimals=12)
        tensor([[1., 0., 1.],
                [0., 1., 0.]], dtype=torch.float64)
    """
    found = blocks(stack)
    if not found:
        return stack
    U, S, V = stack.U.clone(), stack.S.clone(), stack.V.clone()
    tiles = _together(found)
    cores = [[torch.zeros(len(b), len(b), dtype=torch.float64, device=S.device) for b in tile] for tile in tiles]
    for rows, i, image in images(stack, weights * stack.S, [torch.cat(tile) for tile in tiles]):
        parts = torch.split(image, [len(block) for block in tiles[i]], dim=1)
        for core, block, part in zip(cores[i], tiles[i], parts, strict=True):
            core += stack.U[rows][:, block].double().T @ part.double()
    for tile, its in zip(tiles, cores, strict=True):
        for block, core in zip(tile, its, strict=True):
            values, W = torch.linalg.eigh((core + core.T) / 2)
            W = W[:, values.abs().argsort(descending=True, stable=True)]
            U[:, block] = (stack.U[:, block].double() @ W).to(U.dtype)
            V[:, block] = (stack.V[:, block].double() @ W).to(V.dtype)
            S[block] = stack.S[block].square().mean().sqrt()
    return Triplets(U, S, V, stack.orthonormal, stack.owners)


def has_own_basis(S: Tensor) -> bool:
    """Whether no two singular values of one adapter are near, so that `canonical` leaves its triplets as they are.

    Args:
        S: (k,) descending.

    Example:
        >>> has_own_basis(torch.tensor([2.0, 1.0])), has_own_basis(torch.tensor([2.0, 1.0, 1.0]))
        (True, False)
    """
    return not bool((S[:-1] - S[1:] <= NEAR * S[:-1]).any())


def blocks(stack: Triplets) -> list[Tensor]:
    """The columns of each block of two or more near-equal singular values of one adapter, (b,) long each.

    A block ends where a value is less than its first by more than `NEAR`: no chain of small steps makes it long.
    """
    S = stack.S.tolist()
    owners = [0] * len(S) if stack.owners is None else stack.owners.tolist()
    found, start = [], 0
    for k in range(1, len(S) + 1):
        if k == len(S) or owners[k] != owners[start] or S[start] - S[k] > NEAR * S[start]:
            if k - start > 1:
                found.append(torch.arange(start, k, device=stack.S.device))
            start = k
    return found


def _together(found: list[Tensor]) -> list[list[Tensor]]:
    """Blocks in groups of about `TILE` columns."""
    groups: list[list[Tensor]] = [[]]
    for block in found:
        if sum(len(one) for one in groups[-1]) >= TILE:
            groups.append([])
        groups[-1].append(block)
    return groups
