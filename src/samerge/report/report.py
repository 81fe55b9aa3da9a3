"""What a merge did, to look at: tables, a picture, warnings. All of it is read off the record."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from samerge.report.facts import Facts
from samerge.report.reading import read_record
from samerge.report.record import AdapterRecord, Record, Whole
from samerge.report.sinks import console, visible
from samerge.report.tables import adapters_table, types_table


@dataclass(frozen=True)
class Report:
    """What a merge did.

    Args:
        record: `inputs`, `options`, `output`, `layers` with what became of every adapter in each, `timings` in seconds,
            `versions` and so on; docs/diagnostics.md says what the figures mean.
    """

    record: Record

    @property
    def warnings(self) -> list[str]:
        """What the user should look at."""
        return list(self.record.warnings)

    @property
    def notes(self) -> list[str]:
        """What is worth knowing and no cause for concern."""
        return list(self.record.notes)

    @property
    def adapters(self) -> Mapping[str, AdapterRecord]:
        """What became of every adapter, by name."""
        return self.record.adapters

    @property
    def whole(self) -> Whole:
        """The merged update as a whole."""
        return self.record.whole

    def table(self) -> Facts:
        """The adapters as a table, for `rich.print` or a notebook; the notes are below it."""
        return adapters_table(self.record)

    def layers_table(self) -> Facts:
        """The types of layers as a table."""
        return types_table(self.record)

    def picture(self, path: str | Path) -> Path:
        """Draw, block by block of the model, how much of every adapter was kept, as a heat map.

        Where the method chooses neither components nor elements, the cosine of the merge with every adapter.

        Args:
            path: the file to write; its ending says the kind (png, svg, pdf).

        Returns:
            The file.

        Raises:
            OptionError: matplotlib is not installed, or the ending is none that it knows.
        """
        from samerge.report.heat import heat

        return heat(self.record).draw(path)

    def show(self) -> None:
        """Print the table and the warnings."""
        out = console(highlight=False)
        out.print(self.table())
        for warning in self.warnings:
            out.print(f"warning: {warning}", style="yellow", markup=False)

    def _repr_html_(self) -> str:
        """The table and the warnings, for notebooks."""
        warnings = "".join(f"<p>warning: {html.escape(visible(warning))}</p>" for warning in self.warnings)
        return f"{self.table()._repr_html_()}{warnings}"


def read_report(folder: str | Path) -> Report:
    """The report of what samerge wrote, from its folder.

    Raises:
        AdapterError: the folder has no readable record.
    """
    return Report(read_record(folder))
