"""The flow graph of a base model, with what its `config.json` leaves to the architecture's defaults filled in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samerge.errors import GraphError
from samerge.graph import FlowGraph, build_graph
from samerge.weights import WeightSource


def base_graph(source: WeightSource, residual: bool = True) -> FlowGraph:
    """The flow graph of a base by its configuration and the names and shapes of its tensors.

    A `config.json` may leave out what equals the architecture's default, the number of heads for one. Only where the
    graph cannot be built without it is transformers asked for the defaults, since importing it takes seconds.

    Raises:
        GraphError: the architecture is not in the table, or the tensors do not fit it; says the ways on.
    """
    try:
        return build_graph(source.config, source.shapes, residual=residual)
    except GraphError:
        completed = _with_defaults(source.config)
        if completed is None:
            raise
    return build_graph(completed, source.shapes, residual=residual)


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The configuration with transformers' defaults; None where it knows no more than the configuration says."""
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        return None
    given = {key: value for key, value in config.items() if key != "model_type"}
    full: dict[str, Any] = CONFIG_MAPPING[kind](**given).to_dict()
    return full if set(full) - set(config) else None
