"""Connectivity: the flows of every expert through the flow graph, and the structural sensitivity gamma.

For an expert with effective weights W^l = theta0^l + tau^l, the connectivity is R = 1^T (prod_l |W^l|) 1. With the
forward flow alpha^l = |W^l| alpha^(l-1) and the backward flow beta^(l-1) = |W^l|^T beta^l,

    dR/dW^l = sign(W^l) * (beta^l alpha^(l-1)^T)

so for a rank-1 component b_k a_k^T of the update

    gamma_k = b_k^T (dR/dW) a_k = sum_ij beta_i B_ik sign(W)_ij A_kj alpha_j.

Two sweeps over the base compute all of it for all experts together: forward for alpha, backward for beta and gamma.
Each tile of a weight is read once a sweep. Neither tau, nor a whole W, nor the gradient ever exists.

R grows beyond any float: every stream is held as a vector of mean 1 and the log of its scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samerge.checkpoints import WeightSource, matrix_shape, read_tile
from samerge.errors import GraphError
from samerge.factors import LoraFactors
from samerge.graph import FlowGraph, Gather, Weight
from samerge.kernels.tiles import BLOCK_COLUMNS, Scratch, Update, sweep_plain, sweep_tile, update
from samerge.parallel import Workers, workers

#: Entries of a tile on the CPU: 512 KiB in float32, so that theta, W and sign(W) stay in a core's own cache together.
TILE_ELEMENTS = 1 << 17


def weight_key(edge: Weight) -> str:
    """The name of the linear map that an edge uses: the tensor, with `[e]` for one expert of a stack."""
    return edge.tensor if edge.expert is None else f"{edge.tensor}[{edge.expert}]"


@dataclass(frozen=True)
class Stream:
    """A flow of every expert: true value = `values * exp(logs)`.

    Args:
        values: (N, width), each row of mean 1 (or all zero).
        logs: (N,) float64.
    """

    values: Tensor
    logs: Tensor


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
        experts: for each expert, its factors by weight key (`weight_key`); (out, in), any rank, rank 0 included.
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
        sweep = _Sweep(graph, source, experts, device, dtype, tile_elements, crew, advance)
        alpha = sweep.forward()
        return Connectivity(sweep.backward(alpha), sweep.log_connectivity(alpha))


@dataclass(frozen=True)
class _Piece:
    """Some rows of a weight for some experts; `first` of those with the same rows."""

    start: int
    stop: int
    updates: Sequence[Update]
    first: bool


class _Sweep:
    """One forward and one backward walk over the graph, with what both need."""

    def __init__(
        self,
        graph: FlowGraph,
        source: WeightSource,
        experts: Sequence[Mapping[str, LoraFactors]],
        device: torch.device,
        dtype: torch.dtype,
        tile_elements: int,
        crew: Workers,
        advance: Callable[[int], None],
    ) -> None:
        self.graph, self.source, self.count = graph, source, len(experts)
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
        self.widths = stream_widths(graph, source.shapes)
        self.scratch = Scratch()

    def forward(self) -> dict[str, Stream]:
        """alpha of every stream, in topological order."""
        alpha: dict[str, Stream] = {}
        for name in self.graph.streams:
            if name in self.graph.inputs:
                alpha[name] = self._ones(self.widths[name])
                continue
            parts = []
            for edge in self.graph.incoming[name]:
                before = alpha[edge.source]
                if isinstance(edge, Weight):
                    values = self._flow(edge, before.values)
                else:
                    values = before.values if edge.index is None else before.values[:, self._index(edge.index)]
                parts.append(Stream(values, before.logs))
            alpha[name] = _sum(parts)
        return alpha

    def backward(self, alpha: Mapping[str, Stream]) -> tuple[dict[str, Sensitivity], ...]:
        """gamma of every adapted weight, walking the streams backwards with beta."""
        parts: dict[str, list[Stream]] = {name: [] for name in self.graph.streams}
        found: list[dict[str, Sensitivity]] = [{} for _ in self.experts]
        for name in self.graph.outputs:
            parts[name].append(self._ones(self.widths[name]))
        for name in reversed(self.graph.streams):
            if not parts[name]:
                continue  # nothing that leads to an output passes here
            beta = _sum(parts.pop(name))
            for edge in self.graph.incoming[name]:
                if isinstance(edge, Gather):
                    values = beta.values
                    if edge.index is not None:
                        values = values.new_zeros(self.count, self.widths[edge.source])
                        values.index_add_(1, self._index(edge.index), beta.values)
                else:
                    before = alpha[edge.source]
                    gammas: dict[int, Tensor] = {}
                    values = self._flow(edge, beta.values, backward=True, alpha=before.values, gammas=gammas)
                    logs = (before.logs + beta.logs).tolist()
                    for n, gamma in gammas.items():
                        one = Sensitivity(gamma, logs[n])
                        key = weight_key(edge)
                        found[n][key] = _add(found[n][key], one) if key in found[n] else one
                parts[edge.source].append(Stream(values, beta.logs))
        return tuple(found)

    def log_connectivity(self, alpha: Mapping[str, Stream]) -> tuple[float, ...]:
        """log R = log of the sum of alpha over all outputs."""
        ends = [alpha[name].values.double().sum(1).log() + alpha[name].logs for name in self.graph.outputs]
        return tuple(torch.logsumexp(torch.stack(ends), dim=0).tolist())

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
        key = weight_key(edge)
        along_rows = edge.transposed == backward
        height, width = matrix_shape(self.source.shapes[edge.tensor], edge.expert)
        result = flow.new_empty(self.count, height) if along_rows else flow.new_zeros(self.count, width)
        updates: list[Update] = []
        for n, expert in enumerate(self.experts):
            if key in expert:
                u, v = (None, None) if alpha is None else (flow[n], alpha[n])
                if edge.transposed:
                    u, v = v, u
                updates.append(update(n, expert[key], edge.transposed, u, v))
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
                    gammas[n] = gammas[n] + gamma.double() if n in gammas else gamma.double()
            if piece.first:
                self.advance((piece.stop - piece.start) * width)
        return result

    def _pieces(self, height: int, width: int, updates: Sequence[Update]) -> Iterator[_Piece]:
        """A weight's tiles; where there are fewer of them than workers, shared out further by experts.

        Neither the tiles nor the sums depend on the number of workers, so the result does not either.
        """
        most = max(1, self.tile_elements // max(1, min(width, BLOCK_COLUMNS)))
        step = -(-height // -(-height // most))  # tiles of like height
        groups = max(1, min(len(updates), -(-self.workers.count * step // height)))
        for start in range(0, height, step):
            for group in range(groups):
                yield _Piece(start, min(start + step, height), updates[group::groups], first=group == 0)

    def _index(self, index: np.ndarray) -> Tensor:
        return torch.from_numpy(index).to(self.device)

    def _ones(self, width: int) -> Stream:
        return Stream(
            torch.ones(self.count, width, dtype=self.dtype, device=self.device),
            torch.zeros(self.count, dtype=torch.float64, device=self.device),
        )


def stream_widths(graph: FlowGraph, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The width of every stream, from the shapes of the weights around it.

    Raises:
        GraphError: a weight is missing, two weights at a stream disagree, or nothing tells a stream's width.
    """
    widths: dict[str, int] = {}

    def settle(stream: str, width: int, why: str) -> None:
        if widths.setdefault(stream, width) != width:
            raise GraphError(
                f"the flow graph does not chain: stream {stream!r} is {widths[stream]} wide, but {why} makes it {width}"
            )

    for edge in graph.edges:
        if isinstance(edge, Weight):
            if edge.tensor not in shapes:
                raise GraphError(f"the flow graph names the weight {edge.tensor!r}, which the base model does not have")
            rows, columns = matrix_shape(shapes[edge.tensor], edge.expert)
            out, into = (columns, rows) if edge.transposed else (rows, columns)
            settle(edge.source, into, f"{edge.tensor} {shapes[edge.tensor]}")
            settle(edge.target, out, f"{edge.tensor} {shapes[edge.tensor]}")
        elif edge.index is not None:
            settle(edge.target, len(edge.index), f"the gather from {edge.source!r}")
    pending = [edge for edge in graph.edges if isinstance(edge, Gather) and edge.index is None]
    while pending:  # identities carry a known width along, in either direction
        rest = []
        for edge in pending:
            known = widths.get(edge.source, widths.get(edge.target))
            if known is None:
                rest.append(edge)
                continue
            settle(edge.source, known, f"the identity to {edge.target!r}")
            settle(edge.target, known, f"the identity from {edge.source!r}")
        if len(rest) == len(pending):
            raise GraphError(f"nothing tells the width of the stream {rest[0].source!r}; join it to a weight")
        pending = rest
    unknown = [name for name in graph.streams if name not in widths]
    if unknown:
        raise GraphError(f"nothing tells the width of the stream {unknown[0]!r}; join it to a weight")
    return widths


def local_graph(weights: Iterable[Weight]) -> FlowGraph:
    """Every layer by itself, alpha = beta = 1: `connectivity="local"`, for architectures without a flow graph."""
    edges = [
        Weight(f"into {weight_key(w)}", f"out of {weight_key(w)}", w.tensor, w.transposed, w.expert) for w in weights
    ]
    return FlowGraph(edges, [edge.source for edge in edges], [edge.target for edge in edges])


def _sum(parts: Sequence[Stream]) -> Stream:
    """The sum of streams: brought to a common scale for each expert, added, divided by the mean."""
    # a stream of zeros has no scale, and must not drown the others with the one it came with
    scales = [torch.where((part.values != 0).any(1), part.logs, -math.inf) for part in parts]
    logs = torch.stack(scales).amax(0).nan_to_num(neginf=0.0)
    values = parts[0].values if len(parts) == 1 else torch.zeros_like(parts[0].values)
    if len(parts) > 1:
        for part in parts:
            values = values + part.values * (part.logs - logs).clamp_max(0).exp().to(values.dtype)[:, None]
    mean = values.double().mean(1)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))  # a stream of zeros stays zeros
    return Stream(values / mean.to(values.dtype)[:, None], logs + mean.log())


def _add(a: Sensitivity, b: Sensitivity) -> Sensitivity:
    """The sum of the sensitivities of a weight that is used twice."""
    log = max(a.log, b.log)
    return Sensitivity(a.values * math.exp(a.log - log) + b.values * math.exp(b.log - log), log)
