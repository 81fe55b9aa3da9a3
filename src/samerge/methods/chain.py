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

from samerge.linalg.sign_conflicts import conflict_among, sample_rows
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
    """The triplets of all adapters in a layer, side by side.

    Args:
        U: P, (d_out, R).
        S: sigma, (R,) in float64.
        V: Q, (d_in, R).
        owners: (R,) the adapter of each.
        places: (R,) its number among that adapter's own.
        weights: (R,) in float64, the adapter's weight.
    """

    U: Tensor
    S: Tensor
    V: Tensor
    owners: Tensor
    places: Tensor
    weights: Tensor


def stacked(parts: Mapping[int, Part], weights: tuple[float, ...]) -> Stack:
    """The triplets of several adapters, in the order of their numbers."""
    order = sorted(parts)
    one = [parts[n].triplets for n in order]
    device = one[0].S.device
    return Stack(
        torch.cat([t.U for t in one], dim=1),
        torch.cat([t.S for t in one]),
        torch.cat([t.V for t in one], dim=1),
        torch.cat([torch.full((t.rank,), n, device=device) for n, t in zip(order, one, strict=True)]),
        torch.cat([torch.arange(t.rank, device=device) for t in one]),
        torch.cat([torch.full_like(t.S, weights[n]) for n, t in zip(order, one, strict=True)]),
    )


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
            return alone(site, parts, present, problem.weights)
        stack = stacked(present, problem.weights)
        kept = ranked(site, stack)
        left, right = decorrelated(stack.U, kept), decorrelated(stack.V, kept)
        level = float(stack.S[kept].square().mean().sqrt())
        update = Triplets(left, level * stack.weights[kept], right, True, stack.owners[kept])
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


#: Singular values of a stack below this share of the largest do not exist.
CUTOFF = 1e-6


def decorrelated(stack: Tensor, kept: Tensor) -> Tensor:
    """The kept columns of the polar factor of a stack of vectors, orthonormal.

    Args:
        stack: (d, R).
        kept: (r,) numbers of columns, r at most d.

    Returns:
        (d, r) in the stack's dtype.
    """
    columns, full = polar(stack, kept)
    return columns if full else polar(columns, torch.arange(len(kept), device=kept.device))[0]


def polar(stack: Tensor, columns: Tensor) -> tuple[Tensor, bool]:
    """Some columns of the partial isometry of least norm that is nearest to a matrix, and whether its rank is full."""
    wide = stack.double()
    gram = wide.T @ wide if stack.shape[1] <= stack.shape[0] else wide @ wide.T
    values, vectors = torch.linalg.eigh(gram)
    alive = values > CUTOFF**2 * values[-1].clamp_min(0)
    basis = vectors[:, alive]
    inverse = basis / values[alive].sqrt()
    if stack.shape[1] <= stack.shape[0]:
        found = wide @ (inverse @ basis[columns].T)
    else:
        found = inverse @ (basis.T @ wide[:, columns])
    return found.to(stack.dtype), bool(alive.all()) and stack.shape[1] <= stack.shape[0]
