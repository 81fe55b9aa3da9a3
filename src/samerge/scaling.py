"""How strongly a merged update is applied: a number lambda, or the norm rule.

The norm rule needs no data: each layer's merged update M is scaled to

    ||M||_F = c * sum_i |w_i| ||tau_i||_F / sum_i |w_i|

over the experts that adapt the layer, with tau_i unpruned. A sum of experts that agree little is too weak in each of
their directions when it is averaged and too strong as a whole when it is summed; c = 1.3 did best for raw spectra over
eight text tasks, c = 2.0 for flat ones, whose norm is spread over more directions. "auto:<c>" sets another c. One
expert alone keeps its own norm (c = 1), a zero update stays zero (also where updates cancel but for rounding), and a
common factor of the weights cancels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from samerge.factors import LoraFactors, norm
from samerge.values import auto_factor

#: Merged norm as a multiple of the experts' mean norm, where two experts or more meet.
NORM_FACTOR = 1.3
#: The same where all singular values of the merged update are equal.
FLAT_NORM_FACTOR = 2.0

#: A merged norm below this share of the experts' norms is what float32 leaves of updates that cancel: zero.
_ROUNDING = 1e-5


def scale_of(
    merged: LoraFactors, norms: Mapping[int, float], weights: Sequence[float], scaling: float | str, flat: bool = False
) -> float:
    """The factor that a merged update is multiplied with.

    Args:
        merged: the update at scaling 1.0.
        norms: Frobenius norm of each expert's own update here, by expert number.
        weights: one for each expert.
        scaling: lambda, or "auto" or "auto:<c>" for the norm rule.
        flat: whether the merged update's singular values are all equal.

    Example:
        >>> import torch
        >>> merged = LoraFactors(torch.eye(2), torch.eye(2) * 3)
        >>> round(scale_of(merged, {0: 3.0, 1: 1.0}, [1.0, 1.0], "auto"), 4)
        0.6128
    """
    factor = auto_factor(scaling)
    if factor is None:
        return float(scaling)
    return norm_rule(float(norm(merged)), norms, weights, factor or (FLAT_NORM_FACTOR if flat else NORM_FACTOR))


def norm_rule(size: float, norms: Mapping[int, float], weights: Sequence[float], factor: float = NORM_FACTOR) -> float:
    """The factor of the norm rule.

    Args:
        size: Frobenius norm of the merged update at scaling 1.0.
        norms: of each expert's own update here, by expert number.
        weights: one for each expert.
        factor: c.

    Example:
        >>> norm_rule(2.0, {0: 1.0}, [0.5])
        0.5
    """
    share = sum(abs(weights[n]) for n in norms)
    total = sum(abs(weights[n]) * value for n, value in norms.items())
    if not share or size <= _ROUNDING * total:
        return 1.0
    together = sum(value > 0 for value in norms.values()) > 1
    return (factor if together else 1.0) * total / share / size
