"""What a merge method is given: adapters of one base, brought together, one linear map at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from samerge.adapters import AdaptedModule
from samerge.adapters.layouts import Layout
from samerge.graph import FlowGraph, Weight
from samerge.graph.widths import local_graph
from samerge.linalg.factors import LoraFactors, norm
from samerge.linalg.metric import Metric
from samerge.linalg.triplets import Triplets, singular, singular_of
from samerge.options.module_names import expert_of
from samerge.parallel.processes import Group
from samerge.parallel.progress import Progress
from samerge.parallel.shared_work import everywhere, own, sharers
from samerge.weights import WeightSource

#: The largest factor by which the balance makes an adapter stronger; one that would need more is probably broken.
MOST_BALANCE = 10.0


@dataclass(frozen=True)
class Site:
    """One linear map of the base that at least one adapter changes.

    Args:
        module: its name in the merged adapter.
        key: its weight in the base, as `Weight.key` has it; None when no base was given.
        layout: how PEFT stores its factors.
        shape: (out, in).
        experts: for the number of each adapter that has it, its factors.
        inside: whether it takes part in the flow graph.
        owner: with several processes, the one that merges it and holds its factors; None where all do.
        factors: what the adapters' weights are multiplied with here, by number; 1 where it is not said.
    """

    module: str
    key: str | None
    layout: Layout
    shape: tuple[int, int]
    experts: Mapping[int, AdaptedModule]
    inside: bool = False
    owner: int | None = None
    factors: Mapping[int, float] = field(default_factory=dict)


def each_alone(sites: Iterable[Site]) -> FlowGraph:
    """The graph in which each of some sites is a layer by itself; those of which no weight is known are left out."""
    keyed = ((*expert_of(site.key), site.layout.transposed) for site in sites if site.key is not None)
    return local_graph(Weight("", "", tensor, transposed, expert) for tensor, expert, transposed in keyed)


@dataclass(frozen=True)
class Part:
    """One adapter's update at a site, read once.

    Args:
        factors: its components as trained, in float32 on the merge's device, scale and balance folded into B.
        balance: what its update was multiplied with by the balance.
        turned: the same as the merge is to see it, where that is in the metric of the inputs.
    """

    factors: LoraFactors
    balance: float = 1.0
    turned: Part | None = None

    @property
    def seen(self) -> Part:
        """The update as the merge sees it: itself, or in the metric of the inputs."""
        return self if self.turned is None else self.turned

    def within(self, metric: Metric) -> Part:
        """The same update, seen in a metric of its inputs, tau S."""
        return replace(self, turned=Part(LoraFactors(metric.times(self.factors.A), self.factors.B), self.balance))

    @cached_property
    def triplets(self) -> Triplets:
        """Its singular triplets, those that exist."""
        return singular(self.factors)

    def with_triplets(self, triplets: Triplets) -> Part:
        """The same update by these triplets, (sigma_k p_k) q_k^T, in place of the factors that it was trained by.

        They are those of what is seen of it.
        """
        if self.turned is not None:
            return replace(self, turned=self.turned.with_triplets(triplets))
        rows = triplets.V.T.contiguous()
        part = Part(LoraFactors(rows, triplets.U * triplets.S.to(triplets.U.dtype)), self.balance)
        part.__dict__["triplets"] = replace(triplets, V=rows.T)  # a view: held once
        return part

    def components(self, index: Tensor) -> LoraFactors:
        """Some of the components of a part by triplets, in their order."""
        return self.factors if len(index) == self.rank else self.factors.select(index.to(self.factors.A.device))

    @cached_property
    def norm(self) -> float:
        """Frobenius norm, after the balance."""
        return float(norm(self.factors)) if self.known is None else self.known.norm

    @property
    def known(self) -> Triplets | None:
        """Its triplets, if somebody has asked for them already."""
        return self.__dict__.get("triplets")

    @property
    def rank(self) -> int:
        """Number of its components as trained."""
        return self.factors.rank

    def times(self, factor: float) -> Part:
        """The part balanced by a positive factor."""
        part = Part(LoraFactors(self.factors.A, self.factors.B * factor), self.balance * factor)
        if self.known is not None:
            part.__dict__["triplets"] = self.known.scaled(factor)
        return part


def taken_apart(parts: Mapping[int, Part]) -> dict[int, Triplets]:
    """The triplets of several adapters' updates, those of one shape in one call."""
    wanted = [part for part in parts.values() if part.known is None]
    for part, found in zip(wanted, singular_of([part.factors for part in wanted]), strict=True):
        part.__dict__["triplets"] = found
    return {n: part.triplets for n, part in parts.items()}


@dataclass(frozen=True)
class Problem:
    """Several adapters of one base, brought together.

    Args:
        names: the adapters, in the user's order.
        weights: one for each.
        sites: the adapted maps, sorted by module.
        rank: the largest rank of any adapter at any site.
        source: the base weights, None for methods that do not read them.
        graph: the flow graph, None likewise, or where the base's family is not known.
        device: where to compute.
        progress: where to report progress.
        limit: rank of the result where it is limited.
        balance: "none", or "norm", in each layer.
        held: parts that were read already and will be wanted again, by module.
        sizes: norms of the adapters' updates as trained, by module, where they are known already.
        metrics: by module, in which metric of its inputs the updates are seen, for methods that do; else as they are.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    sites: tuple[Site, ...]
    rank: int
    source: WeightSource | None
    graph: FlowGraph | None
    device: torch.device
    progress: Progress
    limit: int | None = None
    balance: str = "none"
    held: dict[str, dict[int, Part]] = field(default_factory=dict, repr=False, compare=False)
    sizes: dict[str, dict[int, float]] = field(default_factory=dict, repr=False, compare=False)
    metrics: Mapping[str, Metric] = field(default_factory=dict, repr=False, compare=False)

    @property
    def own(self) -> tuple[Site, ...]:
        """The sites that this process merges: all of them, unless several processes share them out."""
        return own(self.sites)

    @property
    def target(self) -> int:
        """Rank of the result: as limited, or the largest of any adapter."""
        return self.limit or self.rank

    @property
    def group(self) -> Group:
        """The processes that share the sites out; this one alone where all do everything."""
        return sharers(self.sites)

    def weights_at(self, site: Site) -> tuple[float, ...]:
        """The adapters' weights at a site; those of weight 0 are 0 everywhere."""
        return tuple(weight * site.factors.get(n, 1.0) for n, weight in enumerate(self.weights))

    def parts(self, site: Site, hold: bool = False) -> dict[int, Part]:
        """The updates of the adapters at a site, read and balanced, by number.

        Adapters of weight 0 are left out: they take no part in the merge and shall not use up its budget.

        Args:
            site: the site.
            hold: keep them in memory; they are wanted again.
        """
        known = self.held.get(site.module)
        if known is not None:
            return known
        found = {n: Part(self._load(adapted)) for n, adapted in site.experts.items() if self.weights[n] != 0}
        if self.balance == "norm" and len(found) > 1:
            if (
                not hold and site.module not in self.metrics
            ):  # nearly all that balance want them, and they have the norm
                taken_apart(found)
            trained = self.sizes.get(site.module)
            factors = to_mean({n: part.norm for n, part in found.items()} if trained is None else trained)
            found = {n: part.times(factors[n]) for n, part in found.items()}
        metric = self.metrics.get(site.module)
        if metric is not None:
            found = {n: part.within(metric) for n, part in found.items()}
        if hold:
            self.held[site.module] = found
        return found

    def release(self, site: Site) -> None:
        """Let go of what was held for a site."""
        self.held.pop(site.module, None)

    def _load(self, adapted: AdaptedModule) -> LoraFactors:
        return adapted.load().to(self.device, torch.float32).folded()

    @cached_property
    def norms(self) -> dict[int, float]:
        """Frobenius norm of every adapter's whole update as trained, by number; those of weight 0 are left out."""

        def sizes(site: Site) -> dict[int, float]:
            if site.module in self.sizes:
                return self.sizes[site.module]
            if site.module in self.held:
                return {n: part.norm / part.balance for n, part in self.held[site.module].items()}
            active = {n: one for n, one in site.experts.items() if self.weights[n] != 0}
            self.sizes[site.module] = {n: float(norm(self._load(one))) for n, one in active.items()}
            return self.sizes[site.module]

        totals: dict[int, float] = {}
        for found in everywhere(self.sites, sizes).values():
            for n, size in found.items():
                totals[n] = math.hypot(totals.get(n, 0.0), size)
        return totals


def to_mean(norms: Mapping[int, float]) -> dict[int, float]:
    """What brings every norm to the mean of those that are not zero, 10 at most; 1.0 for those that are.

    Example:
        >>> to_mean({0: 1.0, 2: 3.0, 5: 0.0}), to_mean({0: 1e-9, 1: 2.0})[0]
        ({0: 2.0, 2: 0.6666666666666666, 5: 1.0}, 10.0)
    """
    present = [size for size in norms.values() if size > 0]
    mean = sum(present) / len(present) if present else 0.0
    return {n: min(MOST_BALANCE, mean / size) if size > 0 else 1.0 for n, size in norms.items()}


def iterate(problem: Problem, what: str) -> Iterator[Site]:
    """This process's sites one after the other, with progress."""
    sites = problem.own
    with problem.progress.task(what, len(sites)) as advance:
        for site in sites:
            yield site
            advance(1)
