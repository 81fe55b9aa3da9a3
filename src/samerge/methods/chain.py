"""The chain of `saliency` and `even`: balance, decorrelate, keep the r best of all adapters, one strength, weights.

At each layer that more than one adapter has, with tau_n = sum_k sigma_k p_k q_k^T of one norm each (the balance):

1. the polar factors of [P_1 .. P_N] and [Q_1 .. Q_N] give each triplet k of each adapter its own u_k, v_k (TSV-Merge,
   Gargiulo et al. 2025): orthonormal where the stack has full column rank, else the partial isometry of least norm;
2. the r triplets that rank first stay, all adapters together: by |w_n gamma_k eta_k| in `saliency`, by |w_n| sigma_k in
   `even`. Where the stack had not full column rank, one more polar factor makes what stays orthonormal;
3. all of them get one strength, the root mean square of the kept sigma_k, so that the norm before weights stays;
4. M = level * sum_k w_owner(k) u_k v_k^T.

A layer that one adapter alone has knows no conflict: its own update times its weight, truncated only where its rank is
above that of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samerge.linalg.canonical import canonical
from samerge.linalg.decorrelation import decorrelated
from samerge.linalg.sign_conflicts import conflict_among, sample_rows
from samerge.linalg.stack import apart
from samerge.linalg.stack import stacked as side_by_side
from samerge.linalg.triplets import Triplets, zero
from samerge.methods.method import MergedLayer, Share
from samerge.methods.problem import Part, Problem, Site
from samerge.options.kinds import share
from samerge.options.option import Options, option


@dataclass(frozen=True)
class ChainOptions(Options):
    """Options of `even`, and of `saliency`."""

    density: float | None = option(
        share(),
        None,
        "Share of all adapters' components that is kept in each layer, in place of the rank: 0.5 of three adapters of "
        "rank 16 makes 24.",
        told="as many as the rank",
    )


@dataclass(frozen=True)
class Stack:
    """The components of all adapters in a layer, side by side.

    Args:
        triplets: (P, sigma, Q) with their owners, R of them.
        places: (R,) the number of each among its adapter's own.
        weights: (R,) in float64, the adapter's weight.
    """

    triplets: Triplets
    places: Tensor
    weights: Tensor

    @property
    def sigma(self) -> Tensor:
        """The singular values, (R,) in float64."""
        return self.triplets.S

    @property
    def owners(self) -> Tensor:
        """(R,) the adapter of each."""
        assert self.triplets.owners is not None
        return self.triplets.owners


def stacked(parts: Mapping[int, Part], weights: tuple[float, ...]) -> Stack:
    """The triplets of several adapters, in the order of their numbers."""
    one = {n: parts[n].triplets for n in sorted(parts)}
    return Stack(
        side_by_side(one),
        torch.cat([torch.arange(t.rank, device=t.S.device) for t in one.values()]),
        torch.cat([torch.full_like(t.S, weights[n]) for n, t in one.items()]),
    )


def settled(parts: Mapping[int, Part], weights: tuple[float, ...]) -> dict[int, Part]:
    """The same updates by triplets, with a basis of their own where near-equal singular values leave it open."""
    if not any(part.triplets.rank for part in parts.values()):
        return dict(parts)
    stack = stacked(parts, weights)
    found = canonical(stack.triplets, stack.weights)
    own = apart(found)
    return {n: part.with_triplets(own[n]) if n in own else part for n, part in parts.items()}


def count_of(options: ChainOptions, problem: Problem, total: int) -> int:
    """How many of a layer's components are kept in the end."""
    if options.density is None:
        return min(total, problem.target)
    return max(1, round(options.density * total)) if total else 0


def chain_layer(
    problem: Problem, options: ChainOptions, ranked: Callable[[Site, Stack], Tensor]
) -> Callable[[Site, Mapping[int, Part]], MergedLayer]:
    """The function for one layer.

    Args:
        problem: the problem.
        options: its density.
        ranked: from a site and its stack the kept components, best first.
    """

    def layer(site: Site, parts: Mapping[int, Part]) -> MergedLayer:
        present = {n: part for n, part in parts.items() if part.triplets.rank}
        if len(present) < 2:
            return alone(site, parts, present, problem.weights_at(site))
        stack = stacked(present, problem.weights_at(site))
        kept = ranked(site, stack)
        (left, one), (right, other) = (decorrelated(X, kept) for X in (stack.triplets.U, stack.triplets.V))
        level = float(stack.sigma[kept].square().mean().sqrt())
        strengths = level * stack.weights[kept]
        update = Triplets(left.float(), strengths, right.float(), one and other, stack.owners[kept])
        # Those of the largest weight first; among equal ones the ranking stays.
        update = update.select(update.S.abs().argsort(descending=True, stable=True))
        rows = sample_rows(site.shape)
        found, looked = {}, []
        for n, part in parts.items():
            own = stack.places[kept[stack.owners[kept] == n]]
            t = part.triplets.select(own)
            total = float(part.triplets.S.square().sum())
            energy = float(t.S.square().sum()) / total if total else 1.0
            found[n] = Share(part.triplets.rank, tuple(sorted(own.tolist())), energy)
            looked.append((t.U[rows.to(t.U.device)] * t.S.to(t.U.dtype)) @ t.V.T)
        return MergedLayer(update, found, conflict=conflict_among(looked))

    return layer


def alone(
    site: Site, parts: Mapping[int, Part], present: Mapping[int, Part], weights: tuple[float, ...]
) -> MergedLayer:
    """A layer that one adapter alone changes: its own update times its weight."""
    shares = {n: Share(part.triplets.rank) for n, part in parts.items()}
    for n, part in present.items():
        own = part.triplets.scaled(weights[n])
        return MergedLayer(replace(own, owners=torch.full((own.rank,), n, device=own.S.device)), shares)
    return MergedLayer(zero(site.shape), shares)
