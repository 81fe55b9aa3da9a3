"""Connectivity: the flows of every expert through the flow graph, and the structural sensitivity gamma.

For an expert with effective weights W^l = theta0^l + tau^l, the connectivity is R = 1^T (prod_l |W^l|) 1. With the
forward flow alpha^l = |W^l| alpha^(l-1) and the backward flow beta^(l-1) = |W^l|^T beta^l,

    dR/dW^l = sign(W^l) * (beta^l alpha^(l-1)^T)

so for a rank-1 component b_k a_k^T of the update

    gamma_k = b_k^T (dR/dW) a_k = sum_ij beta_i B_ik sign(W)_ij A_kj alpha_j.

Two sweeps over the base compute all of it for all experts together: forward for alpha, backward for beta and gamma.
Each tile of a weight is read once a sweep. Neither tau, nor a whole W, nor the gradient ever exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from samerge.graph import FlowGraph, Weight
from samerge.graph.widths import matrix_shape
from samerge.linalg.factors import LoraFactors
from samerge.parallel.processes import group
from samerge.parallel.supply import Lending, Supply
from samerge.parallel.threads import Workers, workers
from samerge.saliency.flows import Stream, visits, walk
from samerge.saliency.kernels.backend import Kernel, choose
from samerge.saliency.kernels.sweeps import Sweep
from samerge.weights import WeightSource, read_tile


@dataclass(frozen=True)
class Sensitivity:
    """gamma of one expert at one weight: true value = `values * exp(log)`.

    Args:
        values: (r,) float64, for the components in the order of the factors that went in.
        log: log of the common scale.
    """

    values: Tensor
    log: float


@dataclass(frozen=True)
class Connectivity:
    """What the two sweeps give.

    Args:
        gamma: for each expert, its sensitivities by weight key. Only weights that the expert adapts.
        log_connectivity: for each expert, log R.
        kernel: name of the kernel that worked the tiles.
    """

    gamma: tuple[dict[str, Sensitivity], ...]
    log_connectivity: tuple[float, ...]
    kernel: str | None = None


def connectivity(
    graph: FlowGraph,
    source: WeightSource,
    experts: Sequence[Mapping[str, LoraFactors]],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    tile_elements: int | None = None,
    advance: Callable[[int], None] = lambda entries: None,
    owners: Mapping[str, int] | None = None,
) -> Connectivity:
    """gamma and log R of every expert, by two sweeps over the base.

    Args:
        graph: how the weights feed one another.
        source: the base weights.
        experts: for each expert, its factors by weight key (`Weight.key`); (out, in), any rank, rank 0 included.
        device: where to compute.
        dtype: what to compute in; float64 for checks.
        tile_elements: entries of a tile, whole rows; by default what suits the kernel.
        advance: called with the number of weight entries just swept (progress).
        owners: with several processes, the one that holds the factors at a weight, by key; they are on the meta device
            in all others. None where every process has all.

    Returns:
        The sensitivities, with the scale of the factors folded in, and log R.

    Raises:
        GraphError: shapes of neighbouring weights do not chain.
        KernelError: the kernel that SAMERGE_KERNEL names cannot be had.
    """
    device = torch.device(device)
    kernel = choose(device, dtype)
    with workers(device) as crew:
        lending = None if owners is None else Lending(group(), owners)
        supply = Supply(experts, lending, (edge.key for edge in visits(graph)), device, dtype)
        weights = _LowRank(source, supply, device, kernel, tile_elements, crew, advance)
        try:
            logs = walk(graph, source.shapes, len(experts), weights, device, dtype)
        finally:
            supply.close()
    return Connectivity(weights.all_gammas(), logs, kernel.name)


@dataclass(frozen=True)
class _Piece:
    """Some rows of a weight for some experts; `first` of those with the same rows."""

    start: int
    stop: int
    part: _Part
    first: bool


@dataclass(frozen=True)
class _Part:
    """Some experts at a weight: their numbers, where their rows lie among all experts', and their sweep."""

    experts: Sequence[int]
    rows: slice | Tensor
    sweep: Sweep


class _LowRank:
    """What a weight with low-rank updates does to the flows; gathers gamma on the way back."""

    def __init__(
        self,
        source: WeightSource,
        supply: Supply,
        device: torch.device,
        kernel: Kernel,
        tile_elements: int | None,
        crew: Workers,
        advance: Callable[[int], None],
    ) -> None:
        self.source, self.supply, self.count = source, supply, len(supply.experts)
        self.device, self.kernel, self.tile_elements = device, kernel, tile_elements
        self.workers, self.advance = crew, advance
        self.found: list[tuple[str, dict[int, Tensor], Tensor]] = []  # a weight's key, its gammas, their logs
        self.group = group()

    def all_gammas(self) -> tuple[dict[str, Sensitivity], ...]:
        """The gammas over the rows of all processes."""
        gamma: list[dict[str, Sensitivity]] = [{} for _ in range(self.count)]
        # All logs at once: a number that is wanted earlier makes the host wait for the device.
        logs = torch.stack([logs for _, _, logs in self.found]).tolist() if self.found else []
        for (key, gammas, _), own in zip(self.found, logs, strict=True):
            for n, values in gammas.items():
                one, known = Sensitivity(values, own[n]), gamma[n].get(key)
                gamma[n][key] = one if known is None else _add(known, one)
        parts = [one.values for expert in gamma for one in expert.values()]
        if self.group.size > 1 and parts:
            summed = iter(torch.split(self.group.sum(torch.cat(parts)), [len(part) for part in parts]))
            return tuple({k: Sensitivity(next(summed), one.log) for k, one in expert.items()} for expert in gamma)
        return tuple(gamma)

    def forward(self, edge: Weight, alpha: Stream) -> Tensor:
        """|W_n| alpha_n."""
        return self._flow(edge, alpha.values)

    def backward(self, edge: Weight, beta: Stream, alpha: Stream) -> Tensor:
        """|W_n|^T beta_n, and the gammas of this weight."""
        gammas: dict[int, Tensor] = {}  # in the order of the experts, with zeros where this process has no rows
        values = self._flow(edge, beta.values, backward=True, alpha=alpha.values, gammas=gammas)
        self.found.append((edge.key, gammas, alpha.logs + beta.logs))
        return values

    def _flow(
        self,
        edge: Weight,
        flow: Tensor,
        backward: bool = False,
        alpha: Tensor | None = None,
        gammas: dict[int, Tensor] | None = None,
    ) -> Tensor:
        """|W| flow, or |W|^T flow backwards, for all experts, (N, width); fills `gammas` on the way back.

        The product lies along the rows of the stored matrix (each tile gives some rows of the result), or along its
        columns (the tiles' results are summed, in order).
        """
        along_rows = edge.transposed == backward
        height, width = matrix_shape(self.source.shapes[edge.tensor], edge.expert)
        factors = self.supply.at(edge.key)
        u, v = (alpha, flow) if along_rows else (flow, alpha)
        if gammas is not None:
            for n, own in enumerate(factors):
                if own is not None:
                    gammas[n] = torch.zeros(own.rank, dtype=torch.float64, device=self.device)
        dtype = self.kernel.tile_dtype(self.source.dtype(edge.tensor))

        def part(experts: Sequence[int]) -> _Part:
            rows: slice | Tensor = slice(experts[0], experts[-1] + 1)
            if list(experts) != list(range(experts[0], experts[-1] + 1)):
                rows = torch.tensor(experts, device=self.device)
            sides = (None if u is None else u[rows], None if v is None else v[rows])
            own = [factors[n] for n in experts]
            return _Part(experts, rows, self.kernel.sweep(own, edge.transposed, sides, along_rows))

        def work(piece: _Piece) -> tuple[_Piece, Tensor, list[Tensor]]:
            tile = read_tile(self.source, edge.tensor, edge.expert, piece.start, piece.stop, self.device, dtype)
            return piece, *piece.part.sweep(tile, piece.start)

        step = self._step(height, width)

        def fill(result: Tensor) -> None:
            parts = [part(experts) for experts in self._shared_out(factors, -(-self.workers.count * step // height))]
            for piece, found, sensed in self.workers.map(work, self._pieces(height, step, parts)):
                if along_rows:
                    result[piece.part.rows, piece.start : piece.stop] = found
                else:
                    result[piece.part.rows] += found
                if gammas is not None:
                    adapted = [n for n in piece.part.experts if n in gammas]
                    for n, gamma in zip(adapted, sensed, strict=True):
                        gammas[n] += gamma
                if piece.first:
                    self.advance((piece.stop - piece.start) * width)

        return self.group.summed((self.count, height if along_rows else width), flow, fill)

    def _step(self, height: int, width: int) -> int:
        """Rows of a tile."""
        if self.tile_elements is None:
            return self.kernel.tile_rows(height, width)
        return max(1, min(height, self.tile_elements // max(1, width)))

    def _shared_out(self, factors: Sequence[LoraFactors | None], parts: int) -> list[list[int]]:
        """The experts in so many parts, where there are enough; those that do not adapt the weight in the first.

        Neither the tiles nor what is summed up in one operation depends on the number of parts, and so of workers.
        """
        adapted = [n for n, own in enumerate(factors) if own is not None]
        plain = [n for n, own in enumerate(factors) if own is None]
        parts = max(1, min(parts, len(adapted)))
        edges = [len(adapted) * number // parts for number in range(parts + 1)]
        found = [adapted[first:last] for first, last in pairwise(edges)]
        return [sorted(plain + found[0]), *found[1:]]

    def _pieces(self, height: int, step: int, parts: Sequence[_Part]) -> Iterator[_Piece]:
        """This process's tiles of a weight, each for all parts of the experts."""
        for number in self.group.share(-(-height // step)):
            start = number * step
            for place, part in enumerate(parts):
                yield _Piece(start, min(start + step, height), part, first=place == 0)


def _add(a: Sensitivity, b: Sensitivity) -> Sensitivity:
    """The sum of the sensitivities of a weight that is used twice."""
    log = max(a.log, b.log)
    return Sensitivity(a.values * math.exp(a.log - log) + b.values * math.exp(b.log - log), log)
