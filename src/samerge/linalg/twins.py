"""Components of several adapters that are one: what one says the other says again, or takes back.

    o_jk = (p_j . p_k)(q_j . q_k)   the cosine of p_j q_j^T and p_k q_k^T

Copies of an adapter and checkpoints of one run have components with o near 1, or near -1 where a factor's sign is
turned. Of such twins the loudest, by |w_k| sigma_k, speaks for all, with the weight

    w'_k = sum_j sign(o_jk) w_j sigma_j / sigma_k,   but no more than |w_k| either way,

and the others have none. So two copies are one voice, and an adapter less its copy is nothing. Components of adapters
that were trained on different tasks have no twins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from samerge.linalg.stack import TILE
from samerge.linalg.triplets import Triplets

#: Components whose cosine is beyond this, either way, are twins.
ALIKE = 0.9

#: What is left of a weight below this share of it is rounding.
ROUNDING = 1e-5


def joined(stack: Triplets, weights: Tensor, products: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """The weights w'_k with which components speak, and what is left of each, both (R,).

    What is left is |w'_k / w_k| for the one that speaks and for all its twins; 1 for a component without a twin.

    Cost: R^2 d_out operations where the products are not known, and as much for d_in where many columns of U are alike.

    Args:
        stack: U (d_out, R) and V (d_in, R) with columns of norm 1, S > 0.
        weights: (R,) in float64, of the adapter that each component comes from.
        products: U^T U and V^T V, where they are known.

    Example:
        >>> one = torch.eye(3, 2, dtype=torch.float64)
        >>> both = torch.cat([one, one], dim=1)
        >>> twice = Triplets(both, torch.tensor([2.0, 1.0, 2.0, 1.0]), both, False)
        >>> joined(twice, torch.tensor([1.0, 1.0, -0.5, -0.5]))
        (tensor([0.5000, 0.5000, 0.0000, 0.0000]), tensor([0.5000, 0.5000, 0.5000, 0.5000]))
    """
    pairs = _pairs(stack, products)
    if not pairs:
        return weights, torch.ones_like(weights)
    loads, found, share = (weights * stack.S).tolist(), weights.tolist(), [1.0] * stack.rank
    left = set(pairs)
    for k in sorted(pairs, key=lambda k: (-abs(loads[k]), k)):
        if k not in left:
            continue
        own = {j: sign for j, sign in pairs[k].items() if j in left}
        left -= {k, *own}
        said = (loads[k] + sum(sign * loads[j] for j, sign in own.items())) / float(stack.S[k])
        most = abs(found[k])
        found[k] = max(-most, min(most, said)) if abs(said) > ROUNDING * most else 0.0
        for j in own:
            found[j] = 0.0
        for j in (k, *own):
            share[j] = abs(found[k]) / most if most else 0.0
    spoken, told = (torch.tensor(one, dtype=weights.dtype, device=weights.device) for one in (found, share))
    return spoken, told


def _pairs(stack: Triplets, products: tuple[Tensor, Tensor] | None) -> dict[int, dict[int, float]]:
    """By component its twins, with the sign of o; V is looked at only where U is alike."""
    found: dict[int, dict[int, float]] = {}
    for start in range(0, stack.rank, TILE):
        rows = slice(start, min(start + TILE, stack.rank))
        left = products[0][rows, start:] if products else stack.U[:, rows].T @ stack.U[:, start:]
        row, column = ((left.abs() > ALIKE).triu(1)).nonzero(as_tuple=True)
        if not len(row):
            continue
        if products or len(row) > stack.rank:
            right = products[1][rows, start:] if products else stack.V[:, rows].T @ stack.V[:, start:]
            cosines = left[row, column] * right[row, column]
        else:
            cosines = left[row, column] * (stack.V[:, row + start] * stack.V[:, column + start]).sum(dim=0)
        near = cosines.abs() > ALIKE
        pairs = zip((row[near] + start).tolist(), (column[near] + start).tolist(), cosines[near].tolist(), strict=True)
        for one, other, cosine in pairs:
            found.setdefault(one, {})[other] = found.setdefault(other, {})[one] = 1.0 if cosine > 0 else -1.0
    return found
