"""`knots-ties`: TIES on the adapters' parts in one SVD for all (KnOTS; Stoica et al. 2024).

    [tau_1 ... tau_N] = U S [V_1 ... V_N];   X_i = S V_i = U^T tau_i,   M = U ties(w_1 X_1, ..., w_N X_N)

Found in the core space, where it is an (R, N R) problem. Published density 0.2 to 0.3.
"""

from __future__ import annotations

from samerge.linalg.core_space import CoreSpace
from samerge.linalg.factors import LoraFactors
from samerge.methods.aligned import Aligned, aligned_ties
from samerge.methods.method import Method
from samerge.methods.ties import TiesOptions


def by_knots(space: CoreSpace, rank: int, options: TiesOptions) -> Aligned:
    """The alignment of `knots-ties`."""
    canonical = space.canonical()
    turned = canonical.right.T  # (k_a, d_in)
    return Aligned(canonical.left, tuple(LoraFactors(A=turned, B=core) for core in canonical.cores), None)


METHOD = Method("knots-ties", aligned_ties(by_knots), TiesOptions, exact=True, by_site=False)
