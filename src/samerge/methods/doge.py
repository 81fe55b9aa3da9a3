"""`doge`: one change to all adapters that lets their sum do what each does, found by descent (DOGE; Wei et al. 2025).

arXiv 2501.01230, task arithmetic without data, as fusion-bench has it. In a layer, with
rows p, l_i = eta w_i / ||tau_i||_F, and D = 0 to begin with:

    L(D) = sum_j sum_p <tau_j[p], tau_j[p] - sum_i l_i (tau_i + D)[p]>^2
    G    = (I - P) dL/dD                       P projects on the `shared` share of the leading left singular vectors of
                                               [U_1 ... U_N], the tau_i = U_i S_i V_i^T
    D    `steps` steps of Adam along G, of length `rate`
    M    = sum_i l_i m_i (tau_i + D)           m_i = 1 where |tau_i| is among its top `density` over the whole
                                               flattened adapter, 0 elsewhere

Adam moves every entry by about `rate` whatever the size of the updates, and eta sets the size of M: both were published
for full weights of CLIP models. The authors take min(d_out, d_in) / N columns of each U_i, and a sixth of
min(d_out, d_in) vectors of them together; low-rank updates have r_i and R. Streamed, then truncated. Memory: five
numbers for each element of a layer. Cost: 4 R d_out d_in operations for each step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samerge.linalg.factors import LoraFactors, norm
from samerge.linalg.gram import singular_vectors
from samerge.linalg.triplets import singular
from samerge.methods.memory import check_memory
from samerge.methods.method import Begun, Method
from samerge.methods.problem import Problem
from samerge.methods.rows import Combine, Layer, by_rows, column, magnitudes
from samerge.options.kinds import real, share, whole
from samerge.options.option import Options, option

#: Adam's.
_BETAS, _LEAST = (0.9, 0.999), 1e-8

#: Directions whose sizes differ by a smaller share are equal: two adapters of unlike rank have some.
_SAME = 1e-6

#: Numbers held for each element while D is sought: D, its gradient, Adam's two means, and a product.
_HELD = 5


@dataclass(frozen=True)
class DogeOptions(Options):
    """Options of `doge`."""

    density: float = option(share(), 0.3, "Share of its elements that each adapter keeps.")
    eta: float = option(real(0), 0.07, "Norm that each adapter is brought to in each layer.")
    shared: float = option(share(), 1 / 6, "Share of the adapters' directions that all have in common and stay.")
    steps: int = option(whole(0, 10_000), 400, "Steps of the descent.")
    rate: float = option(real(0), 1e-4, "How far an entry moves in a step.")


def begin(problem: Problem, options: DogeOptions) -> Begun:
    """`doge`, with the weights of every layer."""
    check_memory(problem, held=2, work=lambda shape, components: 4 * _HELD * shape[0] * shape[1])
    weights = {site.module: problem.weights_at(site) for site in problem.own}
    return by_rows(lambda layers, given: prepare(layers, given, weights))(problem, options)


def prepare(
    layers: Sequence[Layer], options: DogeOptions, weights: Mapping[str, Sequence[float]] | None = None
) -> Combine:
    """`doge` as `by_rows` runs it.

    Args:
        layers: all layers.
        options: its own.
        weights: by module, one for each adapter's number; 1 where it is not said.
    """
    limits = magnitudes(layers, lambda size: [max(1, round(options.density * size))])
    last: dict[str, tuple[Tensor, Tensor]] = {}  # of one layer at a time: D, and l_i / w_i

    def combine(layer: Layer, start: int, tiles: Tensor) -> tuple[Tensor, Tensor]:
        own = [1.0 if weights is None else weights[layer.module][n] for n in layer.parts]
        if layer.module not in last:
            last.clear()
            taus = [LoraFactors(p.A, p.B / w if w else p.B) for p, w in zip(layer.parts.values(), own, strict=True)]
            sizes = [float(norm(tau)) for tau in taus]
            loads = column([options.eta / size if size else 0.0 for size in sizes], tiles)
            last[layer.module] = change(taus, (loads[:, 0, 0] * tiles.new_tensor(own)).tolist(), options), loads
        moved, loads = last[layer.module]
        mask = tiles.abs() >= column([limits(layer, n)[0] for n in layer.parts], tiles)
        changed = tiles + column(own, tiles) * moved[start : start + layer.step]
        return tiles * mask, (loads * changed * mask).sum(dim=0)

    return combine


def change(taus: Sequence[LoraFactors], loads: Sequence[float], options: DogeOptions) -> Tensor:
    """D of a layer, (d_out, d_in).

    Args:
        taus: the adapters' updates there.
        loads: l_i.
        options: the method's.
    """
    A, B = torch.cat([tau.A for tau in taus]), torch.cat([tau.B for tau in taus], dim=1)  # (R, d_in), (d_out, R)
    counts = [tau.rank for tau in taus]
    each = torch.repeat_interleave(torch.eye(len(taus), dtype=A.dtype, device=A.device), A.new_tensor(counts).long(), 0)
    Gram = A @ A.T
    mixed = B * (torch.tensor(loads, dtype=A.dtype, device=A.device) @ each.T)  # the sum's left factor
    start = (B * ((B @ each_block(Gram, each)) - mixed @ Gram)) @ each  # <tau_j[p], (tau_j - sum_i l_i tau_i)[p]>
    total = sum(loads)
    common = shared_directions(taus, options.shared).to(A.dtype)

    D, mean, square = (torch.zeros(B.shape[0], A.shape[1], dtype=A.dtype, device=A.device) for _ in range(3))
    if common.shape[1] == len(B):  # no direction is free, and Adam would make something of the rounding
        return D
    for step in range(1, options.steps + 1):
        gap = start - total * ((B * (D @ A.T)) @ each)  # (d_out, N)
        G = (-2 * total * B * (gap @ each.T)) @ A
        G -= common @ (common.T @ G)
        mean.lerp_(G, 1 - _BETAS[0])
        square.mul_(_BETAS[1]).addcmul_(G, G, value=1 - _BETAS[1])
        scale = (square / (1 - _BETAS[1] ** step)).sqrt_().add_(_LEAST)
        D.addcdiv_(mean, scale, value=-options.rate / (1 - _BETAS[0] ** step))
    return D


def shared_directions(taus: Sequence[LoraFactors], share: float) -> Tensor:
    """The leading left singular vectors of [U_1 ... U_N], (d_out, k); those that equal the last one stay with it."""
    U, s, _ = singular_vectors(torch.cat([singular(tau).U for tau in taus], dim=1))
    count = int(share * len(s))
    return U[:, : int((s >= (1 - _SAME) * s[count - 1]).sum())] if count else U[:, :0]


def each_block(matrix: Tensor, each: Tensor) -> Tensor:
    """A matrix over all components, its blocks between two adapters made zero; `each` (R, N) says whose they are."""
    return matrix * (each @ each.T)


METHOD = Method("doge", begin, DogeOptions, by_site=False)
