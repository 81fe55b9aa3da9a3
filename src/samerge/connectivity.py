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

import torch
from torch import Tensor

from samerge.checkpoints import WeightSource, read_tile
from samerge.distributed import group
from samerge.factors import LoraFactors
from samerge.flows import Stream, walk
from samerge.graph import FlowGraph, Weight
from samerge.graph.widths import matrix_shape
from samerge.kernels.tiles import BLOCK_COLUMNS, Scratch, Update, sweep_plain, sweep_tile, update
from samerge.parallel import Workers, workers

#: Entries of a tile on the CPU: 1 MiB in float32. Smaller ones stay in a core's own cache altogether, but then the
#: operations are so short that two threads spend their time passing the interpreter's lock to each other.
TILE_ELEMENTS = 1 << 18


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
    """

    gamma: tuple[dict[str, Sensitivity], ...]
    log_connectivity: tuple[float, ...]


def connectivity(
    graph: FlowGraph,
    source: WeightSource,
    experts: Sequence[Mapping[str, LoraFactors]],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    tile_elements: int = TILE_ELEMENTS,
    advance: Callable[[int], None] = lambda entries: None,
) -> Connectivity:
    """gamma and log R of every expert, by two sweeps over the base.

    Args:
        graph: how the weights feed one another.
        source: the base weights.
        experts: for each expert, its factors by weight key (`Weight.key`); (out, in), any rank, rank 0 included.
        device: where to compute.
        dtype: what to compute in; float64 for checks.
        tile_elements: entries of a tile.
        advance: called with the number of weight entries just swept (progress).

    Returns:
        The sensitivities, with the scale of the factors folded in, and log R.

    Raises:
        GraphError: shapes of neighbouring weights do not chain.
    """
    device = torch.device(device)
    with workers(device) as crew:
        weights = _LowRank(source, experts, device, dtype, tile_elements, crew, advance)
        logs = walk(graph, source.shapes, len(experts), weights, device, dtype)
    return Connectivity(weights.all_gammas(), logs)


@dataclass(frozen=True)
class _Piece:
    """Some rows of a weight for some experts; `first` of those with the same rows."""

    start: int
    stop: int
    updates: Sequence[Update]
    first: bool


class _LowRank:
    """What a weight with low-rank updates does to the flows; gathers gamma on the way back."""

    def __init__(
        self,
        source: WeightSource,
        experts: Sequence[Mapping[str, LoraFactors]],
        device: torch.device,
        dtype: torch.dtype,
        tile_elements: int,
        crew: Workers,
        advance: Callable[[int], None],
    ) -> None:
        self.source, self.count = source, len(experts)
        self.device, self.dtype, self.tile_elements = device, dtype, tile_elements
        self.workers, self.advance = crew, advance
        self.experts = [
            {
                key: factors.to(device, dtype).folded()
                for key, factors in expert.items()
                if factors.rank  # what has no components left is theta0
            }
            for expert in experts
        ]
        self.gamma: list[dict[str, Sensitivity]] = [{} for _ in experts]
        self.scratch = Scratch()
        self.group = group()

    def all_gammas(self) -> tuple[dict[str, Sensitivity], ...]:
        """The gammas over the rows of all processes."""
        parts = [one.values for expert in self.gamma for one in expert.values()]
        if self.group.size > 1 and parts:
            summed = iter(torch.split(self.group.sum(torch.cat(parts)), [len(part) for part in parts]))
            return tuple({k: Sensitivity(next(summed), one.log) for k, one in expert.items()} for expert in self.gamma)
        return tuple(self.gamma)

    def forward(self, edge: Weight, alpha: Stream) -> Tensor:
        """|W_n| alpha_n."""
        return self._flow(edge, alpha.values)

    def backward(self, edge: Weight, beta: Stream, alpha: Stream) -> Tensor:
        """|W_n|^T beta_n, and the gammas of this weight."""
        gammas: dict[int, Tensor] = {}  # in the order of the experts, with zeros where this process has no rows
        values = self._flow(edge, beta.values, backward=True, alpha=alpha.values, gammas=gammas)
        logs = (alpha.logs + beta.logs).tolist()
        for n, gamma in gammas.items():
            one, known = Sensitivity(gamma, logs[n]), self.gamma[n].get(edge.key)
            self.gamma[n][edge.key] = one if known is None else _add(known, one)
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
        key = edge.key
        along_rows = edge.transposed == backward
        height, width = matrix_shape(self.source.shapes[edge.tensor], edge.expert)
        result = flow.new_zeros(self.count, height if along_rows else width)
        updates: list[Update] = []
        for n, expert in enumerate(self.experts):
            if key in expert:
                u, v = (None, None) if alpha is None else (flow[n], alpha[n])
                if edge.transposed:
                    u, v = v, u
                updates.append(update(n, expert[key], edge.transposed, u, v))
                if gammas is not None:
                    gammas[n] = torch.zeros(expert[key].rank, dtype=torch.float64, device=self.device)
        plain = sorted(set(range(self.count)) - {item.expert for item in updates})

        def work(piece: _Piece) -> tuple[_Piece, Tensor, list[Tensor], Tensor | None]:
            tile = read_tile(self.source, edge.tensor, edge.expert, piece.start, piece.stop, self.device, self.dtype)
            found, sensed = sweep_tile(tile, piece.start, piece.updates, flow, along_rows, self.scratch)
            rest = sweep_plain(tile, piece.start, flow[plain], along_rows) if piece.first and plain else None
            return piece, found, sensed, rest

        for piece, found, sensed, rest in self.workers.map(work, self._pieces(height, width, updates)):
            numbers = [item.expert for item in piece.updates]
            for members, part in ((numbers, found), (plain, rest)):
                if part is not None and members:
                    if along_rows:
                        result[members, piece.start : piece.stop] = part
                    else:
                        result[members] += part
            if gammas is not None:
                for n, gamma in zip(numbers, sensed, strict=True):
                    gammas[n] += gamma
            if piece.first:
                self.advance((piece.stop - piece.start) * width)
        return self.group.sum(result)

    def _pieces(self, height: int, width: int, updates: Sequence[Update]) -> Iterator[_Piece]:
        """This process's tiles of a weight; where there are fewer than workers, shared out further by experts.

        Neither the tiles nor the sums depend on the number of workers, so the result does not either.
        """
        most = max(1, self.tile_elements // max(1, min(width, BLOCK_COLUMNS)))
        step = -(-height // -(-height // most))  # tiles of like height
        groups = max(1, min(len(updates), -(-self.workers.count * step // height)))
        for number in self.group.share(-(-height // step)):
            start = number * step
            for part in range(groups):
                yield _Piece(start, min(start + step, height), updates[part::groups], first=part == 0)


def _add(a: Sensitivity, b: Sensitivity) -> Sensitivity:
    """The sum of the sensitivities of a weight that is used twice."""
    log = max(a.log, b.log)
    return Sensitivity(a.values * math.exp(a.log - log) + b.values * math.exp(b.log - log), log)
