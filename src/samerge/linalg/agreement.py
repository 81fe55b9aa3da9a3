"""How far each component agrees with the sum of all: eta_k = sigma_k p_k^T T q_k, T = sum_j w_j sigma_j p_j q_j^T."""

from __future__ import annotations

import torch
from torch import Tensor

from samerge.linalg.stack import TILE, images
from samerge.linalg.triplets import Triplets


def agreement(
    stack: Triplets, weights: Tensor, wanted: Tensor | None = None, products: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """eta of components against the weighted sum of all of them, (R,) in float64.

    By tiles: 4 R d min(R, d) operations for R components of a d x d layer, and beside the stack the memory of a tile,
    512 rows or columns of the larger of d and R.

    Args:
        stack: components of all adapters, U (d_out, R), S (R,), V (d_in, R).
        weights: (R,), of the adapter that each component comes from.
        wanted: (c,) long, the components whose eta is asked for; all of them by default.
        products: U^T U and V^T V, (R, R) each, where they are known.

    Example:
        >>> one = torch.eye(2, dtype=torch.float64)
        >>> agreement(Triplets(one, torch.tensor([2.0, 3.0]).double(), one, True), torch.tensor([1.0, -1.0]))
        tensor([ 4., -9.], dtype=torch.float64)
    """
    columns = torch.arange(stack.rank, device=stack.S.device) if wanted is None else wanted
    if products is not None:
        left, right = products if wanted is None else (one[:, columns] for one in products)
        return ((weights * stack.S) @ (left * right)) * stack.S[columns]
    if stack.rank * sum(stack.shape) <= 2 * stack.shape[0] * stack.shape[1]:
        both = (stack.U.T @ stack.U[:, columns]).double() * (stack.V.T @ stack.V[:, columns]).double()  # (R, c)
        return ((weights * stack.S) @ both) * stack.S[columns]
    tiles = torch.split(columns, TILE)
    found = [torch.zeros(len(tile), dtype=torch.float64, device=stack.S.device) for tile in tiles]
    for rows, i, image in images(stack, weights * stack.S, tiles):
        found[i] += (stack.U[rows][:, tiles[i]] * image).sum(dim=0, dtype=torch.float64)
    return torch.cat(found) * stack.S[columns]
