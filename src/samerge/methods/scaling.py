"""How strongly a merged update is applied: a number lambda, the norm rule, or the weights brought to one.

Neither rule needs data. In both a common factor of the weights cancels, and an adapter merged by itself keeps its norm.

The norm rule, "auto", scales each layer's merged update M to

    ||M||_F = c * sum_i |w_i| ||tau_i||_F / sum_i |w_i|

over the experts that adapt the layer, with tau_i unpruned. A sum of experts that agree little is too weak in each of
their directions when it is averaged and too strong as a whole when it is summed; c = 1.3 did best for raw spectra over
eight text tasks, c = 2.0 for flat ones, whose norm is spread over more directions. "auto:<c>" sets another c. A zero
update stays zero (also where updates cancel but for rounding).

"unit" leaves M the norm that the method gives it, with the weights w_i sum_j |w_j| / sum_j w_j^2 in the place of w_i:

    lambda = sum_i |w_i| / sum_i w_i^2

over all experts, one number for all layers; 1 where all weights are. It suits methods whose own norm means
something. TSV makes the experts' directions orthogonal, so that N experts of norm m have the norm m sqrt(N) together,
sqrt((sum_i |w_i|)^2 / sum_i w_i^2) for any weights, and the leading r directions have their share of it: the norm grows
with the output rank, as the norm rule does not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from samerge.options.values import UNIT, auto_factor

#: Merged norm as a multiple of the experts' mean norm, where two experts or more meet.
NORM_FACTOR = 1.3
#: The same where all singular values of the merged update are equal.
FLAT_NORM_FACTOR = 2.0

#: A merged norm below this share of the experts' norms is what float32 leaves of updates that cancel: zero.
ROUNDING = 1e-5


def scale_of(
    size: float, norms: Mapping[int, float], weights: Sequence[float], scaling: float | str, flat: bool = False
) -> float:
    """The factor that a merged update is multiplied with.

    Args:
        size: Frobenius norm of the merged update at scaling 1.0.
        norms: of each expert's own update here, by expert number.
        weights: one for each expert.
        scaling: lambda, "auto" or "auto:<c>" for the norm rule, or "unit".
        flat: whether the merged update's singular values are all equal.

    Example:
        >>> round(scale_of(4.0, {0: 3.0, 1: 1.0}, [1.0, 1.0], "auto"), 4)
        0.65
        >>> scale_of(4.0, {0: 3.0, 1: 1.0}, [0.5, 0.5], "unit")
        2.0
    """
    fixed = fixed_scale(weights, scaling)
    if fixed is not None:
        return fixed
    factor = auto_factor(scaling) or (FLAT_NORM_FACTOR if flat else NORM_FACTOR)
    return norm_rule(size, norms, weights, factor)


def fixed_scale(weights: Sequence[float], scaling: float | str) -> float | None:
    """lambda where it is one number for all layers, so that nobody needs their norms; None for the norm rule.

    Example:
        >>> fixed_scale([0.5, 0.5], "unit"), fixed_scale([0.5, 0.5], 0.7), fixed_scale([0.5, 0.5], "auto")
        (2.0, 0.7, None)
    """
    if scaling == UNIT:
        return unit(weights)
    return float(scaling) if auto_factor(scaling) is None else None


def unit(weights: Sequence[float]) -> float:
    """lambda of "unit": sum |w| / sum w^2, and 1 where all weights are 0.

    Example:
        >>> unit([1.0, 1.0]), unit([0.5, -0.5])
        (1.0, 2.0)
    """
    most = max((abs(weight) for weight in weights), default=0.0)
    shares = [abs(weight) / most for weight in weights if most]  # whose squares neither overflow nor vanish
    return sum(shares) / sum(share * share for share in shares) / most if shares else 1.0


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
    if not share or size <= ROUNDING * total:
        return 1.0
    together = sum(value > 0 for value in norms.values()) > 1
    return (factor if together else 1.0) * total / share / size
