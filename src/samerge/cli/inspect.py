"""`samerge inspect`: what a merge kept, where, from whom, and what it lost; or how several adapters agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samerge.cli.agreement import compared
from samerge.cli.console import percent, show_json, show_warnings, stderr, stdout, two
from samerge.cli.shared_options import Json

if TYPE_CHECKING:
    from rich.table import Table


#: With more adapters than this, the table by type of layer has no column for each.
_MOST_COLUMNS = 6


def inspect(
    folder: Annotated[
        list[str],
        typer.Argument(
            metavar="FOLDER",
            help="A merged adapter, as `samerge merge` wrote it; or two adapters or more, [NAME=]SOURCE each, to "
            "compare with each other.",
        ),
    ],
    worst: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="How many of the worst layers to show: lost most, or most in conflict."),
    ] = 5,
    picture: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Draw the cosines between several adapters, or a merge's sign conflicts before and after pruning "
            "(png, svg, pdf).",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a merged adapter holds, or how several adapters agree before they are merged.

    From which adapters, which share of each, in which layers, what was lost, what is expected to be left; it reads
    `samerge.json` alone, no model and no weights:

        samerge inspect merged/ --picture signs.png

    Who cancels whom, who reacts to the same inputs, who is far larger than the others; it reads the adapters and no
    base model:

        samerge inspect math=ada/math-lora code=./code-lora ./talk --picture conflicts.png
    """
    if len(folder) > 1:
        compared(folder, worst, picture, as_json)
        return
    merged(folder[0], worst, picture, as_json)


def merged(folder: str, worst: int, picture: str | None, as_json: bool) -> None:
    """Show what a merged adapter holds."""
    from samerge.report.by_layer import layer_types, worst_layers
    from samerge.report.report import read_report

    report = read_report(folder)
    if picture:
        stderr().print(f"drawn in {report.picture(picture)}", markup=False)
    record = report.record
    types, least = layer_types(record["layers"]), worst_layers(record["layers"], worst)
    if as_json:
        whole = {key: value for key, value in record.items() if key != "layers"}
        show_json({"folder": folder, **whole, "experts": report.experts(), "layer_types": types, "worst_layers": least})
        return
    console = stdout()
    console.print(_heading(folder, record), markup=False, soft_wrap=True)
    console.print(report.table())
    console.print(_sources(record))
    console.print(_types(types, [item["name"] for item in record["inputs"]]))
    if least:
        console.print(_worst(least))
    show_warnings(report.warnings)


def _heading(folder: str, record: Mapping[str, Any]) -> str:
    base, output = record["base"], record["output"]
    options = {**record["options"], "method": None, "recipe": None}
    kind = f" ({base['model_type']})" if base["model_type"] else ""
    recipe = f", recipe {record['recipe']}" if record.get("recipe") else ""
    size = f"{output['tensors']} tensors" if output.get("kind") == "model" else f"rank {output['rank']}"
    return "\n".join(
        [
            f"{folder}: merged by samerge {record['samerge']} on {record['created']}",
            f"base:    {base['name'] or 'not read'}{kind}",
            f"method:  {record['method']}{recipe}; "
            + ", ".join(f"{key}={value}" for key, value in options.items() if value is not None),
            f"result:  {size}, {output['modules']} modules, {output['parameters']:,} parameters, {output['dtype']}",
            *_reading(record),
        ]
    )


def _reading(record: Mapping[str, Any]) -> list[str]:
    """The diagnostics of the whole in one line, or why there are none; nothing for records of older versions."""
    found = record.get("diagnostics") or {}
    if not found or "absent" in found:
        return [f"expected to be left: not known; {found['absent']}"] if found else []
    after = found.get("sign_conflict_after")
    least = f"{found['least']} least" if found["least"] else "no adapter with an update"
    parts = [
        f"expected to be left: {percent(found['expected_retention'])} on the mean, {least}",
        f"interference {two(found['interference'])}",
        f"effective rank {two(found['effective_rank'])}",
        f"sign conflicts among the adapters {percent(found['sign_conflict'])}"
        + ("" if after is None else f", {percent(after)} after pruning"),
    ]
    return ["; ".join(parts)]


def _sources(record: Mapping[str, Any]) -> Table:
    table = _table("Where they came from", "adapter", "source", rank="rank", dtype="dtype", sha256="sha256")
    for item in record["inputs"]:
        digest = next(iter((item.get("sha256") or {}).values()), "")
        table.add_row(item["name"], str(item["source"]), str(item["rank"] or ""), item["dtype"], digest[:12])
    return table


def _types(rows: list[dict[str, Any]], names: list[str]) -> Table:
    names = names if len(names) <= _MOST_COLUMNS else []
    table = _table("By type of layer", "type", layers="layers", kept="kept", energy="energy kept")
    for name in names:
        table.add_column(f"of {name}", justify="right")
    signs = any(row["sign_conflict_after"] is not None for row in rows)
    for column in ("lost to SVD", "scale", *(("sign conflicts",) if signs else ())):
        table.add_column(column, justify="right")
    for row in rows:
        kept = "all" if row["kept"] is None else str(row["kept"])
        table.add_row(
            row["type"] + (" (outside the graph)" if row["outside"] else ""),
            str(row["layers"]),
            f"{row['elements'][0] / row['elements'][1]:.1%} of elements"
            if row["elements"]
            else f"{kept} of {row['components']}",
            f"{row['energy']:.1%}",
            *(str(row["kept_of"].get(name, "")) for name in names),
            f"{row['lost']:.1%}",
            f"{row['scale']:.3g}",
            *((f"{percent(row['sign_conflict'])} to {percent(row['sign_conflict_after'])}",) if signs else ()),
        )
    return table


def _worst(rows: list[dict[str, Any]]) -> Table:
    table = _table(
        "Layers that lost most", "layer", energy="energy kept", lost="lost to SVD", least="least of any adapter"
    )
    for row in rows:
        table.add_row(
            row["module"], f"{row['energy']:.1%}", f"{row['lost']:.1%}", f"{row['least']}: {row['least_energy']:.1%}"
        )
    return table


def _table(title: str, *texts: str, **numbers: str) -> Table:
    """A table with columns of text first, folded where too long, then columns of numbers."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in texts:
        table.add_column(column, overflow="fold")
    for column in numbers.values():
        table.add_column(column, justify="right")
    return table
