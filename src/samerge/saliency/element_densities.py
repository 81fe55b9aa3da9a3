"""Adaptive densities of task vectors, from a pass over their elements a tile at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from samerge.linalg.adaptive_density import adaptive_densities, evenness
from samerge.saliency.elements import Pruner
from samerge.saliency.task_vectors import rows_of, shape_of


def element_densities(pruner: Pruner, keys: Sequence[str], mean: float) -> Callable[[int, str], float]:
    """The density of each expert's task vector at each weight; see `samerge.linalg.adaptive_density`.

    Args:
        pruner: the task vectors; its masks should be empty.
        keys: the weights that are pruned.
        mean: each expert's density over all of them.

    Returns:
        The density of an expert (by number) at a weight; 1 for weights that are not among the keys.
    """
    table: dict[tuple[int, str], float] = {}
    for n in range(pruner.vectors.count):
        own = [key for key in keys if pruner.vectors.has(n, key)]
        counts = [rows * columns for rows, columns in (shape_of(pruner.source, key) for key in own)]
        evennesses = [evenness(*_sums(pruner, n, key), count) for key, count in zip(own, counts, strict=True)]
        for key, density in zip(own, adaptive_densities(evennesses, counts, mean), strict=True):
            table[n, key] = density
    return lambda n, key: table.get((n, key), 1.0)


def _sums(pruner: Pruner, n: int, key: str) -> tuple[float, float]:
    """Sums of the magnitudes and of their squares."""
    total = squares = 0.0
    for start, stop in pruner.tiles(key):
        theta = rows_of(pruner.source, key, start, stop, pruner.device, pruner.dtype)
        tau = pruner.task_vector(n, key, start, theta)
        total += float(torch.linalg.vector_norm(tau, 1, dtype=torch.float64))
        squares += float(torch.linalg.vector_norm(tau, dtype=torch.float64)) ** 2
    return total, squares
