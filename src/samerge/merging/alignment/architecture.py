"""The flow graph of a base model, with what its `config.json` leaves to the architecture's defaults filled in."""

from __future__ import annotations

from typing import Any

from samerge.errors import BaseModelError, GraphError, in_short
from samerge.graph import FlowGraph, build_graph
from samerge.weights import WeightSource
from samerge.weights.harmless import harmless


def base_graph(source: WeightSource, residual: bool = True) -> FlowGraph:
    """The flow graph of a base by its configuration and the names and shapes of its tensors.

    A `config.json` may leave out what equals the architecture's default, the number of heads for one. Only where the
    graph cannot be built without it is transformers asked for the defaults, since importing it takes seconds.

    Raises:
        GraphError: the architecture is not in the table, or the tensors do not fit it; says the ways on.
        BaseModelError: transformers does not take the configuration.
    """
    try:
        return build_graph(source.config, source.shapes, residual=residual)
    except GraphError:
        completed = _with_defaults(source)
        if completed is None:
            raise
    return build_graph(completed, source.shapes, residual=residual)


def _with_defaults(source: WeightSource) -> dict[str, Any] | None:
    """The configuration with transformers' defaults; None where it knows no more than the configuration says."""
    from transformers import CONFIG_MAPPING

    kind = source.config.get("model_type")
    given = harmless(source.config, len(source.shapes))
    if kind not in CONFIG_MAPPING or given is None:
        return None
    del given["model_type"]
    try:
        full: dict[str, Any] = CONFIG_MAPPING[kind](**given).to_dict()
    except Exception as error:  # of many kinds: its checks are those of each of hundreds of classes
        raise BaseModelError(
            f"reading the base model {source.name!r}: transformers refuses its configuration ({in_short(error)}); "
            f"check its config.json"
        ) from error
    return full if set(full) - set(given) - {"model_type"} else None
