"""The little vocabulary in which the table of families is written.

A family is one or more stacks of alike layers; a layer is a few sub-layers, one after the other; a sub-layer is made of
the parts below. Names are relative to the layer and without `.weight`: `self_attn.q_proj`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Attention:
    """q, k and v side by side, their sum through `out`; k and v are repeated up to the query heads.

    With `cross`, k and v read the last hidden state of the encoder.
    """

    q: str
    k: str
    v: str
    out: str
    cross: bool = field(default=False, kw_only=True)

    def tensors(self, layer: str) -> tuple[str, ...]:
        """Full names of its tensors in the layer whose names begin with `layer`."""
        return tuple(f"{layer}{name}.weight" for name in (self.q, self.k, self.v, self.out))


@dataclass(frozen=True)
class FusedAttention:
    """One weight for q, k and v.

    `split` says how its outputs are laid out. "blocks": all of q, then all of k, then all of v. "heads": for each
    key/value head in turn, its query heads, its key, its value; with as many key/value heads as query heads that is
    the q, k, v, q, k, v, ... of GPT-NeoX and Bloom, with one it is Falcon's multi-query layout.
    """

    qkv: str
    out: str
    split: Literal["blocks", "heads"]
    transposed: bool = False

    def tensors(self, layer: str) -> tuple[str, ...]:
        """Full names of its tensors in the layer whose names begin with `layer`."""
        return (f"{layer}{self.qkv}.weight", f"{layer}{self.out}.weight")


@dataclass(frozen=True)
class Mlp:
    """The `up` weights (one, or gate and up) side by side, their sum through `down`."""

    up: tuple[str, ...]
    down: str
    transposed: bool = False

    def tensors(self, layer: str) -> tuple[str, ...]:
        """Full names of its tensors in the layer whose names begin with `layer`."""
        return tuple(f"{layer}{name}.weight" for name in (*self.up, self.down))


@dataclass(frozen=True)
class FusedMlp:
    """One weight whose first half of outputs is the gate and whose second half is the up projection."""

    gate_up: str
    down: str

    def tensors(self, layer: str) -> tuple[str, ...]:
        """Full names of its tensors in the layer whose names begin with `layer`."""
        return (f"{layer}{self.gate_up}.weight", f"{layer}{self.down}.weight")


@dataclass(frozen=True)
class Experts:
    """Experts side by side, each with tensors of its own; `{e}` in a name stands for the expert's number."""

    up: tuple[str, ...]
    down: str

    def one(self, expert: int) -> Mlp:
        """A single expert."""
        return Mlp(tuple(name.format(e=expert) for name in self.up), self.down.format(e=expert))

    def all(self, layer: str, names: Iterable[str]) -> list[Mlp]:
        """All experts whose down projection is among `names`, up to the highest number."""
        before, after = f"{layer}{self.down}.weight".split("{e}")
        between = (
            name[len(before) : -len(after)] for name in names if name.startswith(before) and name.endswith(after)
        )
        highest = max((int(number) for number in between if number.isdigit()), default=-1)
        return [self.one(expert) for expert in range(highest + 1)]

    def tensors(self, layer: str) -> tuple[str, ...]:
        """Full names of the first expert's tensors: what tells that the layer has such experts."""
        return self.one(0).tensors(layer)


@dataclass(frozen=True)
class StackedExperts:
    """Experts side by side in two stacks of weights: gate and up (E, 2 I, H), down (E, H, I).

    The names are those of parameters, not of modules: no `.weight` follows them. `transposed`: each weight is stored
    (in, out). `interleaved`: gate and up take turns instead of one following the other.
    """

    gate_up: str
    down: str
    transposed: bool = False
    interleaved: bool = False

    def tensors(self, layer: str) -> tuple[str, ...]:
        """Full names of its tensors in the layer whose names begin with `layer`."""
        return (layer + self.gate_up, layer + self.down)


Part = Attention | FusedAttention | Mlp | FusedMlp | Experts | StackedExperts


@dataclass(frozen=True, init=False)
class OneOf:
    """The first of its options whose tensors are all there: layers may differ, and so do old and new names."""

    options: tuple[Sublayer, ...]

    def __init__(self, *options: Sublayer) -> None:
        object.__setattr__(self, "options", options)


@dataclass(frozen=True, init=False)
class Together:
    """Parts that read the same stream and whose outputs are summed."""

    parts: tuple[Sublayer, ...]

    def __init__(self, *parts: Sublayer) -> None:
        object.__setattr__(self, "parts", parts)


Sublayer = Part | OneOf | Together


def parts(sublayer: Sublayer) -> Iterator[Part]:
    """All parts of a sub-layer, of every option."""
    if isinstance(sublayer, OneOf):
        for option in sublayer.options:
            yield from parts(option)
    elif isinstance(sublayer, Together):
        for part in sublayer.parts:
            yield from parts(part)
    else:
        yield sublayer


def reads_memory(part: Part) -> bool:
    """Whether a part reads the encoder."""
    return isinstance(part, Attention) and part.cross


@dataclass(frozen=True)
class Stack:
    """A stack of alike layers.

    Args:
        layers: how the names of a layer begin, relative to the model's prefix, with `{i}` for its number; several
            where old and new checkpoints differ.
        sublayers: what a layer does, in order, each under a name of its own.
        depth: keys of the configuration that may hold the number of layers; the first one that is there counts.
        name: what the streams of this stack are called after; empty when there is one stack only.
        config: key of the sub-configuration it is described by, if it has one of its own.
        outside: modules in a layer whose two-dimensional weights are known to take no part: routers, relative
            positions. Any other one that the row does not mention is an error.
        parallel: the sub-layers read the same stream instead of following each other. True, or the keys of the
            configuration that say so (one of them is enough) with what holds when a key is absent.
        shared: the layers are used over and over, in the way of Albert; `{i}` is the group, `{j}` the layer in it.
    """

    layers: tuple[str, ...]
    sublayers: Mapping[str, Sublayer]
    depth: tuple[str, ...] = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
    name: str = ""
    config: str | None = None
    outside: tuple[str, ...] = ()
    parallel: bool | Mapping[str, bool] = False
    shared: bool = False

    @property
    def crosses(self) -> bool:
        """Whether it reads another stack: a decoder with cross-attention."""
        return any(reads_memory(part) for sublayer in self.sublayers.values() for part in parts(sublayer))


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Args:
        model_types: the `model_type`s of the configurations that it describes.
        stacks: one; or towers side by side; or, when `sublayers` of a later one has cross-attention, an encoder and
            its decoder, in this order.
    """

    model_types: tuple[str, ...]
    stacks: tuple[Stack, ...]
