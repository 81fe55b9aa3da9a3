"""The norm rule of `scaling="auto"`: how strongly a merged update is applied, from norms alone.

    ||M||_F = c * mean_n |w_n| ||tau_n||_F

over the adapters that have the layer, with tau_n unpruned. A sum of adapters that agree little is too weak in each of
their directions when it is averaged and too strong as a whole when it is summed; c = 1.3 did best for the sum of
selected components over eight text tasks. "auto:<c>" sets another c. A zero update stays zero (also where updates
cancel but for rounding), and an adapter that is alone keeps its norm times its weight.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Merged norm as a multiple of the adapters' mean norm, where two adapters or more meet.
NORM_FACTOR = 1.3

#: A merged norm below this share of the adapters' norms is what float32 leaves of updates that cancel: zero.
ROUNDING = 1e-5


def norm_rule(size: float, loudness: Sequence[float], factor: float = NORM_FACTOR) -> float:
    """The factor of the norm rule.

    Args:
        size: Frobenius norm of the merged update at scaling 1.0.
        loudness: |w_n| ||tau_n||_F of each adapter there.
        factor: c.

    Example:
        >>> round(norm_rule(4.0, [3.0, 1.0]), 4), norm_rule(0.5, [0.5])
        (0.65, 1.0)
    """
    present = [value for value in loudness if value > 0]
    if size <= ROUNDING * sum(present):
        return 1.0
    return (factor if len(present) > 1 else 1.0) * sum(present) / len(present) / size
