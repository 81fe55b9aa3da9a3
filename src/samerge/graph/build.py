"""From a configuration and the tensors' shapes to the flow graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samerge.errors import GraphError
from samerge.graph.blocks import Experts, Part, Stack, reads_memory
from samerge.graph.families import families, find_family
from samerge.graph.flow import FlowGraph
from samerge.graph.naming import WAYS_ON, Layers, find_layers, pick, some
from samerge.graph.wiring import Place, Wiring


def build_graph(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], residual: bool = True) -> FlowGraph:
    """Build the flow graph of a model of a known family.

    Args:
        config: the model's `config.json` as a dict, or `model.config.to_dict()`.
        shapes: shape of each tensor of the model by its full name, as in memory or as in the checkpoint's files.
        residual: with the residual edges, as the network is wired; without them the sub-layers are simply chained.

    Returns:
        The graph from the embeddings' output to the last hidden state.

    Raises:
        GraphError: the family is unknown, or the tensors are not those of the family.

    Example:
        >>> shapes = {
        ...     "layers.0.self_attn.q_proj.weight": (8, 8),
        ...     "layers.0.self_attn.k_proj.weight": (4, 8),
        ...     "layers.0.self_attn.v_proj.weight": (4, 8),
        ...     "layers.0.self_attn.o_proj.weight": (8, 8),
        ...     "layers.0.mlp.gate_proj.weight": (6, 8),
        ...     "layers.0.mlp.up_proj.weight": (6, 8),
        ...     "layers.0.mlp.down_proj.weight": (8, 6),
        ... }
        >>> graph = build_graph({"model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 4}, shapes)
        >>> graph.inputs, graph.outputs
        (('embeddings',), ('layers.0/mlp',))
    """
    family = find_family(str(config.get("model_type")))
    if family is None:
        raise GraphError(
            f"no flow graph is known for {_kind(config)} (architectures "
            f"{config.get('architectures')}), whose tensors are {some(shapes)}. Known model_types: "
            f"{', '.join(families())}. {WAYS_ON}"
        )
    found = find_layers(family, config, shapes)
    wiring = Wiring(shapes)
    inputs: list[str] = []
    outputs: list[str] = []
    for layers in found:
        label = f"{layers.stack.name}." if layers.stack.name else ""
        inputs.append(f"{label}embeddings")
        # A decoder takes up the encoder before it. Without one (BartForCausalLM) its cross-attention never runs.
        memory = outputs.pop() if layers.stack.crosses and outputs else None
        outputs.append(_add_stack(wiring, layers, label, inputs[-1], memory, residual))
    return FlowGraph(wiring.edges, inputs, outputs)


def _add_stack(wiring: Wiring, layers: Layers, label: str, stream: str, memory: str | None, residual: bool) -> str:
    """Add all layers of a stack behind `stream`; returns its last stream."""
    tensors = _by_layer(layers.order, wiring.shapes)
    for number, layer in enumerate(layers.order):
        place = Place(layer, f"{label}layers.{number}", layers.config, tensors[layer])
        steps = _choose(layers.stack, place, wiring.shapes)
        if memory is None:
            steps = {name: chosen for name, chosen in steps.items() if not any(map(reads_memory, chosen))}
        if _is_parallel(layers):
            steps = {"+".join(steps): [part for chosen in steps.values() for part in chosen]}
        for name, chosen in steps.items():
            target = f"{place.label}/{name}"
            for part in chosen:
                wiring.add(part, place, stream, target, memory)
            if residual:
                wiring.gather(stream, target)
            stream = target
    return stream


def _by_layer(order: tuple[str, ...], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[str]]:
    """The tensors of each layer, in one pass over all names."""
    lengths = {len(layer) for layer in order}
    table: dict[str, list[str]] = {layer: [] for layer in order}
    for name in shapes:
        for length in lengths:
            if name[:length] in table:
                table[name[:length]].append(name)
    return table


def _choose(stack: Stack, place: Place, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[Part]]:
    """The parts that a layer has, by sub-layer. Every matrix of the layer must belong to one, or be known."""
    steps: dict[str, list[Part]] = {}
    known = {f"{place.layer}{name}.weight" for name in stack.outside}
    for name, sublayer in stack.sublayers.items():
        steps[name], missing = pick(sublayer, place.layer, shapes)
        if missing:
            raise GraphError(
                f"the {name} of the layer {place.layer!r} lacks {some(missing)}; that layer has "
                f"{some(place.tensors, 20)}. {WAYS_ON}"
            )
        for part in steps[name]:
            each = part.all(place.layer, place.tensors) if isinstance(part, Experts) else [part]
            known.update(tensor for one in each for tensor in one.tensors(place.layer))
    unknown = [name for name in place.tensors if name not in known and _is_matrix(name, shapes[name])]
    if unknown:
        raise GraphError(
            f"the layer {place.layer!r} has weights that its family does not have: {some(unknown)}. Leaving them out "
            f"would give a wrong flow. {WAYS_ON}"
        )
    return steps


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor looks like a linear map. Norms may have two dimensions too (Cohere's have one row per head)."""
    path = name.split(".")
    return len(shape) == 2 and path[-1] == "weight" and "norm" not in ".".join(path[-2:]).lower()


def _is_parallel(layers: Layers) -> bool:
    parallel = layers.stack.parallel
    if isinstance(parallel, bool):
        return parallel
    return any(bool(layers.config.get(key, default)) for key, default in parallel.items())


def _kind(config: Mapping[str, Any]) -> str:
    """What a configuration says of the kind of model: transformers' word, or diffusers'."""
    key = "_class_name" if config.get("model_type") is None and "_class_name" in config else "model_type"
    return f"{key} {config.get(key)!r}"
