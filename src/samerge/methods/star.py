"""`star`: the mean of the adapters, each truncated and rescaled to keep its nuclear norm (STAR; Lee et al. 2025).

    tau_i = U S V^T;  r = the least number of leading singular values with s_1 + ... + s_r >= eta (s_1 + s_2 + ...)
    tau_i' = (s_1 + s_2 + ...) / (s_1 + ... + s_r) U_r S_r V_r^T        the nuclear norm is kept
    M = 1/N sum_i w_i tau_i'

eta is 0.4. N counts the adapters of the whole merge, also those that do not change the layer. Cost: a copy of the
triplets.
"""

from __future__ import annotations

from collections.abc import Mapping

from samerge.linalg.stack import stacked
from samerge.linalg.triplets import Triplets
from samerge.methods.by_triplets import by_triplets
from samerge.methods.method import Method
from samerge.methods.tsv import leading
from samerge.options.option import Options

#: Share of the nuclear norm that the kept singular values reach.
_ETA = 0.4


def star(
    parts: Mapping[int, Triplets], weights: Mapping[int, float], count: int, options: Options
) -> tuple[Triplets, Mapping[int, float]]:
    """The merged update, and the share of its energy that each adapter kept before it was rescaled."""
    kept, energies = {}, {}
    for n, part in parts.items():
        sums = part.S.cumsum(0)
        rank = int((sums < _ETA * sums[-1] * (1 - 1e-12)).sum()) + 1  # the sum's own rounding costs no component
        kept[n] = leading(part, rank).scaled(weights[n] / count * float(sums[-1] / sums[rank - 1]))
        energies[n] = float(part.S[:rank].square().sum() / part.S.square().sum())
    return stacked(kept).compact(), energies


METHOD = Method("star", by_triplets(star), exact=True)
