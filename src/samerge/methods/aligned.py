"""TIES on aligned representations: tau_i = U X_i V^T with U and V common to all adapters of a layer.

    M = U ties(w_1 X_1, ..., w_N X_N) V^T

What U, V and X_i are is the method's. TIES trims to the top `density` of each adapter over all layers ("adapter") or in
each ("layer"), as the method was published. It is blind to the signs of the columns of U and
V. M has as many components as X_i has rows, and is not truncated unless a rank asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from samerge.linalg.factors import LoraFactors
from samerge.linalg.triplets import Triplets, from_factors, zero
from samerge.methods.memory import check_memory
from samerge.methods.method import Begun, MergedLayer, Share
from samerge.methods.problem import Part, Problem, Site, iterate, taken_apart
from samerge.methods.rows import Layer, merged_with_shares
from samerge.methods.ties import trimmed


@dataclass(frozen=True)
class Aligned:
    """The updates of one layer as U X_i V^T.

    Args:
        left: U, (d_out, m), orthonormal.
        values: X_i, (m, n) each, as factors, by number of the adapter.
        right: V, (d_in, n), orthonormal; None for the identity.
    """

    left: Tensor
    values: Mapping[int, LoraFactors]
    right: Tensor | None

    def lift(self, merged: Tensor) -> Triplets:
        """U merged V^T in float32, without the rows of `merged` that are zero."""
        alive = merged.any(dim=1)
        rows = merged[alive].double()
        whole = rows if self.right is None else rows @ self.right.T
        return from_factors(LoraFactors(A=whole.float(), B=self.left[:, alive].float()))


#: From the triplets of a layer's adapters that are not zero, the output rank and the options, their alignment.
Align = Callable[[Mapping[int, Triplets], int, Any], Aligned]


def aligned_ties(align: Align, over: str) -> Callable[[Problem, Any], Begun]:
    """TIES on the representations that `align` gives, trimmed over each "adapter" or each "layer"."""

    def begin(problem: Problem, options: Any) -> Begun:
        check_memory(problem, held=3)
        found: dict[str, tuple[Layer, Aligned]] = {}
        for site in iterate(problem, "aligning"):
            parts = problem.parts(site, hold=True)
            present = {n: own for n, own in taken_apart(parts).items() if own.rank}
            if present:
                one = align(present, problem.target, options)
                weights = problem.weights_at(site)
                weighted = {n: LoraFactors(x.A, x.B * weights[n]) for n, x in one.values.items()}
                names = {n: problem.names[n] for n in weighted}
                shape = next(iter(weighted.values())).shape
                found[site.module] = Layer(site.module, shape, names, weighted), one
        combine = trimmed([layer for layer, _ in found.values()], options, over)

        def merged(site: Site, parts: Mapping[int, Part]) -> MergedLayer:
            shares = {n: Share(part.rank) for n, part in parts.items()}
            if site.module not in found:
                return MergedLayer(zero(site.shape), shares)
            layer, one = found.pop(site.module)
            total, kept = merged_with_shares(layer, combine, problem.weights_at(site))
            shares |= {n: replace(share, components=parts[n].rank, elements=None) for n, share in kept.items()}
            return MergedLayer(one.lift(total), shares)

        return Begun(merged)

    return begin


def held(core: Triplets) -> LoraFactors:
    """A small core as factors in float32."""
    return LoraFactors(A=core.V.T.float(), B=(core.U * core.S).float())
