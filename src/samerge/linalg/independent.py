"""Components of several adapters that are not held already by those that rank before them.

Of a component p q^T of norm 1, the ones before it, P_< and Q_<, hold the share

    h = || proj_P p ||^2 || proj_Q q ||^2

of its squared norm, with projections on the spans of their columns: what lies in their row and column spaces both. A
copy has h = 1, adapters that were trained apart have h near 0. The spans grow one column at a time, which is what a
Cholesky factorisation does: with P^T P = L L^T in the order of the ranks, 1 - || proj_P p_k ||^2 = L_kk^2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from samerge.linalg.gram import gram
from samerge.linalg.triplets import Triplets

#: A component of which more than this is held brings next to nothing.
HELD = 0.9

#: Added to the Gram matrices, so that dependent columns can be factorised.
SMALL = 1e-9


def held(U: Tensor, V: Tensor) -> Tensor:
    """The share h of each component that those before it hold, (k,) in float64; the first has 0.

    Args:
        U: (d_out, k), columns of norm 1.
        V: (d_in, k), likewise.

    Example:
        >>> held(torch.eye(3)[:, [0, 1, 0]], torch.eye(3)[:, [0, 1, 0]]).round(decimals=6)
        tensor([0., 0., 1.], dtype=torch.float64)
    """
    one = torch.eye(U.shape[1], dtype=torch.float64, device=U.device)
    left, right = (1 - torch.linalg.cholesky(gram(X) + SMALL * one).diagonal().square() for X in (U, V))
    share: Tensor = (left * right).clamp(0, 1)
    return share


def independent(stack: Triplets, order: Tensor, count: int) -> Tensor:
    """The first `count` components of an order, but for those that the ones before them hold (h above `HELD`).

    Those come last: they are taken only where there are not enough others.

    Args:
        stack: U (d_out, R), V (d_in, R), columns of norm 1.
        order: (k,) long, numbers of components, the best first.
        count: how many are wanted; all where there are fewer.

    Example:
        >>> eye = torch.eye(3)
        >>> twice = Triplets(eye[:, [0, 0, 1]], torch.ones(3, dtype=torch.float64), eye[:, [0, 0, 1]], False)
        >>> independent(twice, torch.tensor([0, 1, 2]), 2), independent(twice, torch.tensor([0, 1, 2]), 3)
        (tensor([0, 2]), tensor([0, 1, 2]))
    """
    looked, total = min(count, len(order)), len(order)
    while looked < total or count < total:
        first = order[:looked]
        new = held(stack.U[:, first], stack.V[:, first]) <= HELD
        missing = count - int(new.sum())
        if missing <= 0 or looked == total:
            return torch.cat([first[new], first[~new]])[:count]
        looked = min(total, looked + max(missing, looked))
    return order
