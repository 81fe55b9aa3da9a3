"""What a merge did, to look at: tables, a picture, warnings. All of it is read off the record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from samerge.errors import OptionError
from samerge.report.facts import Facts
from samerge.report.reading import read_record
from samerge.report.record import AdapterRecord, Record, Whole
from samerge.report.sinks import console
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
        """Draw what was ranked and kept, adapter by adapter, as heat maps, each with a sentence on how to read it.

        Who got how many of the places in each block of the model, which components by their size those were, and the
        cosine of the merge with every adapter; of methods that choose no components the last one alone.

        Args:
            path: the file to write; its ending says the kind (png, svg, pdf).

        Returns:
            The file.

        Raises:
            OptionError: matplotlib is not installed, the ending is none that it knows, or the record has no figures.
        """
        from samerge.report.heat import heats
        from samerge.report.picture import draw

        found = heats(self.record)
        if not found:
            raise OptionError(
                f"drawing {path}: the record compares nothing with the adapters, so there is nothing to draw"
            )
        return draw(found, path)

    def to_html(self, path: str | Path | None = None, place: str | None = None) -> str:
        """One page with everything that the record says, in words, tables and pictures; it needs no network.

        Args:
            path: the file to write, too; a file that is there is replaced.
            place: where the result lies, for the lines that load it. Default: a placeholder.

        Returns:
            The page.

        Raises:
            OptionError: the file's ending is neither .html nor .htm.
            OutputExistsError: there is something else than a file.

        Example:
            `merged.report.to_html("report.html")`
        """
        from samerge.report.page.file import write_page
        from samerge.report.page.page import page

        text = page(self.record, place)
        if path is not None:
            write_page(path, text)
        return text

    def show(self) -> None:
        """Print the table and the warnings."""
        out = console(highlight=False)
        out.print(self.table())
        for warning in self.warnings:
            out.print(f"warning: {warning}", style="yellow", markup=False)

    def _repr_html_(self) -> str:
        """What `to_html` has, for notebooks."""
        from samerge.report.page.page import fragment

        return fragment(self.record)


def read_report(folder: str | Path) -> Report:
    """The report of what samerge wrote, from its folder.

    Raises:
        AdapterError: the folder has no readable record.
    """
    return Report(read_record(folder))
