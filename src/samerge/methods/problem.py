"""What a merge method is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch

from samerge.adapters import AdaptedModule
from samerge.adapters.layouts import Layout
from samerge.graph import FlowGraph
from samerge.linalg.factors import LoraFactors
from samerge.linalg.sign_conflicts import Conflict
from samerge.options.merge_options import MergeOptions
from samerge.parallel.processes import Group, group
from samerge.parallel.progress import Progress
from samerge.weights import WeightSource

T = TypeVar("T")


@dataclass(frozen=True)
class Site:
    """One linear map of the base that at least one expert adapts.

    Args:
        module: its name in the merged adapter.
        key: its weight in the base, as `Weight.key` has it; None when no base was given.
        layout: how PEFT stores its factors.
        shape: (out, in).
        experts: for the number of each expert that adapts it, its factors.
        inside: whether it takes part in the flow graph.
        owner: with several processes, the one that merges it and holds its factors; None where all do.
    """

    module: str
    key: str | None
    layout: Layout
    shape: tuple[int, int]
    experts: Mapping[int, AdaptedModule]
    inside: bool = False
    owner: int | None = None


@dataclass(frozen=True)
class Problem:
    """Several experts of one base, brought together.

    Args:
        names: the experts, in the user's order.
        weights: one for each.
        sites: the adapted maps, sorted by module.
        rank: the largest rank of any expert at any site.
        source: the base weights, None for methods that do not read them.
        graph: the flow graph, None likewise.
        device: where to compute.
        progress: where to report progress.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    sites: tuple[Site, ...]
    rank: int
    source: WeightSource | None
    graph: FlowGraph | None
    device: torch.device
    progress: Progress

    @property
    def own(self) -> tuple[Site, ...]:
        """The sites that this process merges: all of them, unless several processes share them out."""
        return own_sites(self.sites)

    @property
    def group(self) -> Group:
        """The processes that share the sites out; this one alone where all do everything."""
        return sharers(self.sites)

    def factors(self, site: Site) -> dict[int, LoraFactors]:
        """The updates of the experts at a site, loaded, in float32 with the scale folded in.

        Experts of weight 0 are left out: they take no part in the merge and shall not use up its budget.
        """
        return {
            n: adapted.load().to(self.device, torch.float32).folded()
            for n, adapted in site.experts.items()
            if self.weights[n] != 0
        }


@dataclass(frozen=True)
class Share:
    """What became of one expert at one site.

    Args:
        components: how many rank-1 components it had.
        kept: which of them are in the merge, None when the method does not choose components.
        norm: Frobenius norm of its update before the merge.
        energy: share of its squared norm that was kept.
        elements: how many elements of its update were kept, and of how many; None when the method keeps no elements.
        balance: what its update was multiplied with beforehand; `norm` is that of the product.
    """

    components: int
    kept: tuple[int, ...] | None
    norm: float
    energy: float
    elements: tuple[int, int] | None = None
    balance: float = 1.0


@dataclass(frozen=True)
class MergedLayer:
    """A merged update at scaling 1.0.

    Args:
        factors: in float32, with scale 1.
        shares: what became of the experts, by number.
        lost: share of the merged energy that the method's own truncation lost.
        conflict: the signs of the experts' unweighted updates as pruning left them, on
            `sign_conflicts.sample_rows`; None where nothing of them is pruned, or not element by element or
            component by component.
    """

    factors: LoraFactors
    shares: Mapping[int, Share]
    lost: float = 0.0
    conflict: Conflict | None = None


@dataclass(frozen=True)
class Outcome:
    """What a method gives back.

    Args:
        layers: a merged layer for each of this process's sites, by module name.
        log_connectivity: log R by expert number, where it was computed.
        flat: whether all singular values of a merged layer are equal.
        kernel: the kernel that swept over the base, where one did (`samerge.saliency.kernels`).
    """

    layers: Mapping[str, MergedLayer]
    log_connectivity: Mapping[int, float] = field(default_factory=dict)
    flat: bool = False
    kernel: str | None = None


class Method(Protocol):
    """A merge method: a pure function of the problem and its options."""

    def __call__(self, problem: Problem, options: MergeOptions) -> Outcome:
        """Merge."""


@dataclass(frozen=True)
class Entry:
    """A line of the registry.

    Args:
        run: the method.
        summary: one line for `--help`.
        uses: names of the options that mean something to it.
        defaults: its own defaults, over those of `options.DEFAULTS`.
        needs_base: whether it reads the base weights.
        adaptive: whether its density may be "adaptive".
        parameters: the frozen dataclass of the options that only it has.
        svd_rank: the `svd_rank` it takes when none is given, from the largest source rank.
        selection: the selection that a method means, for one that is no aggregation of its own.
        counts: whether it reaches `rank` by itself, with as many components; the others are truncated to it.
        by_site: whether it merges every site by itself, so that several processes can share the sites out.
    """

    run: Method
    summary: str
    uses: frozenset[str] = frozenset()
    defaults: Mapping[str, float | str] = field(default_factory=lambda: {"scaling": 1.0})
    needs_base: bool = False
    adaptive: bool = False
    parameters: type[Any] | None = None
    svd_rank: Callable[[int], int | None] = lambda rank: None
    selection: str = "none"
    counts: bool = False
    by_site: bool = False


def iterate(problem: Problem, what: str) -> Iterator[Site]:
    """This process's sites one after the other, with progress."""
    own = problem.own
    with problem.progress.task(what, len(own)) as advance:
        for site in own:
            yield site
            advance(1)


def shared_out(sites: Sequence[Site], weights: Sequence[float]) -> tuple[Site, ...]:
    """The sites with an owner each, so that every process of the group has about as many bytes of factors.

    Args:
        sites: the adapted maps.
        weights: of the experts; those of weight 0 are never loaded.
    """
    ranks = [sum(one.rank for n, one in site.experts.items() if weights[n] != 0) for site in sites]
    sizes = [rank * sum(site.shape) for rank, site in zip(ranks, sites, strict=True)]
    owners = group().owners(sizes)
    return tuple(replace(site, owner=owner) for site, owner in zip(sites, owners, strict=True))


def own_sites(sites: Sequence[Site]) -> tuple[Site, ...]:
    """Those that this process merges."""
    rank = group().rank
    return tuple(site for site in sites if site.owner in (None, rank))


def sharers(sites: Sequence[Site]) -> Group:
    """The processes that share these sites out; this one alone where all do everything."""
    return group() if any(site.owner is not None for site in sites) else Group()


def by_module(sites: Sequence[Site], work: Callable[[Site], T], own: Iterable[Site] | None = None) -> dict[str, T]:
    """`work(site)` for all sites, by module: every process does its own, and has everything afterwards.

    Args:
        sites: all of them.
        work: gives something small that can be pickled; what it raises is raised in every process.
        own: this process's, where something shall happen between them, such as progress (`iterate`).
    """

    def done() -> dict[str, T]:
        return {site.module: work(site) for site in (own_sites(sites) if own is None else own)}

    found = {module: result for part in sharers(sites).each(done) for module, result in part.items()}
    return {site.module: found[site.module] for site in sites}
