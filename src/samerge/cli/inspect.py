"""`samerge inspect`: what a merge kept, where, from whom, and what it lost; or how several adapters agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from samerge.cli.agreement import compared
from samerge.cli.console import show_json, show_warnings, stderr, stdout
from samerge.cli.named_adapter import given_adapters
from samerge.cli.shared_options import Adapters, Json, Picture, Token

if TYPE_CHECKING:
    from samerge.report.record import Record


def inspect(
    *,
    folder: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ADAPTER]...",
            help="A merged adapter or model, as samerge wrote it; or several adapters, [NAME=]SOURCE each, to compare "
            "with each other. A folder or Hub id.",
            show_default=False,
        ),
    ] = None,
    adapter: Adapters = None,
    worst: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="How many of the worst layers to show: lost most, or most in conflict."),
    ] = 5,
    picture: Picture = None,
    report: Annotated[
        str | None,
        typer.Option(
            "--report", "--html", metavar="FILE.html", help="Write a page about it: what is shown here, and pictures."
        ),
    ] = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Show what a merged adapter holds, or how several adapters agree before they are merged.

    From which adapters, which share of each, in which layers, and what was lost; it reads
    `samerge.json` alone, no model and no weights:

        samerge inspect merged/ --report merged.html

    Who cancels whom, who reacts to the same inputs, who is far larger than the others; it reads the adapters and no
    base model:

        samerge inspect math=ada/math-lora code=./code-lora ./talk --picture conflicts.png
    """
    specs = given_adapters(folder, adapter)
    if len(specs) > 1:
        compared(specs, worst, picture, report, as_json)
    else:
        merged(specs[0].source, worst, picture, report, as_json)


def merged(folder: str, worst: int, picture: str | None, page: str | None, as_json: bool) -> None:
    """Show what a merged adapter holds."""
    from dataclasses import asdict

    from samerge.report.by_layer import layer_types, worst_layers
    from samerge.report.page.file import check_page
    from samerge.report.picture import check_picture
    from samerge.report.report import read_report
    from samerge.report.tables import inputs_table, worst_table
    from samerge.weights.hub import resolve_record

    if picture:
        check_picture(picture)
    if page:
        check_page(page)
    report = read_report(resolve_record(folder))
    if picture:
        stderr().print(f"drawn in {report.picture(picture)}", markup=False)
    if page:
        report.to_html(page, folder)
        stderr().print(f"report in {page}", markup=False)
    record = report.record
    if as_json:
        whole = {key: value for key, value in record.json().items() if key != "layers"}
        types = [asdict(row) for row in layer_types(record.layers)]
        least = [asdict(row) for row in worst_layers(record.layers, worst)]
        show_json({"folder": folder, **whole, "layer_types": types, "worst_layers": least})
        return
    console = stdout()
    console.print(_heading(folder, record), markup=False, soft_wrap=True)
    console.print(report.table())
    console.print(inputs_table(record))
    console.print(report.layers_table())
    table = worst_table(record, worst)
    if table is not None:
        console.print(table)
    show_warnings(report.warnings)


def _heading(folder: str, record: Record) -> str:
    kind = f" ({record.base.model_type})" if record.base.model_type else ""
    options = ", ".join(f"{key}={value}" for key, value in record.options.items() if value is not None)
    return "\n".join(
        [
            f"{folder}: made by samerge {record.samerge} on {record.created}",
            f"base:    {record.base.name or 'not read'}{kind}",
            f"method:  {record.method}; {options}",
            f"result:  {record.output.size}, {record.output.modules} modules, {record.output.parameters:,} parameters, "
            f"{record.output.dtype}",
        ]
    )
