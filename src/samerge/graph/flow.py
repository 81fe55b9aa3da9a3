"""The flow graph: how the weights of a model feed one another.

The connectivity score R sums the strengths |W^L| ... |W^1| of all paths from the embeddings' output to the last hidden
state. To compute it one needs to know which weight feeds which. A `FlowGraph` says so: streams (vectors) joined by
edges, a directed acyclic graph. A stream is the sum of what its edges bring.
"""

from __future__ import annotations

import graphlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from samerge.errors import GraphError


@dataclass(frozen=True)
class Weight:
    """An edge that multiplies by the absolute value of a weight.

    Args:
        source: stream that goes in.
        target: stream that comes out.
        tensor: full name of the tensor, e.g. `model.layers.0.self_attn.q_proj.weight`.
        transposed: False for a weight stored (out, in) as in `nn.Linear`; True for (in, out) as in GPT-2's `Conv1D`.
        expert: for a stack of weights (experts, ., .), which of them this edge uses.
    """

    source: str
    target: str
    tensor: str
    transposed: bool = False
    expert: int | None = None

    @property
    def key(self) -> str:
        """The name of the linear map it uses: the tensor, with `[e]` for one expert of a stack."""
        return self.tensor if self.expert is None else f"{self.tensor}[{self.expert}]"


@dataclass(frozen=True)
class Gather:
    """An edge without a weight: `target += source[index]`, or the identity when `index` is None.

    With an index array it takes a slice of a fused projection, or repeats grouped key/value heads. The backward flow
    is the transpose: `beta_source[index] += beta_target`.
    """

    source: str
    target: str
    index: np.ndarray | None = field(default=None, compare=False)


Edge = Weight | Gather


@dataclass(frozen=True)
class FlowGraph:
    """A directed acyclic graph of streams.

    Args:
        edges: in any order; streams are named by the edges.
        inputs: streams that begin with alpha = 1 (the embeddings' output; both of them in an encoder-decoder).
        outputs: streams that end with beta = 1 (the last hidden state; both of them in a two-tower model).

    Raises:
        GraphError: the graph has a cycle, an input that edges lead into, an output that nothing leads into, or a
            stream that no path from the inputs reaches.

    Example:
        >>> graph = FlowGraph(
        ...     edges=[Weight("x", "h", "up.weight"), Weight("h", "y", "down.weight"), Gather("x", "y")],
        ...     inputs=["x"],
        ...     outputs=["y"],
        ... )
        >>> graph.streams
        ('x', 'h', 'y')
    """

    edges: tuple[Edge, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __init__(self, edges: Iterable[Edge], inputs: Iterable[str], outputs: Iterable[str]) -> None:
        object.__setattr__(self, "edges", tuple(edges))
        object.__setattr__(self, "inputs", tuple(inputs))
        object.__setattr__(self, "outputs", tuple(outputs))
        self._check()

    @cached_property
    def streams(self) -> tuple[str, ...]:
        """All streams in topological order: what feeds a stream stands before it."""
        order: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter(dict.fromkeys(self.inputs, ()))
        for edge in self.edges:
            order.add(edge.target, edge.source)
        try:
            return tuple(order.static_order())
        except graphlib.CycleError as error:
            raise GraphError(f"the flow graph has a cycle through the streams {' -> '.join(error.args[1])}") from error

    @cached_property
    def incoming(self) -> dict[str, tuple[Edge, ...]]:
        """For each stream, the edges that lead into it."""
        table: dict[str, list[Edge]] = {name: [] for name in self.streams}
        for edge in self.edges:
            table[edge.target].append(edge)
        return {name: tuple(edges) for name, edges in table.items()}

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the weights in the graph, sorted, each once."""
        return tuple(sorted({edge.tensor for edge in self.edges if isinstance(edge, Weight)}))

    def _check(self) -> None:
        if not self.inputs or not self.outputs:
            raise GraphError("a flow graph needs at least one input stream and one output stream")
        reached = set(self.inputs)
        for name in self.streams:
            before = self.incoming[name]
            if name in self.inputs and before:
                raise GraphError(f"the input stream {name!r} has an edge leading into it; inputs begin with alpha = 1")
            if name not in self.inputs:
                if not any(edge.source in reached for edge in before):
                    raise GraphError(f"no path from the inputs {list(self.inputs)} reaches the stream {name!r}")
                reached.add(name)
        for name in self.outputs:
            if name not in reached:
                raise GraphError(f"the output stream {name!r} is not in the graph; it has {list(self.streams)[:8]} ...")
