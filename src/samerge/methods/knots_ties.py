"""`knots-ties`: TIES on the adapters' parts in one SVD for all (KnOTS; Stoica et al. 2024).

    [tau_1 ... tau_N] = U S [V_1 ... V_N];   X_i = S V_i = U^T tau_i,   M = U ties(w_1 X_1, ..., w_N X_N)

U comes from the Gram matrix of the stacked triplets, and X_i is held as factors. Trimmed over the
whole adapter, as KnOTS's authors do. Published density 0.2 to 0.3.
"""

from __future__ import annotations

from collections.abc import Mapping

from samerge.linalg.core_space import common_basis
from samerge.linalg.factors import LoraFactors
from samerge.linalg.gram import times
from samerge.linalg.triplets import Triplets
from samerge.methods.aligned import Aligned, aligned_ties
from samerge.methods.method import Method
from samerge.methods.ties import TrimOptions


def by_knots(parts: Mapping[int, Triplets], rank: int, options: TrimOptions) -> Aligned:
    """The alignment of `knots-ties`."""
    left = common_basis([part.U for part in parts.values()], [part.S for part in parts.values()])
    values = {
        n: LoraFactors(A=part.V.T, B=(times(left.T, part.U) * part.S).to(part.V.dtype)) for n, part in parts.items()
    }
    return Aligned(left, values, None)


METHOD = Method("knots-ties", aligned_ties(by_knots, "adapter"), TrimOptions, exact=True, by_site=False)
