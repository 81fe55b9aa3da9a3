"""The chain of `saliency` and `even`: balance, decorrelate, keep the r best of all adapters, one strength, weights.

At each layer that more than one adapter has, with tau_n = sum_k sigma_k p_k q_k^T of one norm each (the balance):

1. the decorrelation of [P_1 .. P_N] and of [Q_1 .. Q_N] gives each triplet k of each adapter its own u_k, v_k
   (TSV-Merge, Gargiulo et al. 2025; `samerge.linalg.decorrelation`), orthonormal but for near-copies;
2. the r triplets that rank first stay, all adapters together: by |w_k gamma_k eta_k| in `saliency`, by |w_k| sigma_k in
   `even`. w_k is the weight of the adapter, but for twins (`samerge.linalg.twins`): of two copies one speaks, and of an
   adapter and its copy at the opposite weight none. One of which nine tenths are held by those before it is passed over
   (`samerge.linalg.independent`);
3. all of them get one strength, which makes k components of adapters of rank r 1.7 (k / r)^(1/4) times as large as one
   adapter; where one voice is alone (copies, or weights next to nothing) the root mean square of the kept sigma_k, so
   that the norm before weights stays; in between, what lies between;
4. M = level * sum_k w_k u_k v_k^T.

With `calibration` all of it is done to tau_n S, S the metric of the layer's inputs (`samerge.linalg.metric`), with a
strength of its own (`seen_loudness`), and M S^-1 comes out.

A layer that one adapter alone has knows no conflict: its own update times its weight, truncated only where its rank is
above that of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from samerge.linalg.canonical import canonical, has_own_basis
from samerge.linalg.decorrelation import Decorrelated, decorrelated
from samerge.linalg.metric import Metric
from samerge.linalg.sign_conflicts import Conflict, conflict_among, sample_rows
from samerge.linalg.stack import apart
from samerge.linalg.stack import stacked as side_by_side
from samerge.linalg.sums import Summed
from samerge.linalg.triplets import Triplets, zero
from samerge.linalg.twins import joined
from samerge.linalg.voices import several, voices
from samerge.methods.method import MergedLayer, Share
from samerge.methods.problem import Part, Problem, Site, taken_apart
from samerge.options.calibration import HELP, Calibration, calibration
from samerge.options.kinds import share
from samerge.options.option import Options, option

#: How many times as large as an adapter as many kept components as it has are, and the power of k / r with which that
#: grows. Measured: see docs/method.md.
LOUDNESS, GROWTH = 1.7, 1 / 4
#: The same where updates are seen in the metric of their inputs: as above of two adapters, a tenth more for each other
#: one, up to the most.
MOST_SEEN, GROWTH_SEEN = 2.0, 1 / 6


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
    calibration: Calibration | None = option(calibration(), None, HELP, told="no: the weights alone")


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

    @cached_property
    def products(self) -> tuple[Tensor, Tensor] | None:
        """P^T P and Q^T Q of all components, (R, R) in float64 by products in their precision; None where R > width."""
        t = self.triplets
        return ((t.U.T @ t.U).double(), (t.V.T @ t.V).double()) if t.rank <= min(t.shape) else None

    @cached_property
    def spoken(self) -> tuple[Tensor, Tensor]:
        """The weight with which each component speaks, and what is left of each (`samerge.linalg.twins`), (R,) both."""
        return joined(self.triplets, self.weights, self.products)

    @property
    def heard(self) -> Tensor:
        """(R,) the weight with which each component speaks: its adapter's, but for twins."""
        return self.spoken[0]

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
    seen = {n: part.seen for n, part in parts.items()}
    own = taken_apart(seen)
    if not all(has_own_basis(one.S) for one in own.values()):
        own = apart(canonical_stack(seen, weights).triplets)
    return {n: part.with_triplets(own[n]) if n in own else part for n, part in parts.items()}


def canonical_stack(parts: Mapping[int, Part], weights: tuple[float, ...]) -> Stack:
    """`stacked`, settled."""
    stack = stacked(parts, weights)
    return replace(stack, triplets=canonical(stack.triplets, stack.weights))


def count_of(options: ChainOptions, problem: Problem, total: int) -> int:
    """How many of a layer's components are kept in the end."""
    if options.density is None:
        return min(total, problem.target)
    return max(1, round(options.density * total)) if total else 0


def chain_layer(
    problem: Problem,
    options: ChainOptions,
    ranked: Callable[[Site, Stack], Tensor],
    settle: bool = False,
) -> Callable[[Site, Mapping[int, Part]], MergedLayer]:
    """The function for one layer.

    Args:
        problem: the problem.
        options: its density.
        ranked: from a site and its stack the kept components, best first.
        settle: whether the parts have not been settled yet.
    """

    def layer(site: Site, parts: Mapping[int, Part]) -> MergedLayer:
        merged = as_seen(site, {n: part.seen for n, part in parts.items()})
        metric = problem.metrics.get(site.module)
        return merged if metric is None else taken_back(merged, metric)

    def as_seen(site: Site, parts: Mapping[int, Part]) -> MergedLayer:
        present = {n: parts[n] for n, own in taken_apart(parts).items() if own.rank}
        if len(present) < 2:
            own = settled(present, problem.weights_at(site)) if settle else present
            return alone(site, parts, own, problem.weights_at(site))
        stack = (canonical_stack if settle else stacked)(present, problem.weights_at(site))
        kept = ranked(site, stack)
        kept = kept[stack.heard[kept] != 0]
        shares, conflict = _left_of(stack, kept, parts, sample_rows(site.shape), problem.metrics.get(site.module))
        if not len(kept):
            return MergedLayer(zero(site.shape), shares, conflict=conflict)
        products = stack.products or (None, None)
        left = decorrelated(stack.triplets.U, kept, products[0])
        right = decorrelated(stack.triplets.V, kept, products[1])
        loudness = seen_loudness(len(present)) if site.module in problem.metrics else (LOUDNESS, GROWTH)
        level = strength(stack.sigma, kept, len(present), _voices(stack, left, right), *loudness)
        strengths = level * stack.heard[kept]
        orthonormal = left.orthonormal and right.orthonormal
        update = Triplets(left.columns.float(), strengths, right.columns.float(), orthonormal, stack.owners[kept])
        # Those of the largest weight first; among equal ones the ranking stays.
        update = update.select(update.S.abs().argsort(descending=True, stable=True))
        return MergedLayer(update, shares, conflict=conflict, summed=_summed(stack, parts, left, right))

    return layer


def strength(
    sigma: Tensor,
    kept: Tensor,
    adapters: int,
    heard: float,
    loudness: float = LOUDNESS,
    growth: float = GROWTH,
) -> float:
    """The one strength of what is kept.

    With m the root mean square of the adapters' norms, r components an adapter and k kept ones,

        level^2 = (2 - v) rms(kept sigma)^2 + (v - 1) (loudness (k / r)^growth m)^2 / k

    between one and two voices v (`samerge.linalg.voices`), and the second term from two on: together they are then
    loudness (k / r)^growth m. Equal strengths in place of an adapter's own steep ones weaken what matters most to it,
    so loudness is above 1; but many adapters side by side would be far louder than any of them was in training. What
    one voice says alone keeps its size.

    Args:
        sigma: (R,) of all components of all adapters.
        kept: (k,) long, those that stay.
        adapters: how many there are.
        heard: v.
        loudness: of as many components as an adapter has.
        growth: with the number of components.

    Example:
        >>> pair = torch.tensor([4.0, 3.0, 4.0, 3.0]).double()  # two adapters of rank 2, of norm 5
        >>> [round(strength(pair, torch.tensor([0, 1]), 2, v) * 2**0.5 / 5, 3) for v in (1.0, 1.5, 2.0)]
        [1.0, 1.395, 1.7]
    """
    alone = float(sigma[kept].square().mean())
    more = len(kept) * adapters / len(sigma)  # k / r
    loud = loudness**2 * float(sigma.square().sum()) / adapters * more ** (2 * growth) / len(kept)
    share = min(1.0, max(0.0, heard - 1))
    return math.sqrt((1 - share) * alone + share * loud)


def seen_loudness(adapters: int) -> tuple[float, float]:
    """Loudness and growth where updates are seen in the metric of their inputs.

    Example:
        >>> [round(seen_loudness(n)[0], 1) for n in (2, 3, 5, 9)]
        [1.7, 1.8, 2.0, 2.0]
    """
    return min(MOST_SEEN, LOUDNESS + (adapters - 2) / 10), GROWTH_SEEN


def taken_back(merged: MergedLayer, metric: Metric) -> MergedLayer:
    """A layer that was merged in a metric S of its inputs, as it is without: M S^-1.

    The sums of the adapters that it knows are those of tau S, so they are left out.
    """
    one = merged.update
    V = metric.divided(one.V.T).T
    norms = torch.linalg.vector_norm(V, dim=0)
    update = Triplets(one.U, one.S * norms.double(), V / norms, False, one.owners)
    return replace(merged, update=update, summed=None)


def _voices(stack: Stack, left: Decorrelated, right: Decorrelated) -> float:
    """How many voices there are, up to two."""
    loads = stack.weights * stack.sigma * stack.spoken[1]
    if several(stack.triplets, loads, left.largest * right.largest):
        return 2.0
    return voices(stack.triplets, loads, left.gram, right.gram)


def _left_of(
    stack: Stack, kept: Tensor, parts: Mapping[int, Part], rows: Tensor, metric: Metric | None
) -> tuple[dict[int, Share], Conflict]:
    """What of each adapter is kept, and the conflicts of signs among what is, on some rows."""
    t, looked = stack.triplets, []
    lines = t.U[rows.to(t.U.device)] * t.S.to(t.U.dtype)
    columns = t.V if metric is None else metric.divided(t.V.T).T
    owners, squares, places = stack.owners.tolist(), t.S.square().tolist(), stack.places.tolist()
    own: dict[int, list[int]] = {n: [] for n in parts}
    for k in sorted(kept.tolist()):
        own[owners[k]].append(k)
    totals = dict.fromkeys(parts, 0.0)
    for n, square in zip(owners, squares, strict=True):
        totals[n] += square
    found = {}
    for n, part in parts.items():
        energy = sum(squares[k] for k in own[n]) / totals[n] if totals[n] else 1.0
        found[n] = Share(part.triplets.rank, tuple(places[k] for k in own[n]), energy)
        looked.append(lines[:, own[n]] @ columns[:, own[n]].T)
    return found, conflict_among(looked)


def _summed(stack: Stack, parts: Mapping[int, Part], left: Decorrelated, right: Decorrelated) -> Summed | None:
    """The adapters' updates for the singular values of their sums, from the Gram matrices of the decorrelation."""
    if left.root is None or right.gram is None:
        return None
    places = {n: place for place, n in enumerate(parts)}
    owners = torch.tensor([places[n] for n in stack.owners.tolist()])
    return Summed(left.root, right.gram, stack.sigma, owners)


def alone(
    site: Site, parts: Mapping[int, Part], present: Mapping[int, Part], weights: tuple[float, ...]
) -> MergedLayer:
    """A layer that one adapter alone changes: its own update times its weight."""
    shares = {n: Share(part.triplets.rank) for n, part in parts.items()}
    for n, part in present.items():
        own = part.triplets.scaled(weights[n])
        return MergedLayer(replace(own, owners=torch.full((own.rank,), n, device=own.S.device)), shares)
    return MergedLayer(zero(site.shape), shares)
