"""`samerge inspect A B ...`: how several adapters agree with each other, before any merge."""

from __future__ import annotations

from collections.abc import Sequence

from samerge.cli.console import show_json, stderr, stdout
from samerge.cli.named_adapter import AdapterSpec
from samerge.errors import OptionError
from samerge.report.picture import check_picture


def compared(specs: Sequence[AdapterSpec], worst: int, picture: str | None, report: str | None, as_json: bool) -> None:
    """Read the adapters, compare each with each, and show it.

    Raises:
        OptionError: a weight where none is used.
    """
    for spec in specs:
        if spec.weight != 1:
            raise OptionError(f"comparing adapters knows no weights: {spec.name} has {spec.weight:g}; leave it out")
    from samerge.merging.agreement_page import cosines_table, page, pairs_table, worst_table
    from samerge.merging.between_adapters import conflicts
    from samerge.merging.inputs import open_adapters
    from samerge.merging.reading_conflicts import reading
    from samerge.report.page.file import check_page, write_page

    if picture:
        check_picture(picture)
    if report:
        check_page(report)
    found = conflicts(open_adapters(None, {spec.name: spec.source for spec in specs}))
    if picture:
        stderr().print(f"drawn in {found.picture(picture)}", markup=False)
    if report:
        stderr().print(f"report in {write_page(report, page(found, worst))}", markup=False)
    if as_json:
        show_json({**found.record(), "worst_layers": found.worst(worst), "reading": reading(found)})
        return
    console = stdout()
    console.print(cosines_table(found))
    console.print(pairs_table(found))
    if worst and found.layers:
        console.print(worst_table(found, worst))
    console.print(reading(found), markup=False)
