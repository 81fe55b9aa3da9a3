"""From the parts of one layer to edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from samerge.errors import GraphError
from samerge.graph.blocks import Attention, Experts, FusedAttention, FusedMlp, Mlp, Part, StackedExperts
from samerge.graph.flow import Edge, Gather, Weight
from samerge.graph.naming import told_number

_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_EXPERTS = ("num_local_experts", "num_experts")


@dataclass(frozen=True)
class Place:
    """A layer: how the names of its tensors begin, how its streams are called, its configuration, all its tensors."""

    layer: str
    label: str
    config: Mapping[str, Any]
    tensors: Sequence[str]


class Wiring:
    """Collects edges. `widths` remembers how wide each stream is and who said so; no edge may disagree with it."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes
        self.edges: list[Edge] = []
        self.widths: dict[str, tuple[int, str]] = {}

    def add(self, part: Part, place: Place, source: str, target: str, memory: str | None) -> None:
        """Add the edges of one part, from the stream `source` (and the encoder's `memory`) to the stream `target`."""
        if isinstance(part, Attention):
            self._attention(part, place, source, target, memory)
        elif isinstance(part, FusedAttention):
            self._fused_attention(part, place, source, target)
        elif isinstance(part, Mlp):
            self._mlp(part, place, source, target)
        elif isinstance(part, FusedMlp):
            self._fused_mlp(part, place, source, target)
        elif isinstance(part, Experts):
            for expert in self._experts(part, place):
                self._mlp(expert, place, source, target)
        else:
            self._stacked_experts(part, place, source, target)

    def gather(self, source: str, target: str, index: np.ndarray | None = None) -> None:
        """An edge without a weight."""
        width = self.widths[source][0] if index is None else len(index)
        self._meet(target, width, f"what comes from the stream {source!r}")
        self.edges.append(Gather(source, target, index))

    # ---- the parts

    def _attention(self, part: Attention, place: Place, source: str, target: str, memory: str | None) -> None:
        q, k, v, out = part.tensors(place.layer)
        heads = f"{place.label}/{part.out}.in"
        width = self._sides(out)[1]
        self._weight(source, heads, q)
        for name, tensor in ((part.k, k), (part.v, v)):
            read = memory if part.cross and memory is not None else source
            narrow = self._sides(tensor)[0]
            if narrow == width:
                self._weight(read, heads, tensor)
            else:
                grouped = f"{place.label}/{name}.out"
                self._weight(read, grouped, tensor)
                self.gather(grouped, heads, _repeat(narrow, width, self._heads(place, width), tensor))
        self._weight(heads, target, out)

    def _fused_attention(self, part: FusedAttention, place: Place, source: str, target: str) -> None:
        qkv, out = part.tensors(place.layer)
        fused, heads = f"{place.label}/{part.qkv}.out", f"{place.label}/{part.out}.in"
        total = self._sides(qkv, part.transposed)[0]
        width = self._sides(out, part.transposed)[1]
        self._weight(source, fused, qkv, part.transposed)
        if part.split == "heads":
            indices = _split_heads(total, width, self._heads(place, width), qkv)
        else:
            narrow = (total - width) // 2
            repeat = np.arange(width)
            if narrow != width:
                repeat = _repeat(narrow, width, self._heads(place, width), qkv)
            indices = (np.arange(width), width + repeat, width + narrow + repeat)
        for index in indices:
            self.gather(fused, heads, index)
        self._weight(heads, target, out, part.transposed)

    def _mlp(self, part: Mlp, place: Place, source: str, target: str) -> None:
        *ups, down = part.tensors(place.layer)
        hidden = f"{place.label}/{part.down}.in"
        for tensor in ups:
            self._weight(source, hidden, tensor, part.transposed)
        self._weight(hidden, target, down, part.transposed)

    def _fused_mlp(self, part: FusedMlp, place: Place, source: str, target: str) -> None:
        gate_up, down = part.tensors(place.layer)
        fused, hidden = f"{place.label}/{part.gate_up}.out", f"{place.label}/{part.down}.in"
        self._weight(source, fused, gate_up)
        for index in _halves(self._sides(gate_up)[0]):
            self.gather(fused, hidden, index)
        self._weight(hidden, target, down)

    def _stacked_experts(self, part: StackedExperts, place: Place, source: str, target: str) -> None:
        gate_up, down = part.tensors(place.layer)
        for tensor in (gate_up, down):
            if len(self.shapes[tensor]) != 3 or self.shapes[tensor][0] != self.shapes[gate_up][0]:
                raise GraphError(
                    f"{gate_up!r} and {down!r} should be stacks of as many experts, (experts, out, in); "
                    f"found {self.shapes[gate_up]} and {self.shapes[down]}"
                )
        _check_count(self.shapes[gate_up][0], place)
        for expert in range(self.shapes[gate_up][0]):
            fused = f"{place.label}/{part.gate_up}.{expert}.out"
            hidden = f"{place.label}/{part.down}.{expert}.in"
            self._weight(source, fused, gate_up, part.transposed, expert)
            for index in _halves(self._sides(gate_up, part.transposed)[0], part.interleaved):
                self.gather(fused, hidden, index)
            self._weight(hidden, target, down, part.transposed, expert)

    def _experts(self, part: Experts, place: Place) -> list[Mlp]:
        experts = part.all(place.layer, place.tensors)
        _check_count(len(experts), place)
        return experts

    # ---- edges and widths

    def _weight(
        self, source: str, target: str, tensor: str, transposed: bool = False, expert: int | None = None
    ) -> None:
        wide_out, wide_in = self._sides(tensor, transposed)
        what = f"{tensor!r} of shape {tuple(self.shapes[tensor])}"
        self._meet(source, wide_in, what)
        self._meet(target, wide_out, what)
        self.edges.append(Weight(source, target, tensor, transposed, expert))

    def _sides(self, tensor: str, transposed: bool = False) -> tuple[int, int]:
        """(out, in) of a weight, or of one weight of a stack."""
        if tensor not in self.shapes:
            raise GraphError(f"{tensor!r} is missing, though the tensors beside it are there")
        shape = self.shapes[tensor]
        if len(shape) not in (2, 3):
            raise GraphError(f"{tensor!r} should be a matrix, but its shape is {tuple(shape)}")
        wide_out, wide_in = shape[-2:]
        return (wide_in, wide_out) if transposed else (wide_out, wide_in)

    def _meet(self, stream: str, width: int, what: str) -> None:
        known, first = self.widths.setdefault(stream, (width, what))
        if known != width:
            raise GraphError(
                f"{what} does not fit: the stream {stream!r} would be {width} wide, but it is {known} wide after "
                f"{first}. If the weights are packed (4-bit), give the shapes that they have unpacked"
            )

    def _heads(self, place: Place, width: int) -> int:
        heads = told_number(place.config, _HEADS, f"the heads of {place.layer!r}")
        if heads is None or width % heads:
            raise GraphError(
                f"to find the heads of {place.layer!r}, {width} wide, the configuration has to say "
                f"num_attention_heads, a divisor of that; it says {heads}. A config.json may leave out "
                "what is the default: AutoConfig.from_pretrained(...).to_dict() has everything"
            )
        return heads


def _repeat(narrow: int, width: int, heads: int, tensor: str) -> np.ndarray:
    """Index that repeats grouped key/value heads up to the query heads, each in place: 0 0 1 1 ..."""
    head_dim = width // heads
    groups = narrow // head_dim
    if groups == 0 or narrow % head_dim or heads % groups:
        raise GraphError(f"the {narrow} outputs of {tensor!r} are no groups of {heads} heads of width {head_dim}")
    return np.arange(narrow).reshape(groups, head_dim).repeat(heads // groups, axis=0).reshape(-1)


def _split_heads(total: int, width: int, heads: int, tensor: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of q, k and v, where each key/value head stands behind its query heads."""
    head_dim = width // heads
    groups = (total // head_dim - heads) // 2
    if groups <= 0 or total != (heads + 2 * groups) * head_dim or heads % groups:
        raise GraphError(f"the {total} outputs of {tensor!r} do not split into {heads} heads of width {head_dim}")
    per_group = heads // groups
    grid = np.arange(total).reshape(groups, per_group + 2, head_dim)
    key, value = grid[:, -2].repeat(per_group, axis=0), grid[:, -1].repeat(per_group, axis=0)
    return grid[:, :-2].reshape(-1), key.reshape(-1), value.reshape(-1)


@lru_cache(maxsize=32)  # a mixture has thousands of experts of one width: they share the two arrays
def _halves(total: int, interleaved: bool = False) -> tuple[np.ndarray, np.ndarray]:
    both = np.arange(total)
    first, second = (both[::2], both[1::2]) if interleaved else (both[: total // 2], both[total // 2 :])
    first.flags.writeable = second.flags.writeable = False
    return first, second


def _check_count(experts: int, place: Place) -> None:
    told = told_number(place.config, _EXPERTS, f"the experts of {place.layer!r}")
    if told not in (None, experts):
        raise GraphError(f"the configuration says {told} experts, but the layer {place.layer!r} has {experts}")
