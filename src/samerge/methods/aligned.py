"""TIES on aligned representations: tau_i = U X_i V^T with U and V common to all experts of a layer.

    M = U ties(w_1 X_1, ..., w_N X_N) V^T

What U, V and X_i are is the method's. TIES trims to the top `density` of each expert over all layers (trim="adapter")
or in each; which of them is the method's as published, and an option. It is blind to the signs of the columns of U and
V. M has as many components as X_i has rows or columns, and
is not truncated unless `svd_rank` asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samerge.linalg.core_space import CoreSpace, core_space
from samerge.linalg.factors import LoraFactors, norm
from samerge.methods.exact import empty
from samerge.methods.problem import MergedLayer, Method, Outcome, Problem, Share, Site, iterate
from samerge.methods.rows import Layer, merged_with_shares
from samerge.methods.ties import TiesParameters, prepare_ties
from samerge.options.merge_options import MergeOptions


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


@dataclass(frozen=True)
class CoreTiesParameters(TiesParameters):
    """Options of `core-ties`: those of `ties`, trimmed by layer."""

    trim: str = "layer"


#: From the updates of a layer and the output rank, their alignment.
Align = Callable[[CoreSpace, int, MergeOptions], Aligned]


def aligned_ties(align: Align) -> Method:
    """TIES on the representations that `align` gives."""

    def run(problem: Problem, options: MergeOptions) -> Outcome:
        rank = options.svd_rank or problem.rank
        outcome: dict[str, MergedLayer] = {}
        found: list[tuple[Layer, Aligned, dict[int, LoraFactors]]] = []
        for site in iterate(problem, "aligning"):
            parts = problem.factors(site)
            if any(bool(part.A.any() and part.B.any()) for part in parts.values()):
                one = align(core_space(list(parts.values())), rank, options)
                found.append((_layer(problem, site, list(parts), one), one, parts))
            else:
                shares = {n: Share(part.rank, None, 0.0, 1.0) for n, part in parts.items()}
                outcome[site.module] = MergedLayer(empty(site.shape), shares)
        combine = prepare_ties([layer for layer, _, _ in found], options)
        with problem.progress.task("merging", len(found)) as advance:
            for layer, one, parts in found:
                merged, shares = merged_with_shares(layer, combine, problem.weights)
                outcome[layer.module] = MergedLayer(one.lift(merged), _own(shares, parts))
                advance(1)
        return Outcome(outcome)

    return run


def by_knots(space: CoreSpace, rank: int, options: MergeOptions) -> Aligned:
    """`knots-ties` (Stoica et al. 2024): [tau_1 ... tau_N] = U S [V_1 ... V_N], one SVD for all; X_i = S V_i, V = 1.

    Found in the core space, where it is an (R, N R) problem: S V_i = U^T tau_i. Published density 0.2 to 0.3.
    """
    canonical = space.canonical()
    turned = canonical.right.T  # (k_a, d_in)
    return Aligned(canonical.left, tuple(LoraFactors(A=turned, B=core) for core in canonical.cores), None)


def by_cores(space: CoreSpace, rank: int, options: MergeOptions) -> Aligned:
    """`core-ties`: U as `knots-ties` has it, V the right singular vectors of [tau_1; ...; tau_N], X_i = U^T tau_i V.

    So the cores depend on nothing but the updates. TIES in the core space is another method than `ties`. It trims each
    layer by itself, as the core space's authors do.
    """
    canonical = space.canonical()
    return Aligned(canonical.left, tuple(held(core) for core in canonical.cores), canonical.right.T)


def held(matrix: Tensor) -> LoraFactors:
    """A matrix as factors whose product is itself, bit by bit."""
    return LoraFactors(A=torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device), B=matrix)


def _layer(problem: Problem, site: Site, experts: list[int], one: Aligned) -> Layer:
    parts = {
        n: LoraFactors(value.A, value.B * problem.weights[n]) for n, value in zip(experts, one.values, strict=True)
    }
    return Layer(site.module, one.values[0].shape, {n: problem.names[n] for n in experts}, parts)


def _own(shares: dict[int, Share], parts: dict[int, LoraFactors]) -> dict[int, Share]:
    """The shares with the rank and norm of each expert's own update."""
    return {
        n: replace(share, components=parts[n].rank, norm=float(norm(parts[n])), elements=None)
        for n, share in shares.items()
    }
