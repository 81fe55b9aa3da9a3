"""A checkpoint with updates added to its tensors, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from samerge.full.assembly import written
from samerge.saliency.elements import TILE_ELEMENTS
from samerge.weights import WeightSource
from samerge.weights.tiling import spans

#: Gives rows start:stop of an update, a matrix in the orientation that the base stores it in, in float32.
Rows = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class Change:
    """An update of a matrix, or of rows of it.

    Args:
        load: reads what it is made of; it is let go of when the tensor is written.
        first: the row of the update that is the matrix's first.
    """

    load: Callable[[], Rows]
    first: int = 0


@dataclass(frozen=True)
class Recipe:
    """What a tensor is made of.

    Args:
        base: the base's tensor.
        changes: what is added to it, by the matrix of a stack; None is a tensor that is a matrix itself.
        whole: what takes its place before anything is added.
        rows: rows that take their places likewise.
    """

    base: str
    changes: Mapping[int | None, Sequence[Change]] = field(default_factory=dict)
    whole: Callable[[], Tensor] | None = None
    rows: Mapping[int, Tensor] = field(default_factory=dict)


class BakedTensors:
    """All tensors of a checkpoint, some of them changed.

    Args:
        source: the base, under its own names.
        recipes: of those that change, and of those that it has not got under this name.
        dtypes: of the output.
    """

    def __init__(self, source: WeightSource, recipes: Mapping[str, Recipe], dtypes: Mapping[str, torch.dtype]) -> None:
        self.source, self.recipes, self.dtypes = source, recipes, dtypes
        added = {name: source.shapes[recipe.base] for name, recipe in recipes.items()}
        self.shapes: Mapping[str, tuple[int, ...]] = dict(sorted({**source.shapes, **added}.items()))

    def read(self, tensor: str) -> Tensor:
        """A whole tensor."""
        return torch.cat([tile.reshape(-1) for tile in self.tiles(tensor)]).reshape(self.shapes[tensor])

    def tiles(self, tensor: str) -> Iterator[Tensor]:
        """The tensor's values in order, in its dtype, on the CPU.

        Raises:
            BaseModelError: a value of a changed tensor is not finite, or too large for the dtype.
        """
        recipe = self.recipes.get(tensor)
        if recipe is None:
            for start, stop in spans(self.shapes[tensor], TILE_ELEMENTS):
                yield self.source.read(tensor, start, stop).detach().to("cpu", self.dtypes[tensor])
            return
        stacked = any(expert is not None for expert in recipe.changes)
        whole = None if recipe.whole is None else recipe.whole()
        for expert in range(self.shapes[tensor][0]) if stacked else [None]:
            for tile in self._changed(recipe, expert, whole):
                yield written(tile, self.dtypes[tensor], tensor)

    def _changed(self, recipe: Recipe, expert: int | None, whole: Tensor | None) -> Iterator[Tensor]:
        shape = self.source.shapes[recipe.base]
        updates = [(change.first, change.load()) for change in recipe.changes.get(expert, ())]
        for start, stop in spans(shape if expert is None else shape[1:], TILE_ELEMENTS):
            if whole is not None:
                tile = whole[start:stop] if whole.ndim else whole
            else:
                tile = self.source.read(recipe.base, start, stop, expert).detach().cpu()
            wide = torch.float64 if tile.dtype == torch.float64 else torch.float32
            tile = tile.to(wide, copy=True)  # a live model's own tensor stays as it is
            for row in range(start, stop) if recipe.rows else ():
                if row in recipe.rows:
                    tile[row - start] = recipe.rows[row].to(wide)
            for first, rows in updates:
                tile += rows(first + start, first + stop).to(tile).reshape(tile.shape)
            yield tile
