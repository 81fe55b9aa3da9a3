"""What was kept of every expert in every tensor, and how strongly its merged update is applied."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from samerge.errors import BaseModelError
from samerge.full.assembly import Assembly
from samerge.linalg.factors import squared_norm
from samerge.methods.scaling import norm_rule
from samerge.saliency.elements import Pruner
from samerge.saliency.task_vectors import rows_of, shape_of


@dataclass(frozen=True)
class Kept:
    """What was kept of one expert in one weight.

    Args:
        elements: how many there are; None where none is pruned.
        kept: how many survive, likewise.
        norm: Frobenius norm of the task vector, unpruned.
        energy: share of its squared norm that survives.
        cosine: between the task vector and the merged update; None where the task vector is zero.
    """

    elements: int | None
    kept: int | None
    norm: float
    energy: float
    cosine: float | None


@dataclass(frozen=True)
class Measured:
    """One tensor of the merge.

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
    advance: Callable[[int], None],
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
    before, after, inner = (dict.fromkeys(experts, 0.0) for _ in range(3))
    size = 0.0
    rows, columns = shape_of(pruner.source, key)
    for start, stop in pruner.tiles(key):
        theta = rows_of(pruner.source, key, start, stop, pruner.device, pruner.dtype)
        merged = torch.zeros_like(theta)
        whole = {n: pruner.vectors.tile(n, key, start, theta) for n in experts}
        for n, tau in whole.items():
            before[n] += squared_norm(tau)
            kept = pruner.masks.numbers(n, key, start, stop, tau)
            left = tau if kept is None else tau * kept
            after[n] += squared_norm(left)
            merged.add_(left, alpha=pruner.weights[n])
        size += squared_norm(merged)
        for n, tau in whole.items():
            inner[n] += float((merged.double() * tau.double()).sum())
        advance((stop - start) * columns)
    broken = [names[n] for n in experts if not before[n] < float("inf")]
    _refuse_broken(key, broken)
    counts = {n: pruner.masks.count(n, key) for n in experts}
    norms = {n: before[n] ** 0.5 for n in experts}
    scale = (
        norm_rule(size**0.5, [abs(pruner.weights[n]) * norms[n] for n in experts])
        if scaling == "auto"
        else float(scaling)
    )
    shares = {}
    for n in experts:
        count = rows * columns if counts[n] is None else counts[n]
        energy = after[n] / before[n] if before[n] else 1.0
        shares[n] = Kept(rows * columns, count or 0, norms[n], energy, _cosine(inner[n], before[n] * size, scale))
    return Measured(shares, scale, abs(scale) * size**0.5)


def measure_outside(assembly: Assembly, tensors: Iterable[str], names: tuple[str, ...]) -> dict[str, Measured]:
    """The same of what lies outside the graph, where no element is pruned: kept is all, or nothing where it stays.

    Args:
        assembly: what becomes of it.
        tensors: which.
        names: of the experts, for messages.

    Raises:
        BaseModelError: a tensor holds values that are not finite.
    """
    found = {}
    for tensor in tensors:
        size, squares, inner = 0.0, [0.0] * len(names), [0.0] * len(names)
        for _, update, taus in assembly.outside_updates(tensor):
            size += squared_norm(update)
            for n, tau in enumerate(taus):
                squares[n] += squared_norm(tau)
                inner[n] += float((update.double() * tau.double()).sum())
        broken = [n for n, square in enumerate(squares) if not square < float("inf")]
        if assembly.outside != "base":
            _refuse_broken(tensor, [names[n] for n in broken])
        energy = 0.0 if assembly.outside == "base" else 1.0  # of what is zero it is not asked
        shares = {
            n: Kept(None, None, square**0.5, energy, _cosine(inner[n], square * (size or 1.0), 1.0 if size else 0.0))
            for n, square in enumerate(squares)
            if n not in broken
        }
        found[tensor] = Measured(shares, 1.0, size**0.5)
    return found


def _refuse_broken(key: str, broken: Sequence[str]) -> None:
    if broken:
        raise BaseModelError(
            f"merging the weight {key!r}: it holds values that are not finite in the base or in {', '.join(broken)}; "
            f"check these checkpoints, they were probably saved after training had diverged"
        )


def _cosine(inner: float, squares: float, scale: float) -> float | None:
    """Of the scaled merged update; 0 where that is zero, None where the product of the norms is for another reason."""
    if not squares:
        return None
    return 0.0 if not scale else math.copysign(1.0, scale) * max(-1.0, min(1.0, inner / math.sqrt(squares)))
