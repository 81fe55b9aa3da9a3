"""The forward flow in a few lines of numpy: slow, obvious, and in the tests alone."""

from __future__ import annotations

import numpy as np

from samerge.graph import FlowGraph, Gather, Weight


def streams_of(graph: FlowGraph, weights: dict[str, np.ndarray], width: int) -> dict[str, np.ndarray]:
    """alpha of every stream; an edge whose shape does not fit raises."""
    alpha = {name: np.ones(width) for name in graph.inputs}
    for name in graph.streams:
        if name in graph.inputs:
            continue
        brought = [_through(edge, alpha[edge.source], weights) for edge in graph.incoming[name]]
        assert len({vector.shape for vector in brought}) == 1, f"{name}: {[vector.shape for vector in brought]}"
        alpha[name] = np.sum(brought, axis=0)
    return alpha


def score(graph: FlowGraph, weights: dict[str, np.ndarray], width: int) -> float:
    """R: the strengths of all paths from the inputs to the outputs."""
    alpha = streams_of(graph, weights, width)
    return sum(float(alpha[name].sum()) for name in graph.outputs)


def _through(edge: Weight | Gather, alpha: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    if isinstance(edge, Gather):
        if edge.index is None:
            return alpha
        assert edge.index.min() >= 0  # a negative index would count from the end
        return alpha[edge.index]
    weight = np.abs(weights[edge.tensor])
    if edge.expert is not None:
        weight = weight[edge.expert]
    return (weight.T if edge.transposed else weight) @ alpha
