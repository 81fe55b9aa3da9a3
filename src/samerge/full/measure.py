"""What was kept of every expert in every weight of the graph, and how strongly its merged update is applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from samerge.errors import BaseModelError
from samerge.methods.scaling import norm_rule
from samerge.saliency.elements import Pruner
from samerge.saliency.task_vectors import rows_of, shape_of


@dataclass(frozen=True)
class Kept:
    """What was kept of one expert in one weight.

    Args:
        elements: how many there are.
        kept: how many survive.
        norm: Frobenius norm of the task vector, unpruned.
        energy: share of its squared norm that survives.
    """

    elements: int
    kept: int
    norm: float
    energy: float


@dataclass(frozen=True)
class Measured:
    """One weight of the merge.

    Args:
        shares: by expert number.
        scale: what the merged update is multiplied with.
        norm: Frobenius norm of the merged update, scaled.
    """

    shares: Mapping[int, Kept]
    scale: float
    norm: float


def measure(
    pruner: Pruner,
    keys: Iterable[str],
    scaling: float | str,
    names: tuple[str, ...],
    advance: Callable[[int], None] = lambda entries: None,
) -> dict[str, Measured]:
    """Norms in float64, one pass over the weights, and the scale of each.

    Args:
        pruner: the experts and which of their elements survive.
        keys: the weights.
        scaling: lambda, or "auto" for the norm rule of `scaling.py` in each weight.
        names: of the experts, for messages.
        advance: called with the number of entries swept.

    Raises:
        BaseModelError: a weight holds values that are not finite.
    """
    return {key: _measure(pruner, key, scaling, names, advance) for key in keys}


def _measure(
    pruner: Pruner,
    key: str,
    scaling: float | str,
    names: tuple[str, ...],
    advance: Callable[[int], None],
) -> Measured:
    experts = [n for n in range(pruner.vectors.count) if pruner.vectors.has(n, key)]
    before, after, size = dict.fromkeys(experts, 0.0), dict.fromkeys(experts, 0.0), 0.0
    rows, columns = shape_of(pruner.source, key)
    for start, stop in pruner.tiles(key):
        theta = rows_of(pruner.source, key, start, stop, pruner.device, pruner.dtype)
        merged = torch.zeros_like(theta)
        for n in experts:
            tau = pruner.vectors.tile(n, key, start, theta)
            before[n] += _square(tau)
            kept = pruner.masks.numbers(n, key, start, stop, tau)
            after[n] += 0.0 if kept is None else _square(tau.mul_(kept))
            merged.add_(tau, alpha=pruner.weights[n])
        size += _square(merged)
        advance((stop - start) * columns)
    broken = [names[n] for n in experts if not before[n] < float("inf")]
    if broken:
        raise BaseModelError(
            f"merging the weight {key!r}: it holds values that are not finite in the base or in {', '.join(broken)}; "
            f"check these checkpoints, they were probably saved after training had diverged"
        )
    counts = {n: pruner.masks.count(n, key) for n in experts}
    norms = {n: before[n] ** 0.5 for n in experts}
    scale = (
        norm_rule(size**0.5, [abs(pruner.weights[n]) * norms[n] for n in experts])
        if scaling == "auto"
        else float(scaling)
    )
    shares = {}
    for n in experts:
        count = counts[n]
        whole = count is None or not before[n]
        shares[n] = Kept(
            rows * columns, rows * columns if count is None else count, norms[n], 1.0 if whole else after[n] / before[n]
        )
    return Measured(shares, scale, abs(scale) * size**0.5)


def _square(tile: Tensor) -> float:
    return float(torch.linalg.vector_norm(tile, dtype=torch.float64)) ** 2
