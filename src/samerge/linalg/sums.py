"""The singular values of weighted sums of low-rank updates, from the Gram matrices of their components.

T = sum_n c_n tau_n = B diag(c) A,   B^T B = K K^T,   sigma(T)^2 = eigenvalues of K^T diag(c) A A^T diag(c) K
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Summed:
    """Several updates of one linear map, as far as the singular values of their sums need them.

    Args:
        root: K, (R, k) in float64, K K^T = B^T B of the components b_k.
        gram: A A^T, (R, R) in float64, of the components a_k.
        loads: (R,) what each component b_k a_k^T is multiplied with, in float64.
        owners: (R,) the place of its update.
    """

    root: Tensor
    gram: Tensor
    loads: Tensor
    owners: Tensor

    def squares(self, scales: Sequence[float]) -> list[float]:
        """The squared singular values of sum_n c_n tau_n, descending: the first r add up to ||T_r||^2.

        With c_n = sign(w_n) / (N ||tau_n||), ||tau_n|| over all layers, <M, T> is the mean cosine times ||M||. By the
        theorem of Eckart and Young the largest that the mean cosine can be at rank r is the root of
        sum_l ||T_r^l||^2.

        Args:
            scales: c_n, by place.
        """
        if not len(self.loads):
            return []
        c = torch.tensor(list(scales), dtype=torch.float64, device=self.loads.device)
        root = self.root * (self.loads * c[self.owners.to(c.device)])[:, None]
        found: list[float] = torch.linalg.eigvalsh(root.T @ self.gram @ root).flip(0).clamp_min(0).tolist()
        return found
