"""`dc-merge`: tasks of even spectra, brought into one cover space and merged there block by block (DC-Merge).

Zhang et al., CVPR 2026, arXiv 2603.06242, as its authors' code has it. With tau_i = U_i S_i V_i^T, P and Q the polar
factors of [U_1 ... U_N] and [V_1 ... V_N] (`samerge.linalg.polar`), and t_i the mean of the singular values S_i
(smoothing "average" of the authors' code):

    M_i = w_i t_i P^T U_i V_i^T Q                      its `density` largest entries are kept, the others become 0
    M   = the mean of the M_i that have the sign of their sum, entry by entry (for "sum" the sum of all)
    T   = P (M * blocks) Q^T

where `blocks` are the entries (k, l) of which both belong to the same adapter. With `density` 0.001, the value of the
authors' code, an adapter keeps r entries where 8 adapters of rank 16 meet, and 4 where 4 do: give more there.

Cost: that of `tsv`, and R^2 r_i operations for each adapter. Near-equal singular values make its entries arbitrary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samerge.linalg.order_statistics import largest_in
from samerge.linalg.polar import polar
from samerge.linalg.stack import stacked
from samerge.linalg.triplets import Triplets
from samerge.methods.by_triplets import by_triplets
from samerge.methods.method import Method
from samerge.options.kinds import share, word
from samerge.options.option import Options, option

#: Entries that differ by a smaller share are equal: those of one adapter often are.
_SAME = 1e-6


@dataclass(frozen=True)
class DcMergeOptions(Options):
    """Options of `dc-merge`."""

    density: float = option(share(), 0.001, "Share of its entries in the cover space that each adapter keeps.")
    aggregate: str = option(
        word("ties", "sum"), "ties", "How entries meet: the mean of those of the elected sign, or the sum."
    )


def dc_merge(
    parts: Mapping[int, Triplets], weights: Mapping[int, float], count: int, options: DcMergeOptions
) -> tuple[Triplets, Mapping[int, float]]:
    """The merged update, each adapter's block by its singular triplets."""
    stack = stacked(parts)
    P, Q = polar(stack.U), polar(stack.V)
    left, right = (factor.columns.T @ of.double() for factor, of in ((P, stack.U), (Q, stack.V)))  # (R, R) each
    ends = torch.tensor([part.rank for part in parts.values()]).cumsum(0).tolist()
    blocks = [slice(end - part.rank, end) for end, part in zip(ends, parts.values(), strict=True)]
    votes = [_Votes(part.rank, left.device) for part in parts.values()]
    for (n, part), own in zip(parts.items(), blocks, strict=True):
        entries = left[:, own] * (weights[n] * float(part.S.mean())) @ right[:, own].T  # M_i
        entries = trimmed(entries, max(1, int(options.density * entries.numel())))
        for block, vote in zip(blocks, votes, strict=True):
            vote.add(entries[block, block])
    dtype, found = stack.U.dtype, []
    for block, vote in zip(blocks, votes, strict=True):
        u, s, vh = torch.linalg.svd(vote.merged(options.aggregate))
        U, V = (P.columns[:, block] @ u).to(dtype), (Q.columns[:, block] @ vh.T).to(dtype)
        found.append(Triplets(U, s, V, P.full and Q.full))
    merged = stacked(dict(zip(parts, found, strict=True)))
    merged = replace(merged, orthonormal=P.full and Q.full)
    return merged.select(merged.S.argsort(descending=True, stable=True)).compact(), {}


def trimmed(entries: Tensor, count: int) -> Tensor:
    """The `count` largest entries; those that equal the last of them to rounding stay with it."""
    sizes = entries.abs()
    [least] = largest_in(sizes.flatten(), [count])
    return torch.where(sizes >= (1 - _SAME) * least, entries, 0.0)


class _Votes:
    """Sums and numbers of the positive and of the negative entries of a block."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.sums = torch.zeros(2, size, size, dtype=torch.float64, device=device)
        self.counts = torch.zeros_like(self.sums)

    def add(self, entries: Tensor) -> None:
        for sign, (total, number) in enumerate(zip(self.sums, self.counts, strict=True)):
            of = entries > 0 if sign == 0 else entries < 0
            total += torch.where(of, entries, 0.0)
            number += of

    def merged(self, aggregate: str) -> Tensor:
        total = self.sums.sum(0)
        if aggregate == "sum":
            return total
        means = self.sums / self.counts.clamp_min(1)
        return torch.where(total > 0, means[0], torch.where(total < 0, means[1], 0.0))


METHOD = Method("dc-merge", by_triplets(dc_merge), DcMergeOptions, exact=True)
