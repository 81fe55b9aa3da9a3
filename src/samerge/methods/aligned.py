"""TIES on aligned representations: tau_i = U X_i V^T with U and V common to all experts of a layer.

    M = U ties(w_1 X_1, ..., w_N X_N) V^T

What U, V and X_i are is the method's. TIES trims to the top `density` of each expert over all layers (trim="adapter")
or in each; which of them is the method's as published, and an option. It is blind to the signs of the columns of U and
V. M has as many components as X_i has rows or columns, and
is not truncated unless `svd_rank` asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from samerge.linalg.core_space import CoreSpace, core_space
from samerge.linalg.factors import LoraFactors
from samerge.linalg.triplets import singular, zero
from samerge.methods.method import Begun, MergedLayer, Share
from samerge.methods.problem import Part, Problem, Site, iterate
from samerge.methods.rows import Layer, merged_with_shares
from samerge.methods.ties import prepare


@dataclass(frozen=True)
class Aligned:
    """The updates of one layer as U X_i V^T.

    Args:
        left: U, (d_out, m).
        values: X_i, (m, n) each, as factors.
        right: V^T, (n, d_in); None for the identity.
    """

    left: Tensor
    values: tuple[LoraFactors, ...]
    right: Tensor | None

    def lift(self, merged: Tensor) -> LoraFactors:
        """U merged V^T in float32."""
        if self.right is None:
            return LoraFactors(A=merged.float(), B=self.left.float())
        return LoraFactors(A=(merged @ self.right).float(), B=self.left.float())


#: From the updates of a layer, the output rank and the options, their alignment.
Align = Callable[[CoreSpace, int, Any], Aligned]


def aligned_ties(align: Align) -> Callable[[Problem, Any], Begun]:
    """TIES on the representations that `align` gives."""

    def begin(problem: Problem, options: Any) -> Begun:
        found: dict[str, tuple[Layer, Aligned]] = {}
        for site in iterate(problem, "aligning"):
            parts = problem.parts(site, hold=True)
            if any(part.norm > 0 for part in parts.values()):
                space = core_space([part.factors for part in parts.values()])
                one = align(space, problem.target, options)
                found[site.module] = _layer(problem, site, list(parts), one), one
        combine = prepare([layer for layer, _ in found.values()], options)

        def merged(site: Site, parts: Mapping[int, Part]) -> MergedLayer:
            if site.module not in found:
                return MergedLayer(zero(site.shape), {n: Share(part.rank) for n, part in parts.items()})
            layer, one = found.pop(site.module)
            total, shares = merged_with_shares(layer, combine, problem.weights)
            own = {n: replace(share, components=parts[n].rank, elements=None) for n, share in shares.items()}
            return MergedLayer(singular(one.lift(total)), own)

        return Begun(merged)

    return begin


def held(matrix: Tensor) -> LoraFactors:
    """A matrix as factors whose product is itself, bit by bit."""
    return LoraFactors(A=torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device), B=matrix)


def _layer(problem: Problem, site: Site, experts: list[int], one: Aligned) -> Layer:
    parts = {
        n: LoraFactors(value.A, value.B * problem.weights[n]) for n, value in zip(experts, one.values, strict=True)
    }
    return Layer(site.module, one.values[0].shape, {n: problem.names[n] for n in experts}, parts)
