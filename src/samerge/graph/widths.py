"""What follows from a graph and the shapes of its weights: the width of every stream; and graphs of single layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from samerge.errors import GraphError
from samerge.graph.flow import FlowGraph, Gather, Weight


def matrix_shape(shape: tuple[int, ...], expert: int | None) -> tuple[int, int]:
    """(rows, columns) of a weight seen as a matrix: a stack without its first dimension, a kernel flattened."""
    shape = shape if expert is None else shape[1:]
    columns = 1
    for size in shape[1:]:
        columns *= size
    return shape[0], columns


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
    edges = [Weight(f"into {w.key}", f"out of {w.key}", w.tensor, w.transposed, w.expert) for w in weights]
    return FlowGraph(edges, [edge.source for edge in edges], [edge.target for edge in edges])
