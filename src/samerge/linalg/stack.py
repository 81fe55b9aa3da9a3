"""The triplets of several adapters of one layer side by side, and their weighted sum as a map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from samerge.linalg.triplets import Triplets

#: Rows or columns of a tile.
TILE = 512


def stacked(parts: Mapping[int, Triplets]) -> Triplets:
    """All components side by side, [U_1 ... U_N], with `owners` saying whose each is.

    Args:
        parts: at least one; by number of the adapter, all of one shape.

    Example:
        >>> part = Triplets(torch.eye(3, 2), torch.ones(2, dtype=torch.float64), torch.eye(4, 2), True)
        >>> both = stacked({0: part, 5: part})
        >>> both.rank, both.shape, both.owners
        (4, (3, 4), tensor([0, 0, 5, 5]))
    """
    each = list(parts.values())
    owners = [torch.full((part.rank,), n, device=part.S.device) for n, part in parts.items()]
    return Triplets(
        torch.cat([part.U for part in each], dim=1),
        torch.cat([part.S for part in each]),
        torch.cat([part.V for part in each], dim=1),
        len(each) == 1 and each[0].orthonormal,
        torch.cat(owners),
    )


def apart(stack: Triplets) -> dict[int, Triplets]:
    """What `stacked` brought together, by number of the adapter; views of the stack.

    Args:
        stack: each adapter's components lie together, and its U and V are orthonormal.

    Example:
        >>> part = Triplets(torch.eye(3, 2), torch.ones(2, dtype=torch.float64), torch.eye(4, 2), True)
        >>> [(n, own.rank, own.orthonormal) for n, own in apart(stacked({0: part, 5: part})).items()]
        [(0, 2, True), (5, 2, True)]
    """
    assert stack.owners is not None
    numbers, counts = torch.unique_consecutive(stack.owners, return_counts=True)
    split = (torch.split(of, counts.tolist(), dim=-1) for of in (stack.U, stack.S, stack.V))
    return {n: Triplets(U, S, V, True) for n, U, S, V in zip(numbers.tolist(), *split, strict=True)}


def images(stack: Triplets, loads: Tensor, groups: Sequence[Tensor]) -> Iterator[tuple[slice, int, Tensor]]:
    """Rows of T V[:, group] for T = U diag(loads) V^T, tile by tile; neither T nor a Gram matrix is ever whole.

    Where there are fewer components than rows and columns, V^T V[:, group] comes first, otherwise a tile of T does:
    4 d R^2 or 4 d^2 R operations for all R columns of a d x d layer, whichever is less.

    Args:
        stack: U (d_out, R), V (d_in, R).
        loads: (R,).
        groups: of columns, (c,) long each; some hundreds of columns at a time are fastest.

    Yields:
        The rows, the number of the group, and T[rows] V[:, group] (rows, c) in the dtype of the stack.
    """
    U, V, c = stack.U, stack.V, loads.to(stack.U.dtype)
    if stack.rank * sum(stack.shape) <= 2 * stack.shape[0] * stack.shape[1]:
        for i, group in enumerate(groups):
            yield slice(0, len(U)), i, U @ (c[:, None] * (V.T @ V[:, group]))
        return
    for start in range(0, len(U), TILE):
        rows = slice(start, min(start + TILE, len(U)))
        tile = (U[rows] * c) @ V.T  # (rows, d_in)
        for i, group in enumerate(groups):
            yield rows, i, tile @ V[:, group]
