"""Weights that are found without data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from samerge.linalg.factors import norm
from samerge.methods.problem import Problem, Site, by_module
from samerge.options.merge_options import MergeOptions
from samerge.report.interference import auto_weights


def nan_weights(problem: Problem) -> tuple[float, ...]:
    """`weights="nan"`: every adapter in proportion to the inverse norm of its update (arXiv 2505.16148).

        w_i = (1 / ||tau_i||) / mean_j (1 / ||tau_j||),    ||tau_i||^2 = sum over layers ||tau_i^l||_F^2

    The mean is 1, so that adapters of one norm get the default weights and `scaling` means what it means without. A
    zero adapter gets 1 and takes no part in the mean.
    """

    def own(site: Site) -> dict[int, float]:
        return {n: float(norm(factors)) ** 2 for n, factors in problem.factors(site).items()}

    squares = [0.0] * len(problem.names)
    for found in by_module(problem.sites, own).values():
        for n, square in found.items():
            squares[n] += square
    return inverse([math.sqrt(square) for square in squares])


def inverse(norms: Sequence[float]) -> tuple[float, ...]:
    """Inverse norms over their mean.

    Example:
        >>> inverse([1.0, 3.0]), inverse([2.0, 0.0])
        ((1.5, 0.5), (1.0, 1.0))
    """
    found = [1 / value for value in norms if value > 0]
    if not found:
        return (1.0,) * len(norms)
    mean = sum(found) / len(found)
    return tuple(1 / value / mean if value > 0 else 1.0 for value in norms)


#: The rules by which `weights` may be found.
WEIGHT_RULES: Mapping[str, Callable[[Problem, MergeOptions], tuple[float, ...]]] = {
    "nan": lambda problem, options: nan_weights(problem),
    "auto": lambda problem, options: auto_weights(problem, options.basis),
}
