"""`core-ties`: TIES on the adapters' small cores between common singular vectors.

    U as `knots-ties` has it, V the right singular vectors of [tau_1; ...; tau_N], X_i = U^T tau_i V
    M = U ties(w_1 X_1, ..., w_N X_N) V^T

So the cores depend on nothing but the updates. TIES in the core space is another method than `ties`. It trims each
layer by itself, as the core space's authors do.
"""

from __future__ import annotations

from collections.abc import Mapping

from samerge.linalg.core_space import core_space
from samerge.linalg.triplets import Triplets
from samerge.methods.aligned import Aligned, aligned_ties, held
from samerge.methods.method import Method
from samerge.methods.ties import TrimOptions


def by_cores(parts: Mapping[int, Triplets], rank: int, options: TrimOptions) -> Aligned:
    """The alignment of `core-ties`."""
    space = core_space(list(parts.values()))
    values = {n: held(core) for n, core in zip(parts, space.cores, strict=True)}
    return Aligned(space.left, values, space.right)


METHOD = Method("core-ties", aligned_ties(by_cores, "layer"), TrimOptions, exact=True, by_site=False)
