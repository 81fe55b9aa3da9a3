"""Adaptive density: how much of each tensor is kept, from the distribution of its magnitudes.

The idea is TADrop's (arXiv 2508.06163): tensors that are dense and redundant are pruned harder, sparse ones are kept.
The mapping is our own definition and no reproduction of the paper's. For a tensor of n magnitudes |x_j|,

    p = (sum_j |x_j|)^2 / (n sum_j x_j^2)        in (0, 1]

is the share of entries that would hold the tensor's norm if all of them were equal: 1 where they are, 1/n where a
single one is not zero. The density of tensor i is

    d_i = min(1, c / p_i),    with c such that sum_i n_i d_i = mean * sum_i n_i,

so that an expert keeps the same number over its tensors as with the mean as the density of each. The magnitudes are a
tensor's elements (`elementwise`), or the norms of its rank-1 components, in the svd basis its singular values
(`saliency`). The tensors of each expert are balanced among themselves. Nothing is rescaled here; `scaling` is there for
that.
"""

from __future__ import annotations

from collections.abc import Sequence


def evenness(total: float, squares: float, count: int) -> float:
    """p of a tensor, from the sum of its magnitudes, the sum of their squares, and their number.

    1.0 for a tensor of zeros, in which there is nothing to keep.

    Example:
        >>> evenness(4.0, 4.0, 4), evenness(2.0, 4.0, 4)
        (1.0, 0.25)
    """
    return min(1.0, total * total / (count * squares)) if squares > 0 and count else 1.0


def adaptive_densities(evennesses: Sequence[float], counts: Sequence[int], mean: float) -> list[float]:
    """d of each tensor.

    Args:
        evennesses: p of each, in (0, 1].
        counts: how many magnitudes each has.
        mean: density over all of them together, in (0, 1].

    Returns:
        One density in (0, 1] for each; their mean, weighted by the counts, is `mean`.

    Example:
        >>> adaptive_densities([1.0, 0.5], [100, 100], 0.3)
        [0.2, 0.4]
        >>> adaptive_densities([1.0, 0.1], [100, 100], 0.6)  # no more than all
        [0.2, 1.0]
    """
    densities = [1.0] * len(counts)
    left = [i for i, count in enumerate(counts) if count]
    budget = mean * sum(counts)
    for i in sorted(left, key=lambda i: evennesses[i]):  # those that reach 1 come first
        c = budget / sum(counts[j] / evennesses[j] for j in left)
        if c < evennesses[i]:
            densities = [c / evennesses[j] if j in left else d for j, d in enumerate(densities)]
            break
        left = [j for j in left if j != i]
        budget -= counts[i]
    return densities
