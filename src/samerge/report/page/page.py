"""One page that says what was merged, in words, figures and pictures: a view of the record, and nothing else.

It asks nothing of the network and runs no script: it can be sent, kept, and opened anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone

from samerge.report.by_layer import blocks
from samerge.report.facts import escaped
from samerge.report.heat import heats, kept_by_place
from samerge.report.loading import ways
from samerge.report.page.charts import bars
from samerge.report.page.figures import balance_sheet, blocks_table, layers_table, options_table, timings_table
from samerge.report.page.frame import Section, document, fragment_of
from samerge.report.page.pieces import heat_map, items, listing, prose
from samerge.report.record import Record
from samerge.report.sharing import concealed, is_path, last_part
from samerge.report.tables import adapters_table, inputs_table, types_table, worst_table
from samerge.report.wording import in_words, made, what

#: Adapters that the heading and the first sentence name.
_NAMED = 4
_LISTED = 12
#: Layers that lost most.
_WORST = 10


def page(record: Record, place: str | None = None) -> str:
    """The whole page.

    Args:
        record: of what was made. Local folders in it are named by their last part.
        place: where it lies, for the lines that load it. Default: a placeholder.
    """
    return document(_title(record), _head(record), list(_sections(record, place)), _foot(record))


def fragment(record: Record) -> str:
    """The same for a notebook: without what a document of its own has."""
    return fragment_of(_head(record), list(_sections(record, None)), _foot(record))


def _title(record: Record) -> str:
    names = [one.name for one in record.inputs]
    told = " + ".join(names) if len(names) <= _NAMED else f"{len(names)} adapters"
    return f"{made(record).capitalize()}: {told}"


def _head(full: Record) -> str:
    record = concealed(full)
    output, base = record.output, record.base
    kind = f" ({base.model_type})" if base.model_type else ""
    facts = [
        ("Base", f"{base.name or 'not read'}{kind}"),
        ("Method", record.method),
        ("Result", f"{output.size}, {output.dtype}"),
        ("Size", f"{output.modules:,} modules, {output.parameters:,} parameters"),
        ("Made", f"{_when(record.created)} by samerge {record.samerge}"),
    ]
    warned = "".join(f"<li>{escaped(warning)}</li>" for warning in record.warnings)
    many = "Warning" if len(record.warnings) == 1 else f"{len(record.warnings)} warnings"
    warnings = f'<div class="warnings"><b>{many}</b><ul>{warned}</ul></div>' if warned else ""
    told = f"<h1>{escaped(_title(record))}</h1>{prose(what(full, _LISTED))}{prose(in_words(record))}"
    return f"{told}{items(facts)}{warnings}"


def _when(created: str) -> str:
    """The time in ISO 8601 as people write it; what is none stays as it is.

    Example:
        >>> _when("2026-01-02T03:04:05+00:00")
        '2026-01-02 03:04 UTC'
    """
    try:
        return (
            datetime.fromisoformat(created.replace("Z", "+00:00"))
            .astimezone(timezone.utc)
            .strftime("%Y-%m-%d %H:%M UTC")
        )
    except (ValueError, OverflowError):
        return created


def _sections(full: Record, place: str | None) -> Iterator[Section]:
    record = concealed(full)
    yield Section("adapters", "The adapters", f"{adapters_table(record).html()}{_sources(record)}")
    pictures = _pictures(record)
    if pictures:
        yield Section("pictures", "What was kept, and where", pictures)
    table = balance_sheet(record)
    if table is not None:
        yield Section("agreement", "Agreement and interference", table.html())
    yield Section("layers", "Layer by layer", _layers(record))
    yield Section("load", "How to load it", _loading(full, place))
    yield Section("options", "Options and timings", f"{options_table(record).html()}{timings_table(record).html()}")


def _sources(record: Record) -> str:
    """Where the adapters came from; folded away where there are many."""
    table = inputs_table(record)
    if len(record.inputs) <= _LISTED:
        return table.html()
    return f"<details><summary>{escaped(table.title)}</summary>{table.html()}</details>"


def _pictures(record: Record) -> str:
    found = []
    places = kept_by_place(record)
    if places:
        how = (
            "Each bar is a place in the order of size, 1 the largest component of an adapter in a layer; its height, "
            "the share of them that was kept, of all adapters and layers. Ranked by size alone the bars would fall "
            "from left to right."
        )
        shown = [f"{value:.0%}" for value in places.values()]
        found.append(bars("Kept, by size", how, "Place", list(places), list(places.values()), shown, 1.0, "100%"))
    rows = blocks(record.layers)
    if len(rows) > 1:
        how = (
            "Each bar is a block of the model, from the input on the left to the output on the right; its height, the "
            "norm of the merged update there: where the merge changes the model most."
        )
        norms = [row.norm for row in rows]
        shown = [f"{norm:.3g}" for norm in norms]
        found.append(
            bars(
                "Where the merge acts",
                how,
                "Block",
                [r.name for r in rows],
                norms,
                shown,
                max(norms),
                f"{max(norms):.3g}",
            )
        )
    charts = f'<div class="charts">{"".join(found)}</div>' if found else ""
    maps = "".join(heat_map(heat, "adapter") for heat in heats(record))
    return f"{charts}{maps}"


def _layers(record: Record) -> str:
    worst = worst_table(record, _WORST)
    every = layers_table(record)
    parts = [types_table(record).html(), blocks_table(record).html(), worst.html() if worst else ""]
    if every is None:
        parts.append(
            "<p>Every layer by itself is in samerge.json, which lies beside the weights: here it is too much.</p>"
        )
    else:
        parts.append(f"<details><summary>Every layer by itself</summary>{every.html()}</details>")
    return "".join(parts)


def _loading(record: Record, place: str | None) -> str:
    if place is not None and is_path(place) and not place.startswith("./"):
        place = f"path/to/{last_part(place)}"
    found = []
    for way in ways(record, place):
        told = f"<p>{escaped(way.told)}</p>" if way.told else ""
        found.append(f"<h3>{escaped(way.title)}</h3>{listing(way.title, way.code)}{told}")
    return "".join(found)


def _foot(record: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(record.versions.items()) if version)
    kernel = f" Kernel: {record.kernel}." if record.kernel else ""
    return (
        f"<footer><p>Made by samerge {escaped(record.samerge)} ({escaped(versions)}) from the record of the merge, "
        f"samerge.json.{escaped(kernel)} Every figure is from the weights alone; nothing here was measured on a task."
        "</p></footer>"
    )
