"""What the picture of a merge shows, block by block of the model and adapter by adapter: the data of a heat map."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from samerge.report.by_layer import by_block
from samerge.report.picture import Heat
from samerge.report.record import AdapterInLayer, LayerRecord, Record, adapter_record, elements

_READ = "A row is an adapter, a column a block of the model, from the input on the left to the output on the right."


def heat(record: Record) -> Heat:
    """What was kept of every adapter in every block where the method chose, else the cosine of the merge with it."""
    shares = [one for layer in record.layers.values() for one in layer.adapters.values()]
    if any(one.kept is not None for one in shares):
        told = "Darker: more of the adapter's components were ranked high enough to be kept there."
        return _heat(record, "Share of the components that were kept", _components, 0.0, told)
    if any(one.elements for one in shares):
        told = "Darker: more of the adapter's elements were kept there."
        return _heat(record, "Share of the elements that were kept", _elements, 0.0, told)
    told = "Blue: the merge goes the adapter's way there; white: it has nothing of it; red: it goes against it."
    return _heat(record, "Cosine between the merge and each adapter", _cosine, -1.0, told)


def _heat(
    record: Record,
    title: str,
    value: Callable[[str, Sequence[LayerRecord]], float | None],
    low: float,
    told: str,
) -> Heat:
    blocks = by_block(record.layers)
    names = [one.name for one in record.inputs]
    values = [[value(name, layers) for layers in blocks.values()] for name in names]
    return Heat(title, names, list(blocks), values, low, 1.0, f"{_READ} {told}")


def _own(name: str, layers: Sequence[LayerRecord]) -> list[AdapterInLayer]:
    return [layer.adapters[name] for layer in layers if name in layer.adapters]


def _components(name: str, layers: Sequence[LayerRecord]) -> float | None:
    own = [one for one in _own(name, layers) if one.components]
    return sum(one.left for one in own) / sum(one.components or 0 for one in own) if own else None


def _elements(name: str, layers: Sequence[LayerRecord]) -> float | None:
    found = elements(_own(name, layers))
    return found[0] / found[1] if found and found[1] else None


def _cosine(name: str, layers: Sequence[LayerRecord]) -> float | None:
    own = {str(place): layer for place, layer in enumerate(layers)}
    merged = sum(layer.norm**2 for layer in layers) ** 0.5
    return adapter_record(name, own, merged).cosine
