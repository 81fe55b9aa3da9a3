"""A mixture of experts as transformers 5 has it in memory, over a checkpoint that keeps every expert apart.

| on disk | in memory |
|---|---|
| `block_sparse_moe.experts.{e}.w1`, `.w3`, (I, H) each | `mlp.experts.gate_up_proj`, (E, 2 I, H) |
| `block_sparse_moe.experts.{e}.w2`, (H, I) | `mlp.experts.down_proj`, (E, H, I) |
| `mlp.experts.{e}.gate_proj`, `.up_proj`, `.down_proj` | the same |

Adapters that target the fused parameters name them so. The stacks are virtual: a read goes to the pieces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from samerge.errors import BaseModelError
from samerge.weights import WeightSource

_PIECE = re.compile(
    r"^(?P<owner>.+\.experts)\.(?P<expert>\d+)\.(?P<short>w1|w2|w3|gate_proj|up_proj|down_proj)\.weight$"
)
#: Stack -> the parts of an expert that lie one under the other in it, by either family's names.
STACKS = {"gate_up_proj": (("w1", "w3"), ("gate_proj", "up_proj")), "down_proj": (("w2",), ("down_proj",))}


class FusedSource:
    """A `WeightSource` whose experts are stacked. All other tensors pass through.

    Args:
        source: the checkpoint.
    """

    def __init__(self, source: WeightSource) -> None:
        self.source = source
        self.name: str = source.name
        self.config: Mapping[str, Any] = source.config
        self._pieces: dict[str, list[list[str]]] = {}  # stack -> expert -> the tensors that lie one under the other
        self._names: dict[str, str] = {}  # all others
        owners: dict[str, dict[int, dict[str, str]]] = {}
        for tensor in source.shapes:
            match = _PIECE.match(tensor)
            if match is None:
                self._names[stack_owner(tensor)] = tensor
            else:
                experts = owners.setdefault(match["owner"], {})
                experts.setdefault(int(match["expert"]), {})[match["short"]] = tensor
        for owner, experts in owners.items():
            for stack, choices in STACKS.items():
                pieces = next((c for c in choices if set(c) <= set(experts.get(0, {}))), None)
                if pieces is None or any(not set(pieces) <= set(experts.get(e, {})) for e in range(len(experts))):
                    raise BaseModelError(
                        f"reading the base model {self.name!r}: the experts under {owner!r} are not complete, so "
                        f"they make no {stack!r}; is a shard missing?"
                    )
                self._pieces[f"{stack_owner(owner)}.{stack}"] = [
                    [experts[e][piece] for piece in pieces] for e in range(len(experts))
                ]
        self.shapes: Mapping[str, tuple[int, ...]] = dict(
            sorted(
                {
                    **{name: source.shapes[tensor] for name, tensor in self._names.items()},
                    **{name: self._shape(experts) for name, experts in self._pieces.items()},
                }.items()
            )
        )

    @property
    def stacks(self) -> tuple[str, ...]:
        """The names of the stacks."""
        return tuple(self._pieces)

    def pieces(self, tensor: str, expert: int | None) -> list[tuple[str, int | None]]:
        """The tensors below that lie one under the other in a weight, each with the matrix of a stack that is meant."""
        if tensor not in self._pieces:
            return [(self._names[tensor], expert)]
        return [(piece, None) for piece in self._pieces[tensor][expert or 0]]

    def dtype(self, tensor: str) -> torch.dtype:
        """The dtype that a tensor, or the pieces of a stack, are stored in."""
        if tensor in self._pieces:
            return self.source.dtype(self._pieces[tensor][0][0])
        return self.source.dtype(self._names[tensor])

    def read(self, tensor: str, start: int, stop: int, expert: int | None = None) -> Tensor:
        """Rows `start:stop` of a tensor, or of one expert of a stack."""
        if tensor not in self._pieces:
            return self.source.read(self._names[tensor], start, stop, expert)
        if expert is None:
            experts = self._pieces[tensor]
            return torch.stack(
                [self.read(tensor, 0, self.shapes[tensor][1], e) for e in range(len(experts))][start:stop]
            )
        found, first = [], 0
        for piece in self._pieces[tensor][expert]:
            rows = self.source.shapes[piece][0]
            low, high = max(start - first, 0), min(stop - first, rows)
            if low < high:
                found.append(self.source.read(piece, low, high))
            first += rows
        return found[0] if len(found) == 1 else torch.cat(found)

    def _shape(self, experts: list[list[str]]) -> tuple[int, ...]:
        rows = sum(self.source.shapes[piece][0] for piece in experts[0])
        return (len(experts), rows, *self.source.shapes[experts[0][0]][1:])


def piece_of(module: str) -> tuple[str, int, str] | None:
    """The experts that a module of a single expert belongs to, its number, and its own name.

    Example:
        >>> piece_of("model.layers.0.mlp.experts.7.up_proj")
        ('model.layers.0.mlp.experts', 7, 'up_proj')
    """
    match = _PIECE.match(f"{module}.weight")
    return None if match is None else (match["owner"], int(match["expert"]), match["short"])


def stack_owner(name: str) -> str:
    """A name in the spelling that transformers has for stacked experts."""
    return name.replace(".block_sparse_moe.", ".mlp.")
