"""Views of a base model that make its names those of the adapters: tied weights, replicated layers, fused experts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from samerge.adapters import Adapter
from samerge.adapters.layouts import expert_of
from samerge.adapters.names import plain_name
from samerge.errors import AdapterError, BaseModelError
from samerge.merging.alignment.fused import FusedSource
from samerge.merging.alignment.matching import Names
from samerge.merging.alignment.renamed import names_in_memory
from samerge.weights import WeightSource, unwrap

#: Input embeddings, to which output heads may be tied, by the end of their names.
_EMBEDDINGS = ("embed_tokens", "wte", "shared", "word_embeddings", "embed_in", "tok_embeddings")
_HEADS = ("lm_head", "embed_out", "output")
_LAYER = re.compile(r"^(?P<stack>(?:.*\.)?(?:layers|h|encoder\.layer))\.(?P<number>\d+)\.(?P<rest>.+)$")


class RenamedSource:
    """A `WeightSource` under other names; one tensor may have several.

    Args:
        source: where the weights are.
        names: name here -> name there.
        config: fields that differ from the source's configuration.
    """

    def __init__(self, source: WeightSource, names: Mapping[str, str], config: Mapping[str, Any] | None = None) -> None:
        self.source, self._names = source, names
        self.name: str = source.name
        self.config: Mapping[str, Any] = {**source.config, **(config or {})}
        self.shapes: Mapping[str, tuple[int, ...]] = {name: source.shapes[names[name]] for name in sorted(names)}

    def dtype(self, tensor: str) -> torch.dtype:
        """The dtype that a tensor is stored in."""
        return self.source.dtype(self._names[tensor])

    def read(self, tensor: str, start: int, stop: int, expert: int | None = None) -> Tensor:
        """Rows `start:stop` of a tensor, as stored."""
        return self.source.read(self._names[tensor], start, stop, expert)


def view_for(source: WeightSource, adapters: Sequence[Adapter], model: nn.Module | None) -> WeightSource:
    """The base as these adapters see it.

    Args:
        source: the base.
        adapters: the experts.
        model: the live model that the source reads, if it is one.

    Raises:
        AdapterError: the adapters do not agree on how layers are replicated.
        BaseModelError: layers cannot be replicated, or experts are incomplete.
    """
    if model is not None:
        source = _with_aliases(source, _shared_names(model, source))
    layer_map = replication(adapters)
    configs: Mapping[str, Any] = getattr(model, "peft_config", {})
    done = any(getattr(config, "layer_replication", None) for config in configs.values())  # by PEFT, on a live model
    if layer_map is not None and not done:
        source = _replicated(source, layer_map)
    if any(module.layout.kind == "parameter" for adapter in adapters for module in adapter.modules.values()):
        fused = FusedSource(source)
        source = fused if fused.stacks else source
    modules = {expert_of(module)[0] for adapter in adapters for module in adapter.modules}
    source = _with_aliases(source, _tied_heads(source, modules))
    return source if model is not None else _as_in_memory(source, modules)


def replication(adapters: Sequence[Adapter]) -> list[tuple[int, int]] | None:
    """The `layer_replication` of the adapters, on which they have to agree; None when there is none.

    Raises:
        AdapterError: they do not agree.
    """
    maps = {adapter.name: adapter.config.get("layer_replication") or None for adapter in adapters}
    on_one_model = all(adapter.source.startswith("live:") for adapter in adapters)  # which has its layers by now
    if on_one_model and any(maps.values()):
        maps = {name: value for name, value in maps.items() if value}
    plain = {name: None if value is None else [(int(a), int(b)) for a, b in value] for name, value in maps.items()}
    first, *others = plain
    for other in others:
        if plain[other] != plain[first]:
            raise AdapterError(
                f"merging adapters of different layer_replication: {first!r} has {plain[first]}, {other!r} has "
                f"{plain[other]}; they belong to models with different layers, merge only those that agree"
            )
    return plain[first]


def _as_in_memory(source: WeightSource, modules: set[str]) -> WeightSource:
    """The source under the names that transformers loads it by, where more of the modules have those names."""

    def unmatched(tensors: Iterable[str]) -> int:
        names = Names(tensors)
        return sum(len(names.find(module)) != 1 for module in modules)

    missing = unmatched(source.shapes)
    names = names_in_memory(source) if missing else None
    return RenamedSource(source, names) if names and unmatched(names) < missing else source


def _with_aliases(source: WeightSource, aliases: Mapping[str, str]) -> WeightSource:
    if not aliases:
        return source
    return RenamedSource(source, {**{name: name for name in source.shapes}, **aliases})


def _shared_names(model: nn.Module, source: WeightSource) -> dict[str, str]:
    """Names of parameters that are another parameter of the model: tied heads, replicated layers."""
    first: dict[int, str] = {}
    aliases = {}
    for name, parameter in unwrap(model).named_parameters(remove_duplicate=False):
        parts = plain_name(name).split(".")
        plain = ".".join(part for part in parts if part not in ("base_layer", "original_module"))
        if plain in source.shapes:
            first.setdefault(id(parameter), plain)
        elif id(parameter) in first:
            aliases[plain] = first[id(parameter)]
    return aliases


def _tied_heads(source: WeightSource, modules: set[str]) -> dict[str, str]:
    """Output heads that adapters name and the checkpoint lacks, because they are the input embedding."""
    heads = {module for module in modules if module.rpartition(".")[2] in _HEADS}
    known = {tensor.removesuffix(".weight") for tensor in source.shapes}
    heads = {head for head in heads if not any(stem == head or stem.endswith(f".{head}") for stem in known)}
    inputs = [stem for stem in known if stem.rpartition(".")[2] in _EMBEDDINGS]
    if not heads or len(inputs) != 1 or source.config.get("tie_word_embeddings") is False:
        return {}
    return {f"{head}.weight": f"{inputs[0]}.weight" for head in heads}


def _replicated(source: WeightSource, layer_map: Sequence[tuple[int, int]]) -> WeightSource:
    """The base with its layers repeated as `layer_replication` says, sharing their weights."""
    order = [number for start, stop in layer_map for number in range(start, stop)]
    stacks: dict[str, dict[int, dict[str, str]]] = {}
    names = {}
    for tensor in source.shapes:
        match = _LAYER.match(tensor)
        if match is None:
            names[tensor] = tensor
        else:
            stacks.setdefault(match["stack"], {}).setdefault(int(match["number"]), {})[match["rest"]] = tensor
    if len(stacks) != 1:
        raise BaseModelError(
            f"replicating the layers of the base model {source.name!r}: expected one stack of layers, found "
            f"{sorted(stacks)}; PEFT replicates llama-, bert- and falcon-like models only"
        )
    [(stack, layers)] = stacks.items()
    if not set(order) <= set(layers):
        raise BaseModelError(
            f"replicating the layers of the base model {source.name!r}: layer_replication={list(layer_map)} names the "
            f"layers {sorted(set(order) - set(layers))}, which it does not have; is it the right base?"
        )
    for new, old in enumerate(order):
        names.update({f"{stack}.{new}.{rest}": tensor for rest, tensor in layers[old].items()})
    return RenamedSource(source, names, {"num_hidden_layers": len(order)})
