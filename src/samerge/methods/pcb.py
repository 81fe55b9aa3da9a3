"""`pcb`: weigh every element by how it competes within and between adapters (PCB; Du et al. 2024).

With v_i = w_i tau_i over the whole flattened adapter of d elements, N adapters, a_i = |v_i| clipped at its 10^-4
and 1 - 10^-4 quantiles, and n_i = a_i brought to [0, 1]:

    intra_i = exp(N n_i^2)                 the element among those of its own adapter
    inter_i = tanh(v_i sum_j v_j)          and among the same element of all adapters, as trained: neither clipped nor
                                           normalised. Updates are small, so it is nearly the product itself
    score_i = intra_i inter_i; its top `density` over the flattened adapter brought to [0, 1]: s_i, 0 below
    M = sum_i s_i sign(v_i) a_i / sum_i s_i

An adapter that is 0 everywhere has no score, and no share in M. exp(N) has to be a number of float32: N is 88 at most.

Published: density 0.05 to 0.1, lambda 1.2. Quantiles and thresholds are exact values of the data, found
by histograms over tiles: a share of p at the upper end is d - floor((1 - p) d) values, at the lower end floor(p d).
Streamed, then truncated. Cost: four more passes (eight in float64).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samerge.errors import OptionError
from samerge.linalg.order_statistics import largest_of
from samerge.methods.method import Begun, Method
from samerge.methods.problem import Problem
from samerge.methods.rows import Combine, Layer, by_rows, column, magnitudes, sizes_of
from samerge.options.kinds import share
from samerge.options.option import Options, option

#: Share of magnitudes that is clipped at either end.
_QUANTILE = 1e-4

#: exp(88) is a number of float32, exp(89) is not.
_MOST_ADAPTERS = 88


@dataclass(frozen=True)
class PcbOptions(Options):
    """Options of `pcb`."""

    density: float = option(share(), 0.1, "Share of its elements that each adapter keeps.")


def begin(problem: Problem, options: PcbOptions) -> Begun:
    """`pcb`, where the scores of so many adapters are numbers."""
    count = sum(weight != 0 for weight in problem.weights)
    if count > _MOST_ADAPTERS:
        raise OptionError(
            f"method='pcb' scores the elements of N adapters by exp(N n^2), which for {count} adapters is beyond the "
            f"range of float32; it merges {_MOST_ADAPTERS} at most. Merge them in groups, and then the merges"
        )
    return by_rows(prepare)(problem, options)


def prepare(layers: Sequence[Layer], options: PcbOptions) -> Combine:
    """`pcb` as `by_rows` runs it."""
    density = options.density
    sizes = sizes_of(layers)
    if not sizes:
        return lambda layer, start, tiles: (tiles, tiles.sum(dim=0))

    clips = magnitudes(layers, lambda size: clipping_ranks(size, _QUANTILE))

    def clipped(layer: Layer, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """a_i and n_i."""
        high, low = _ends(layer, clips, tiles)
        a = tiles.abs().clamp(low, high)
        return a, (a - low) / _spread(high, low)

    def scores(layer: Layer, tiles: Tensor) -> Tensor:
        return score(tiles, clipped(layer, tiles)[1], len(sizes))

    def pieces() -> Iterator[tuple[int, Tensor]]:
        for layer in layers:
            for start in layer.starts():
                yield from zip(layer.parts, scores(layer, layer.rows(start)), strict=True)

    wanted = {n: (1, max(1, _upper(size, density))) for n, size in sizes.items()}
    dtype = next(part.A.dtype for layer in layers for part in layer.parts.values())
    ranges = largest_of(pieces, wanted, dtype)

    def combine(layer: Layer, start: int, tiles: Tensor) -> tuple[Tensor, Tensor]:
        high, low = _ends(layer, lambda _, n: ranges[n], tiles)
        a, n = clipped(layer, tiles)
        found = score(tiles, n, len(sizes))
        alone = ((found >= low) & (tiles != 0)).to(found.dtype)  # all that are kept have one score
        share = torch.where(high > low, ((found - low) / _spread(high, low)).clamp_min(0), alone)
        total = share.sum(dim=0)
        merged = (share * tiles.sign() * a).sum(dim=0) / torch.where(total > 0, total, torch.ones_like(total))
        return tiles * (share > 0), merged

    return combine


def score(values: Tensor, shares: Tensor, experts: int) -> Tensor:
    """intra x inter of (N, ...) values v_i and their clipped and normalised magnitudes n_i."""
    return torch.exp(experts * shares.square()) * torch.tanh(values * values.sum(dim=0))


def clipping_ranks(size: int, quantile: float) -> tuple[int, int]:
    """Which largest magnitudes of `size` are the upper and the lower end.

    Example:
        >>> clipping_ranks(20_000, 1e-4)
        (3, 19998)
    """
    lower = size - int(size * quantile)
    return min(1 + _upper(size, quantile), lower), lower


def _upper(size: int, share: float) -> int:
    """How many values are the upper `share`."""
    return size - int(size * (1 - share))


def _ends(layer: Layer, of: Callable[[Layer, int], tuple[float, ...]], like: Tensor) -> tuple[Tensor, Tensor]:
    """Upper and lower ends of the layer's experts, (N, 1, 1) each."""
    pairs = [of(layer, n) for n in layer.parts]
    high, low = (column([pair[end] for pair in pairs], like) for end in (0, 1))
    return high, low


def _spread(high: Tensor, low: Tensor) -> Tensor:
    """What to divide by; 1 where there is nothing between the ends."""
    return torch.where(high > low, high - low, torch.ones_like(high))


METHOD = Method("pcb", begin, PcbOptions, scaling=1.2, by_site=False)
