"""What the pictures of a merge show, adapter by adapter: what was ranked and kept, where, and how close it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from samerge.report.by_layer import by_block
from samerge.report.facts import percent
from samerge.report.picture import Heat
from samerge.report.record import Record, adapter_record, elements
from samerge.report.stored import AdapterInLayer, LayerRecord

_BLOCKS = "A row is an adapter, a column a block of the model, from the input on the left to the output on the right."

#: The most columns of places by size; with more components than this, a column is several places.
_MOST_PLACES = 32

#: Numbers of a picture that are nearer to each other than this say nothing by their colours.
_ALIKE = 5e-3


def heats(record: Record) -> list[Heat]:
    """The pictures of a record, those that say something: none of one number throughout, none of what is not known.

    Of a method that chooses components: who got how many of the places in each block, and which components, by their
    size, those were. Of one that keeps elements: how many, where that differs. Of any: the cosine with each adapter.
    """
    found = [*_chosen(record), _cosines(record)]
    return [heat for heat in found if any(value is not None for row in heat.values for value in row)]


def _chosen(record: Record) -> Iterator[Heat]:
    shares = [one for layer in record.layers.values() for one in layer.adapters.values()]
    if any(one.kept is not None for one in shares):
        taken = _places_taken(record)
        if _differ(taken):
            yield taken
        if record.options.get("basis") != "native":  # whose components are in no order of size
            yield _places_by_size(record)
    elif any(one.elements for one in shares):
        told = "The stronger the colour, the more of the adapter's elements were kept there."
        kept = Heat(
            "Share of the elements that were kept", *_by_block(record, _elements), 0.0, 1.0, f"{_BLOCKS} {told}"
        )
        if _differ(kept):
            yield kept


def _places_taken(record: Record) -> Heat:
    even = 1 / max(1, sum(one.weight != 0 for one in record.inputs))
    names, blocks, counts = _by_block(record, _left)
    totals = [sum(row[n] or 0 for row in counts) for n in range(len(blocks))]
    values = [
        [None if one is None or not total else one / total for one, total in zip(row, totals, strict=True)]
        for row in counts
    ]
    told = (
        f"{_BLOCKS} The numbers of a column add up to 100%: how the places of that block were shared out among the "
        f"adapters. No colour: an even share, {percent(even)}; blue: more than that; red: less."
    )
    return Heat("Who got the places in the merge", names, blocks, values, 0.0, 2 * even, told, even, percent=True)


def _places_by_size(record: Record) -> Heat:
    names = [one.name for one in record.inputs]
    spans = _spans(record)
    own = {name: _own(name, list(record.layers.values())) for name in names}
    values = [[_kept_at(own[name], span) for span in spans] for name in names]
    told = (
        "A row is an adapter, a column a place in the order of size: 1 is the largest component of each layer. The "
        "number: in how many of the layers the component at that place was kept. A row that is strong on the left and "
        "ends sharply was ranked as by size alone; where it fades, smaller components were preferred to larger ones, "
        "of this adapter or of others."
    )
    return Heat("Which components were kept, by their size", names, _named(spans), values, 0.0, 1.0, told, percent=True)


def kept_by_place(record: Record) -> dict[str, float] | None:
    """For each place in the order of size, in which share of all layers and adapters the component there was kept.

    None where the method chooses no components, or they are in no order of size.
    """
    shares = [one for layer in record.layers.values() for one in layer.adapters.values()]
    if record.options.get("basis") == "native" or all(one.kept is None for one in shares):
        return None
    spans = _spans(record)
    found = ((name, _kept_at(shares, span)) for name, span in zip(_named(spans), spans, strict=True))
    return {name: value for name, value in found if value is not None}


def _spans(record: Record) -> list[range]:
    """The places of components, from 0, so many to a column that there are not too many columns."""
    most = max(one.components or 0 for layer in record.layers.values() for one in layer.adapters.values())
    step = max(1, -(-most // _MOST_PLACES))
    return [range(first, min(most, first + step)) for first in range(0, most, step)]


def _named(spans: Sequence[range]) -> list[str]:
    return [str(span[0] + 1) if len(span) == 1 else f"{span[0] + 1}-{span[-1] + 1}" for span in spans]


def _kept_at(own: Sequence[AdapterInLayer], span: range) -> float | None:
    """In which share of the layers that have a component there it was kept."""
    there = [max(0, min(span.stop, one.components or 0) - span.start) for one in own]
    kept = [
        count if one.kept is None else sum(place in span for place in set(one.kept))
        for one, count in zip(own, there, strict=True)
    ]
    return sum(kept) / sum(there) if sum(there) else None


def _cosines(record: Record) -> Heat:
    names, blocks, values = _by_block(record, _cosine)
    most = max((abs(value) for row in values for value in row if value is not None), default=1.0) or 1.0
    told = (
        "Blue: the merge goes the adapter's way there; no colour: it has nothing of it; red: it goes against it. The "
        f"strongest colour is the largest number, {most:.2f}."
    )
    return Heat("Cosine between the merge and each adapter", names, blocks, values, -most, most, f"{_BLOCKS} {told}")


def _by_block(
    record: Record, value: Callable[[str, Sequence[LayerRecord]], float | None]
) -> tuple[list[str], list[str], list[list[float | None]]]:
    """Names of rows and columns, and a number for each adapter in each block."""
    blocks = by_block(record.layers)
    names = [one.name for one in record.inputs]
    return names, list(blocks), [[value(name, layers) for layers in blocks.values()] for name in names]


def _differ(heat: Heat) -> bool:
    known = [value for row in heat.values for value in row if value is not None]
    return bool(known) and max(known) - min(known) > _ALIKE


def _own(name: str, layers: Sequence[LayerRecord]) -> list[AdapterInLayer]:
    return [layer.adapters[name] for layer in layers if name in layer.adapters]


def _left(name: str, layers: Sequence[LayerRecord]) -> int | None:
    own = [one for one in _own(name, layers) if one.components]
    return sum(one.left for one in own) if own else None


def _elements(name: str, layers: Sequence[LayerRecord]) -> float | None:
    found = elements(_own(name, layers))
    return found[0] / found[1] if found and found[1] else None


def _cosine(name: str, layers: Sequence[LayerRecord]) -> float | None:
    own = {str(place): layer for place, layer in enumerate(layers)}
    merged = sum(layer.norm**2 for layer in layers) ** 0.5
    return adapter_record(name, own, merged).cosine
