"""`iso-cts`: a common and a task's own subspaces, made orthonormal together and equal (Iso-CTS; Marczak et al. 2025).

arXiv 2502.04959. With R = sum r_i, common = 0.8, k = round(R (1 - common) / N) and c = R - N k:

    U_c S_c V_c^T         the c leading triplets of sum_i w_i tau_i
    U_i S_i V_i^T         the k leading ones of (1 - U_c U_c^T) w_i tau_i
    M = mean(S) P Q^T     P, Q the polar factors of [U_1 ... U_N U_c] and [V_1 ... V_N V_c], S all their values

The authors count to min(d_out, d_in) in place of R: full weights have as many directions, low-rank updates R at most.
Cost: the singular triplets of the sum, and the Gram matrices of both stacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from samerge.linalg.polar import polar
from samerge.linalg.stack import stacked
from samerge.linalg.triplets import Triplets
from samerge.methods.by_triplets import by_triplets
from samerge.methods.iso_c import existing
from samerge.methods.method import Method
from samerge.methods.tsv import leading
from samerge.options.option import Options

#: Share of the directions that are the leading ones of the sum.
_COMMON = 0.8


def iso_cts(
    parts: Mapping[int, Triplets], weights: Mapping[int, float], count: int, options: Options
) -> tuple[Triplets, Mapping[int, float]]:
    """The merged update."""
    stack = stacked({n: part.scaled(weights[n]) for n, part in parts.items()})
    wide = replace(stack, U=stack.U.double(), V=stack.V.double(), orthonormal=False)
    own = max(0, round((1 - _COMMON) * wide.rank / len(parts)))
    whole = existing(wide.orthonormalised(), float(stack.S.abs().max()))
    common = leading(whole, min(whole.rank, wide.rank - own * len(parts)))
    mixed: dict[int, Triplets] = {}
    for n, part in parts.items():
        U = part.U.double()
        left = U - common.U @ (common.U.T @ U)
        rest = Triplets(left, part.S * weights[n], part.V.double(), False).orthonormalised()
        rest = existing(rest, float(part.S.max()) * abs(weights[n]))
        mixed[n] = leading(rest, min(own, rest.rank))
    found = stacked({**mixed, -1: common})
    if not found.rank:
        return found, {}
    P, Q = polar(found.U), polar(found.V)
    level = found.S.mean()
    dtype = stack.U.dtype
    full = P.full and Q.full
    return Triplets(P.columns.to(dtype), level.expand(found.rank), Q.columns.to(dtype), full).compact(), {}


METHOD = Method("iso-cts", by_triplets(iso_cts), exact=True)
