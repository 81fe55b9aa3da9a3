"""What a record says of its layers: by type of layer, by block of the model, and which layers lost the most."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from samerge.options.module_names import first_layer, module_type
from samerge.report.record import elements, energy_kept, lost, mean, signs
from samerge.report.stored import AdapterInLayer, LayerRecord


@dataclass(frozen=True)
class TypeOfLayer:
    """Several layers of one type.

    Args:
        type: `layers.*.mlp.up_proj`.
        layers: how many.
        kept_of: for each adapter, how many of its components were kept; empty where the method chooses none.
        components: of all adapters together; None where the method knows none.
        elements: kept, and of how many; None where the method keeps none.
        energy_kept: share of the adapters' squared norm that was kept before truncation; None where all are zero.
        ranks: least and largest of the merged updates; None of whole weights.
        before: least and largest number of components of the adapters; None where the method knows none.
        lost: share of the merged squared norm that truncation lost.
        most_lost: in one layer.
        scales: least and largest.
        outside: whether none of them takes part in the flow graph that there is.
    """

    type: str
    layers: int
    kept_of: Mapping[str, int]
    components: int | None
    elements: tuple[int, int] | None
    energy_kept: float | None
    ranks: tuple[int, int] | None
    before: tuple[int, int] | None
    lost: float | None
    most_lost: float
    scales: tuple[float, float]
    outside: bool

    @property
    def kept(self) -> int | None:
        """How many components were kept; None where the method chooses none."""
        return sum(self.kept_of.values()) if self.kept_of else None


@dataclass(frozen=True)
class WorstLayer:
    """A layer that lost much.

    Args:
        module: its name.
        energy_kept: by the selection, all adapters together.
        lost: share lost by truncation.
        least: the adapter that lost most there.
        least_kept: its `energy_kept`.
    """

    module: str
    energy_kept: float
    lost: float
    least: str
    least_kept: float


@dataclass(frozen=True)
class Block:
    """A block of the model.

    Args:
        name: of the block.
        layers: how many.
        norm: of their merged updates together.
        effective_rank: the mean over its layers; None where one is not known.
        lost: share of the merged squared norm that truncation lost.
        sign_conflict: among the adapters; None where nobody looked.
        sign_conflict_after: among what pruning left of them.
    """

    name: str
    layers: int
    norm: float
    effective_rank: float | None
    lost: float | None
    sign_conflict: float | None
    sign_conflict_after: float | None


def blocks(layers: Mapping[str, LayerRecord]) -> list[Block]:
    """One row for each block of the model, in its order.

    Example:
        >>> one = LayerRecord({}, norm=3.0), LayerRecord({}, norm=4.0)
        >>> [(row.name, row.layers, row.norm) for row in blocks({"h.0.q": one[0], "h.0.v": one[1]})]
        [('0', 2, 5.0)]
    """
    return [_block(name, group) for name, group in by_block(layers).items()]


def _block(name: str, group: list[LayerRecord]) -> Block:
    found = signs(group)
    return Block(
        name=name,
        layers=len(group),
        norm=math.hypot(*(layer.norm for layer in group)),
        effective_rank=mean([layer.effective_rank for layer in group]),
        lost=lost(group),
        sign_conflict=found["sign_conflict"],
        sign_conflict_after=found["sign_conflict_after"],
    )


def layer_types(layers: Mapping[str, LayerRecord]) -> list[TypeOfLayer]:
    """One row for each type of module, sorted.

    Example:
        >>> one = AdapterInLayer(norm=2.0, energy_kept=0.5, components=4, kept=(0, 2))
        >>> layer = LayerRecord({"a": one}, norm=2.0, rank=2)
        >>> [(row.type, row.layers, row.kept) for row in layer_types({"h.0.q": layer, "h.1.q": layer})]
        [('h.*.q', 2, 4)]
    """
    groups: dict[str, list[LayerRecord]] = {}
    for module, layer in layers.items():
        groups.setdefault(module_type(module), []).append(layer)
    return [_type(kind, groups[kind]) for kind in sorted(groups)]


def worst_layers(layers: Mapping[str, LayerRecord], count: int) -> list[WorstLayer]:
    """The layers in which the least of the adapters' energy is left, the worst first; ties by name."""
    rows = []
    for module, layer in sorted(layers.items()):
        kept = energy_kept(layer.adapters.values())
        if kept is not None:
            least = min(layer.adapters, key=lambda name: (layer.adapters[name].energy_kept, name))
            rows.append(WorstLayer(module, kept, layer.lost, least, layer.adapters[least].energy_kept))
    return sorted(rows, key=lambda row: (row.energy_kept * (1 - row.lost), row.module))[:count]


def by_block(layers: Mapping[str, LayerRecord]) -> dict[str, list[LayerRecord]]:
    """The layers by block of the model, in its order.

    A block is all modules of one name up to the first number; it is called by the number where that is enough. Modules
    without a number stand for themselves, at the end.

    Example:
        >>> one = LayerRecord({}, 1.0)
        >>> {name: len(found) for name, found in by_block({"h.10.q": one, "h.2.q": one, "h.2.v": one}).items()}
        {'2': 2, '10': 1}
    """
    groups: dict[tuple[int, str, int], list[LayerRecord]] = {}
    for module, layer in layers.items():
        found = first_layer(module)
        groups.setdefault((0, *found) if found else (1, module, 0), []).append(layer)
    several = len({key[:2] for key in groups if not key[0]}) > 1
    return {
        name if apart else f"{name}{number}" if several else str(number): groups[apart, name, number]
        for apart, name, number in sorted(groups)
    }


def _type(kind: str, group: list[LayerRecord]) -> TypeOfLayer:
    shares = [pair for layer in group for pair in layer.adapters.items()]
    own = [one for _, one in shares]
    kept_of: dict[str, int] = {}
    if any(one.kept is not None for one in own):
        for name, one in shares:
            kept_of[name] = kept_of.get(name, 0) + one.left
    counts = [one.components for one in own if one.components is not None]
    ranks = [layer.rank for layer in group if layer.rank is not None]
    scales = [layer.scale for layer in group]
    return TypeOfLayer(
        type=kind,
        layers=len(group),
        kept_of=kept_of,
        components=sum(counts) if len(counts) == len(own) else None,
        elements=elements(own),
        energy_kept=energy_kept(own),
        ranks=_ends(ranks),
        before=_ends(counts),
        lost=lost(group),
        most_lost=max(layer.lost for layer in group),
        scales=(min(scales), max(scales)),
        outside=all(layer.outside for layer in group),
    )


def _ends(values: Iterable[int]) -> tuple[int, int] | None:
    found = list(values)
    return (min(found), max(found)) if found else None


def chosen(shares: Iterable[AdapterInLayer]) -> bool:
    """Whether the method chose among components or elements."""
    return any(one.kept is not None or one.elements is not None for one in shares)
