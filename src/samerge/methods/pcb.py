"""`pcb`: parameter competition balancing (Du et al. 2024).

With v_i = w_i tau_i over the whole flattened adapter, N experts, a_i = |v_i| clipped at its `quantile` and
1 - `quantile` quantiles, and n_i = a_i brought to [0, 1]:

    intra_i = exp(N n_i^2)
    inter_i = sum_j tanh(sign(v_i) n_i sign(v_j) n_j)
    score_i = intra_i inter_i; its top `density` over the flattened adapter brought to [0, 1]: s_i, 0 below
    M = sum_i s_i v_i / sum_i s_i          an adapter that is 0 everywhere has no score, and no share in M

Published: quantile 1 %, density 0.05 to 0.1, lambda 1.2. Quantiles and thresholds are exact values of the data (the
nearest rank), found by histograms over tiles. Streamed, then truncated to `svd_rank`. Cost: six more passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samerge.elements.order import largest_of
from samerge.errors import OptionError
from samerge.methods.parameters import own
from samerge.methods.rows import Combine, Layer, column, magnitudes, sizes_of
from samerge.options import MergeOptions, number


@dataclass(frozen=True)
class PcbParameters:
    """Options of `pcb`.

    Args:
        quantile: share of magnitudes that is clipped at either end, in [0, 0.5).
    """

    quantile: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= number("quantile", self.quantile) < 0.5:
            raise OptionError(f"method_options: quantile={self.quantile!r} must lie in [0, 0.5)")


def prepare_pcb(layers: Sequence[Layer], options: MergeOptions) -> Combine:
    """`pcb` as `by_rows` runs it."""
    density, quantile = options.mean_density or 0.1, own(options, PcbParameters).quantile
    sizes = sizes_of(layers)
    if not sizes:
        return lambda layer, start, tiles: (tiles, tiles.sum(dim=0))

    def ends(size: int) -> Sequence[int]:
        clipped = round(quantile * (size - 1))
        return [1 + clipped, size - clipped]

    clips = magnitudes(layers, ends)

    def scores(layer: Layer, tiles: Tensor) -> Tensor:
        bounds = [clips(layer, n) for n in layer.parts]
        high, low = (column([pair[end] for pair in bounds], tiles) for end in (0, 1))
        spread = torch.where(high > low, high - low, torch.ones_like(high))
        share = ((tiles.abs() - low) / spread).clamp(0, 1)
        return score(share, tiles.sign(), len(sizes))

    def pieces() -> Iterator[tuple[int, Tensor]]:
        for layer in layers:
            for start in layer.starts():
                yield from zip(layer.parts, scores(layer, layer.rows(start)), strict=True)

    wanted = {n: [1, max(1, round(density * size))] for n, size in sizes.items()}
    dtype = next(part.A.dtype for layer in layers for part in layer.parts.values())
    ranges = largest_of(pieces, wanted, dtype)

    def combine(layer: Layer, start: int, tiles: Tensor) -> tuple[Tensor, Tensor]:
        high, low = (column([ranges[n][end] for n in layer.parts], tiles) for end in (0, 1))
        found = scores(layer, tiles)
        spread = torch.where(high > low, high - low, torch.ones_like(high))
        alone = ((found >= low) & (tiles != 0)).to(found.dtype)  # all that are kept have one score
        share = torch.where(high > low, ((found - low) / spread).clamp_min(0), alone)
        total = share.sum(dim=0)
        merged = (share * tiles).sum(dim=0) / torch.where(total > 0, total, torch.ones_like(total))
        return tiles * (share > 0), merged

    return combine


def score(shares: Tensor, signs: Tensor, experts: int) -> Tensor:
    """intra x inter of (N, ...) normalised magnitudes and signs."""
    signed = shares * signs
    inter = torch.zeros_like(signed)
    for one in signed:
        inter += torch.tanh(signed * one)
    return torch.exp(experts * shares.square()) * inter
