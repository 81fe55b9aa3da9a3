"""Walking a flow graph: alpha forwards, beta backwards, for all experts together, without overflow.

The connectivity of an expert, R = 1^T (prod_l |W^l|) 1, grows beyond any float: every stream is held as a vector of
mean 1 and the log of its scale. Where edges meet, their streams are brought to a common scale, added, and divided by
the mean: exact on any directed acyclic graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from samerge.graph import FlowGraph, Gather, Weight
from samerge.graph.widths import stream_widths


@dataclass(frozen=True)
class Stream:
    """A flow of every expert: true value = `values * exp(logs)`.

    Args:
        values: (N, width), each row of mean 1 (or all zero).
        logs: (N,) float64.
    """

    values: Tensor
    logs: Tensor


class EdgeFlow(Protocol):
    """What a weight does to the flows of all experts; whoever walks the graph supplies it."""

    def forward(self, edge: Weight, alpha: Stream) -> Tensor:
        """|W_n| alpha_n for every expert: (N, in) -> (N, out)."""

    def backward(self, edge: Weight, beta: Stream, alpha: Stream) -> Tensor:
        """|W_n|^T beta_n for every expert: (N, out) -> (N, in). Here both flows at the weight are known."""


def walk(
    graph: FlowGraph,
    shapes: Mapping[str, tuple[int, ...]],
    count: int,
    weights: EdgeFlow,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[float, ...]:
    """One walk forwards with alpha, one backwards with beta.

    Args:
        graph: how the weights feed one another.
        shapes: of the base's tensors.
        count: number of experts, N.
        weights: what each weight does to the flows; sees every weight once forwards, then once backwards with both
            flows at hand.
        device: where the streams lie.
        dtype: of the streams.

    Returns:
        log R of every expert.

    Raises:
        GraphError: shapes of neighbouring weights do not chain.
    """
    widths = stream_widths(graph, shapes)

    def ones(name: str) -> Stream:
        return Stream(
            torch.ones(count, widths[name], dtype=dtype, device=device),
            torch.zeros(count, dtype=torch.float64, device=device),
        )

    def places(index: np.ndarray) -> Tensor:
        return torch.tensor(index, device=device)

    alpha: dict[str, Stream] = {}
    for name in graph.streams:
        if name in graph.inputs:
            alpha[name] = ones(name)
            continue
        arriving = []
        for edge in graph.incoming[name]:
            before = alpha[edge.source]
            if isinstance(edge, Weight):
                values = weights.forward(edge, before)
            else:
                values = before.values if edge.index is None else before.values[:, places(edge.index)]
            arriving.append(Stream(values, before.logs))
        alpha[name] = _sum(arriving)

    leaving: dict[str, list[Stream]] = {name: [] for name in graph.streams}
    for name in graph.outputs:
        leaving[name].append(ones(name))
    for name in reversed(graph.streams):
        if not leaving[name]:
            continue  # nothing that leads to an output passes here
        beta = _sum(leaving.pop(name))
        for edge in graph.incoming[name]:
            if isinstance(edge, Weight):
                values = weights.backward(edge, beta, alpha[edge.source])
            else:
                values = _ungather(edge, beta.values, widths[edge.source], places)
            leaving[edge.source].append(Stream(values, beta.logs))

    ends = [alpha[name].values.double().sum(1).log() + alpha[name].logs for name in graph.outputs]
    return tuple(torch.logsumexp(torch.stack(ends), dim=0).tolist())


def visits(graph: FlowGraph) -> Iterator[Weight]:
    """The weights in the order in which `walk` comes to them: all forwards, then backwards those that matter."""
    for name in graph.streams:
        yield from (edge for edge in graph.incoming[name] if isinstance(edge, Weight))
    yield from live_weights(graph)


def live_weights(graph: FlowGraph) -> Iterator[Weight]:
    """The weights on paths to an output: those that the walk backwards comes by, once for each use."""
    reached = set(graph.outputs)
    for name in reversed(graph.streams):
        if name in reached:
            for edge in graph.incoming[name]:
                reached.add(edge.source)
                if isinstance(edge, Weight):
                    yield edge


def _ungather(edge: Gather, values: Tensor, width: int, places: Callable[[np.ndarray], Tensor]) -> Tensor:
    if edge.index is None:
        return values
    return values.new_zeros(values.shape[0], width).index_add_(1, places(edge.index), values)


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
