"""Which weights are pruned: those of the flow graph, or every matrix by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samerge.errors import BaseModelError, GraphError
from samerge.graph import FlowGraph, Weight
from samerge.graph.families import find_family
from samerge.graph.widths import local_graph
from samerge.merging.alignment.architecture import base_graph
from samerge.saliency.flows import live_weights
from samerge.weights import WeightSource


def graph_for(source: WeightSource, connectivity: str | FlowGraph, residual: bool, kept: frozenset[str]) -> FlowGraph:
    """The graph whose weights are pruned.

    With "local", the weights are those of the family's graph, where the family is known; else all matrices but those
    with the vocabulary on one side, or "embed" in their name.

    Args:
        source: the base.
        connectivity: the option.
        residual: the option.
        kept: tensors that no expert changes.

    Raises:
        GraphError: the family is not known, or the graph has no weight of this model.
        BaseModelError: the graph needs a tensor that is not made of floating-point numbers.
    """
    if isinstance(connectivity, FlowGraph):
        graph = connectivity
    elif connectivity == "flow" or find_family(str(source.config.get("model_type"))) is not None:
        graph = base_graph(source, residual)
        if connectivity == "local":
            graph = local_graph({edge.key: edge for edge in live_weights(graph)}.values())
    else:
        graph = local_graph(Weight("", "", name) for name in _matrices(source))
    lacking = [tensor for tensor in graph.tensors if tensor not in source.shapes]
    if lacking or not graph.tensors:
        raise GraphError(
            f"the flow graph has weights that the base {source.name!r} does not: {lacking[:3]} (the base has "
            f"{list(source.shapes)[:3]} ...); give a graph whose tensors are named as in the base"
        )
    odd = [tensor for tensor in graph.tensors if not source.dtype(tensor).is_floating_point]
    if odd:
        raise BaseModelError(
            f"reading the base {source.name!r}: {odd[0]} holds {source.dtype(odd[0])}, which is no floating-point "
            f"number; give the unquantised model"
        )
    if all(tensor in kept for tensor in graph.tensors):
        raise BaseModelError(
            f"merging checkpoints of {source.name!r}: not one weight of the flow graph is shared by all experts; are "
            f"they checkpoints of this base?"
        )
    return graph


def _matrices(source: WeightSource) -> list[str]:
    size = _vocabulary(source.config)
    return [
        name
        for name, shape in source.shapes.items()
        if len(shape) >= 2
        and name.endswith(".weight")
        and "embed" not in name
        and (size is None or size not in shape)
        and source.dtype(name).is_floating_point
    ]


def _vocabulary(config: Mapping[str, Any]) -> int | None:
    text = config.get("text_config")
    size = config.get("vocab_size") or (text.get("vocab_size") if isinstance(text, Mapping) else None)
    return size if isinstance(size, int) else None
