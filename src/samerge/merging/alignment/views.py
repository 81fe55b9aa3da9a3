"""A base model under other names: renamed, with tied weights, with its layers replicated."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from samerge.adapters import Adapter
from samerge.adapters.model import LIVE
from samerge.errors import AdapterError, BaseModelError
from samerge.weights import WeightSource

_LAYER = re.compile(r"^(?P<stack>(?:.*\.)?(?:layers|h|encoder\.layer))\.(?P<number>\d+)\.(?P<rest>.+)$")


class RenamedSource:
    """A `WeightSource` under other names; one tensor may have several.

    Args:
        source: where the weights are.
        names: name here -> name there.
        config: fields that differ from the source's configuration.
    """

    def __init__(self, source: WeightSource, names: Mapping[str, str], config: Mapping[str, Any] | None = None) -> None:
        self.source, self.names = source, names
        self.name: str = source.name
        self.config: Mapping[str, Any] = {**source.config, **(config or {})}
        self.shapes: Mapping[str, tuple[int, ...]] = {name: source.shapes[names[name]] for name in sorted(names)}

    def origin(self, tensor: str) -> str:
        """The name, further down, of the one weight that a name here means: the same for all names of tied weights."""
        return origin(self.source, self.names[tensor])

    def dtype(self, tensor: str) -> torch.dtype:
        """The dtype that a tensor is stored in."""
        return self.source.dtype(self.names[tensor])

    def read(self, tensor: str, start: int, stop: int, expert: int | None = None) -> Tensor:
        """Rows `start:stop` of a tensor, as stored."""
        return self.source.read(self.names[tensor], start, stop, expert)


def replication(adapters: Sequence[Adapter]) -> list[tuple[int, int]] | None:
    """The `layer_replication` of the adapters, on which they have to agree; None when there is none.

    Raises:
        AdapterError: they do not agree.
    """
    maps = {adapter.name: adapter.config.get("layer_replication") or None for adapter in adapters}
    on_one_model = all(adapter.source.startswith(LIVE) for adapter in adapters)  # which has its layers by now
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


def origin(source: WeightSource, tensor: str) -> str:
    """What two names of one weight have in common; a name of no weight of the base is its own."""
    return source.origin(tensor) if isinstance(source, RenamedSource) and tensor in source.shapes else tensor


def with_aliases(source: WeightSource, aliases: Mapping[str, str]) -> WeightSource:
    """The source with more names for some of its tensors, which it lacks: tied heads."""
    aliases = {alias: name for alias, name in aliases.items() if name in source.shapes and alias not in source.shapes}
    if not aliases:
        return source
    return RenamedSource(source, {**{name: name for name in source.shapes}, **aliases})


def replicated(source: WeightSource, layer_map: Sequence[tuple[int, int]]) -> WeightSource:
    """The base with its layers repeated as `layer_replication` says, sharing their weights.

    Raises:
        BaseModelError: layers cannot be replicated.
    """
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
