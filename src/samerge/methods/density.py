"""The density of every adapter in every layer, for methods by rows: one number, or adaptive."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from samerge.linalg.adaptive_density import adaptive_densities, evenness
from samerge.methods.rows import Layer, sizes_of
from samerge.options.kinds import mean_of


def densities(layers: Sequence[Layer], density: float | str) -> Callable[[Layer, int], float]:
    """The density of an adapter in a layer; adaptive ones from a pass over the magnitudes of all elements."""
    mean = mean_of(density)
    if not isinstance(density, str):
        return lambda layer, n: mean
    found: dict[tuple[str, int], float] = {}
    sums = {layer.module: _sums(layer) for layer in layers}
    for n in sizes_of(layers):
        own = [layer for layer in layers if n in layer.parts]
        even = [evenness(*sums[layer.module][n], layer.size) for layer in own]
        for layer, density in zip(own, adaptive_densities(even, [one.size for one in own], mean), strict=True):
            found[layer.module, n] = density
    return lambda layer, n: found[layer.module, n]


def _sums(layer: Layer) -> dict[int, tuple[float, float]]:
    """For each expert the sums of the magnitudes and of their squares."""
    totals = dict.fromkeys(layer.parts, (0.0, 0.0))
    for start in layer.starts():
        for n, tile in zip(layer.parts, layer.rows(start), strict=True):
            total, squares = totals[n]
            total += float(torch.linalg.vector_norm(tile, 1, dtype=torch.float64))
            totals[n] = total, squares + float(torch.linalg.vector_norm(tile, dtype=torch.float64)) ** 2
    return totals
