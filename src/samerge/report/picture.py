"""Pictures of figures: a heat map, bars. Drawn by matplotlib (`samerge[report]`), without its global state."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from samerge.errors import OptionError

#: The most rows or columns of a heat map that still have room for their numbers.
_NUMBERED = 16


@dataclass(frozen=True)
class Heat:
    """A table of numbers as colours.

    Args:
        title: over the picture.
        rows: their names.
        columns: their names.
        values: for each row; None stays white.
        low: the number of the first colour.
        high: the number of the last colour.
        how: a sentence that says how to read it, under the picture.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    low: float
    high: float
    how: str

    def draw(self, path: str | Path) -> Path:
        """Write it.

        Args:
            path: the file; its ending says the kind (png, svg, pdf).

        Returns:
            The file.

        Raises:
            OptionError: matplotlib is not installed, or the file's ending is none that it knows.
        """
        width, height = (max(3.0, 0.5 * len(names) + 2.0) for names in (self.columns, self.rows))
        figure = new_figure(width + 1.0, height + 0.5, path)
        axes = figure.add_subplot()
        cells = [[float("nan") if value is None else value for value in row] for row in self.values]
        diverging = self.low < 0
        colours = "RdBu" if diverging else "Blues"
        image = axes.imshow(cells, vmin=self.low, vmax=self.high, cmap=colours, aspect="auto")
        axes.set_xticks(range(len(self.columns)), self.columns, rotation=45, ha="right")
        axes.set_yticks(range(len(self.rows)), self.rows)
        if len(self.columns) <= _NUMBERED and len(self.rows) <= _NUMBERED:
            dark = 0.6 * (self.high if diverging else self.high - self.low)
            for i, row in enumerate(self.values):
                for j, value in enumerate(row):
                    if value is not None:
                        colour = "white" if abs(value - (0.0 if diverging else self.low)) > dark else "black"
                        axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
        axes.set_title(self.title)
        figure.colorbar(image)
        figure.supxlabel(self.how, fontsize=8, wrap=True)
        return write(figure, path)


def grouped_bars(
    path: str | Path,
    values: Mapping[str, Mapping[str, float | None]],
    names: Sequence[str],
    title: str,
    label: str,
    note: str | None = None,
) -> Path:
    """Draw numbers as bars, one group for each name and one colour for each series.

    Args:
        path: the file to write.
        values: for each series, a number for each name; None has no bar.
        names: the groups.
        title: over the picture.
        label: of the numbers' axis.
        note: small, under the picture.

    Returns:
        The file.

    Raises:
        OptionError: matplotlib is not installed, or the file's ending is none that it knows.
    """
    figure = new_figure(max(6.0, 0.28 * len(names) * len(values) + 3.0), 4.5, path)
    axes = figure.add_subplot()
    width = 0.8 / max(1, len(values))
    for place, (series, row) in enumerate(values.items()):
        known = [(n, value) for n, name in enumerate(names) if (value := row.get(name)) is not None]
        offset = (place - (len(values) - 1) / 2) * width
        axes.bar([n + offset for n, _ in known], [value for _, value in known], width, label=series)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_ylabel(label)
    axes.set_title(title)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    if note:
        figure.supxlabel(note, fontsize=8, wrap=True)
    return write(figure, path)


def check_picture(path: str | Path) -> None:
    """Refuse, before any long work, a picture that could not be drawn.

    Raises:
        OptionError: matplotlib is not installed, or the file's ending is none that it knows.
    """
    new_figure(1.0, 1.0, path)


def new_figure(width: float, height: float, path: str | Path) -> Any:
    """An empty figure, in inches, for a file whose ending matplotlib knows.

    Raises:
        OptionError: matplotlib is not installed, or the file's ending is none that it knows.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OptionError(
            f"drawing {path}: pictures need matplotlib, which is not installed; pip install 'samerge[report]'"
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    kinds = figure.canvas.get_supported_filetypes()
    if Path(path).suffix.removeprefix(".").lower() not in kinds:
        raise OptionError(
            f"drawing {path}: the file's ending says what to draw; give one of {', '.join(sorted(kinds))}"
        )
    return figure


def write(figure: Any, path: str | Path) -> Path:
    """Draw in memory, then put the file in its place in one step, so that none is left half written."""
    target = Path(path)
    drawn = BytesIO()
    figure.savefig(drawn, format=target.suffix.removeprefix(".").lower(), dpi=150)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.part")
    beside.write_bytes(drawn.getvalue())
    os.replace(beside, target)
    return target
