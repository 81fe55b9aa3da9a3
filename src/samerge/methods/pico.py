"""`pico`: directions that many adapters write to are damped before the sum (Pico; Tang and Yang 2026).

arXiv 2604.16826, as its authors' code has it, with task arithmetic. With the N adapters that change the layer, B_i with
its scale, as trained:

    [B_1 ... B_N] = U diag(s) V^T,   a_r = 1 / (1 + (N - 1) s_r^2 / sum s^2)
    B_i' = B_i + U diag(a - 1) U^T B_i
    M    = g sum_i w_i B_i' A_i,     g so that ||M|| = mean_i |w_i| ||tau_i||

It depends on the gauge: (B_i Q, Q^-1 A_i) is the same update, but has other directions and sizes of B. The authors also
put their damping before TIES and TSV-Merge; here it is before the sum. Cost: the Gram matrix of the B_i and its
eigenproblem.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, cat

from samerge.linalg.factors import LoraFactors, concatenate, norm
from samerge.linalg.gram import singular_vectors, times
from samerge.linalg.triplets import from_factors, zero
from samerge.methods.memory import check_memory
from samerge.methods.method import Begun, MergedLayer, Method, Share
from samerge.methods.problem import Part, Problem, Site
from samerge.methods.scaling import norm_rule
from samerge.options.option import Options


def begin(problem: Problem, options: Options) -> Begun:
    """Damp, add and restore the norm, layer by layer."""
    check_memory(problem)

    def layer(site: Site, parts: Mapping[int, Part]) -> MergedLayer:
        nothing = {n: Share(part.rank) for n, part in parts.items() if not part.norm}
        parts = {n: part for n, part in parts.items() if part.norm}  # the others do not change the layer
        if not parts:
            return MergedLayer(zero(site.shape), nothing)
        own = problem.weights_at(site)
        weights = [own[n] for n in parts]
        factors = [part.factors for part in parts.values()]
        calmed = [LoraFactors(one.A, B) for one, B in zip(factors, damped([one.B for one in factors]), strict=True)]
        merged = concatenate(calmed, weights)
        sizes = {n: float(norm(one)) for n, one in zip(parts, calmed, strict=True)}
        shares = nothing | {
            n: Share(part.rank, energy=min(1.0, (sizes[n] / part.norm) ** 2)) for n, part in parts.items()
        }
        loudness = [abs(w) * part.norm for w, part in zip(weights, parts.values(), strict=True)]
        restored = norm_rule(float(norm(merged)), loudness, 1.0)
        return MergedLayer(from_factors(merged).scaled(restored).compact(), shares)

    return Begun(layer)


def damped(matrices: list[Tensor]) -> list[Tensor]:
    """B_i' for the B_i of all adapters, (d_out, r_i) each."""
    U, s, _ = singular_vectors(cat(matrices, dim=1))
    shares = s.square() / s.square().sum()
    change = 1 / (1 + (len(matrices) - 1) * shares) - 1
    return [(B.double() + (U * change) @ times(U.T, B)).to(B.dtype) for B in matrices]


METHOD = Method("pico", begin, exact=True)
