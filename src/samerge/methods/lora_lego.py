"""`lora-lego`: cluster the rank-1 components of all adapters, as trained, to rank of them (Zhao et al. 2024).

A unit is (a_k, b_k), a row of A_i and the column of w_i s_i B_i that belongs to it. k-means of the R units, as vectors
[a_k; b_k], to `rank` clusters (by default the largest source rank); each centroid is rescaled to the mean norm of its
members; M = sum_c b_c a_c^T.

The units are those of the factors as trained, so the result depends on the gauge, as published. k-means by Lloyd's
algorithm from k-means++ starts, the best of ten, seeded; in the Gram matrix of the units, O(R^2) a step. With as
many clusters as units it is the weighted sum. A later reimplementation multiplies M by sqrt(R / rank); here that is not
applied, `scaling` can do it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from samerge.linalg.factors import LoraFactors, concatenate
from samerge.linalg.triplets import from_factors, zero
from samerge.methods.chance import SeedOptions
from samerge.methods.memory import check_memory
from samerge.methods.method import Begun, MergedLayer, Method, Share
from samerge.methods.problem import Part, Problem, Site

#: Starts of k-means; the best one counts.
_RESTARTS = 10

#: Lloyd's steps at most.
_STEPS = 300


def begin(problem: Problem, options: SeedOptions) -> Begun:
    """Cluster the units of every layer."""
    check_memory(problem)

    def layer(site: Site, parts: Mapping[int, Part]) -> MergedLayer:
        own = {n: part.factors.existing() for n, part in parts.items()}
        shares = {n: Share(factors.rank) for n, factors in own.items()}
        if not own:
            return MergedLayer(zero(site.shape), shares)
        weights = problem.weights_at(site)
        units = concatenate(list(own.values()), [weights[n] for n in own])
        if units.rank > problem.target:
            gram = units.A.double() @ units.A.double().T + units.B.double().T @ units.B.double()
            units = centroids(units, cluster(gram, problem.target, options.seed, _RESTARTS))
        return MergedLayer(from_factors(units), shares)

    return Begun(layer)


def centroids(units: LoraFactors, labels: Tensor) -> LoraFactors:
    """The mean unit of every cluster, as long as its members are on the mean.

    Args:
        units: (a_k, b_k).
        labels: (R,) the cluster of every unit, 0 to the number of clusters - 1, none empty.
    """
    members = torch.nn.functional.one_hot(labels).double().T  # (k, R)
    A, B = units.A.double(), units.B.double()
    sizes = members.sum(dim=1)
    lengths = (A.square().sum(dim=1) + B.square().sum(dim=0)).sqrt()
    a, b = (members @ A) / sizes[:, None], (B @ members.T) / sizes
    now = (a.square().sum(dim=1) + b.square().sum(dim=0)).sqrt()
    factor = torch.where(now > 0, (members @ lengths) / sizes / now.clamp_min(torch.finfo(now.dtype).tiny), 0.0)
    return LoraFactors((a * factor[:, None]).to(units.A.dtype), (b * factor).to(units.B.dtype))


def cluster(gram: Tensor, count: int, seed: int, restarts: int) -> Tensor:
    """k-means from inner products alone.

    Args:
        gram: (R, R) of the points, float64.
        count: clusters, at most R.
        seed: of the starts.
        restarts: how many starts.

    Returns:
        (R,) labels, numbered by the first point of each cluster; every cluster has a point.
    """
    generator = torch.Generator().manual_seed(seed)
    by_length = gram.diagonal().argsort(stable=True).cpu()  # the starts must not depend on the points' order
    gram = gram.cpu()[by_length][:, by_length]
    points = gram.diagonal()
    apart = (points[:, None] + points - 2 * gram).clamp_min(0)
    best, least = torch.zeros(len(gram), dtype=torch.long), math.inf
    for _ in range(restarts):
        labels = apart[:, _start(apart, count, generator)].argmin(dim=1)
        for _ in range(_STEPS):
            labels = _filled(labels, count, apart)
            far = _distances(gram, labels, count)
            new = far.argmin(dim=1)
            if torch.equal(new, labels):
                break
            labels = new
        labels = _filled(labels, count, apart)
        cost = float(_distances(gram, labels, count).gather(1, labels[:, None]).sum())
        if cost < least * (1 - 1e-12):
            best, least = labels, cost
    best = best[by_length.argsort()]
    order = {int(label): place for place, label in reversed(list(enumerate(dict.fromkeys(best.tolist()))))}
    return torch.tensor([order[label] for label in best.tolist()])


def _start(apart: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """k-means++: each next centre at random, in proportion to the squared distance from the nearest one."""
    chosen = [int(torch.randint(len(apart), (1,), generator=generator))]
    while len(chosen) < count:
        nearest = apart[:, chosen].amin(dim=1)
        nearest[chosen] = 0
        if not bool(nearest.sum() > 0):  # what is left coincides with centres
            nearest = torch.ones_like(nearest)
            nearest[chosen] = 0
        chosen.append(int(torch.multinomial(nearest, 1, generator=generator)))
    return chosen


def _distances(gram: Tensor, labels: Tensor, count: int) -> Tensor:
    """(R, k) squared distances from the means of the clusters."""
    means = torch.nn.functional.one_hot(labels, count).double()
    means /= means.sum(dim=0)
    cross = gram @ means
    return gram.diagonal()[:, None] - 2 * cross + (means * cross).sum(dim=0)


def _filled(labels: Tensor, count: int, apart: Tensor) -> Tensor:
    """An empty cluster gets the point that is farthest from the others of its own."""
    labels = labels.clone()
    for label in range(count):
        if not bool((labels == label).any()):
            together = (labels[:, None] == labels).double()
            spread = (apart * together).sum(dim=1) / together.sum(dim=1)
            spread[together.sum(dim=1) < 2] = -1
            labels[int(spread.argmax())] = label
    return labels


METHOD = Method("lora-lego", begin, SeedOptions)
