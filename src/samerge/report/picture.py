"""Pictures of figures: a heat map, bars. Drawn by matplotlib (`samerge[report]`), without its global state."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from samerge.errors import OptionError
from samerge.report.facts import number, percent

#: The most rows or columns of a heat map that still have room for their numbers.
_NUMBERED = 16
#: Letters of the sentence below a picture in an inch.
_LETTERS = 13
#: Shares of which the largest is at least this are shown in whole per cent.
_WHOLE = 0.2
#: Half a step of colour, but for rounding.
_HALF = 0.5 + 1e-9
#: Steps of colour on either side of what has none.
STEPS = 5


@dataclass(frozen=True)
class Heat:
    """A table of numbers as colours.

    Args:
        title: over the picture.
        rows: their names.
        columns: their names.
        values: for each row; None stays empty.
        low: the number of the first colour.
        high: the number of the last colour.
        how: a sentence that says how to read it, under the picture.
        middle: the number without a colour: those below it get another colour than those above. Default: 0 where there
            are negative numbers, else none.
        percent: whether the numbers are shares, shown in per cent.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    low: float
    high: float
    how: str
    middle: float | None = None
    percent: bool = False

    @property
    def centre(self) -> float | None:
        """The number without a colour between two colours; None where there is but one."""
        return 0.0 if self.middle is None and self.low < 0 else self.middle

    def shown(self, value: float | None) -> str:
        """A number as it stands in its cell; nothing for none."""
        digits = 0 if self.high >= _WHOLE else 1
        return "" if value is None else percent(value, digits) if self.percent else number(value)

    def level(self, value: float | None) -> int:
        """The nearest step of colour to a number: 0 none, up to `STEPS` for `high`, down to -`STEPS` for `low`.

        Example:
            >>> shares = Heat("", "ab", "cd", [[0.5, 0.0], [0.25, None]], 0.0, 0.5, "", middle=0.25)
            >>> [[shares.level(value) for value in row] for row in shares.values]
            [[5, -5], [0, 0]]
        """
        if value is None:
            return 0
        middle = self.low if self.centre is None else self.centre
        span = (self.high if value >= middle else self.low) - middle
        part = 0.0 if not span else min(1.0, (value - middle) / span)
        return (1 if value >= middle else -1) * math.floor(STEPS * part + _HALF)

    def draw(self, path: str | Path) -> Path:
        """Write it.

        Args:
            path: the file; its ending says the kind (png, svg, pdf).

        Returns:
            The file.

        Raises:
            OptionError: matplotlib is not installed, or the file's ending is none that it knows.
        """
        return draw([self], path)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in inches."""
        inch = 0.5 if self._numbered else 0.25
        width, height = (max(4.0, inch * len(names) + 2.5) for names in (self.columns, self.rows))
        return width + 1.0, height

    @property
    def _numbered(self) -> bool:
        return max(len(self.columns), len(self.rows)) <= _NUMBERED

    def draw_on(self, figure: Any) -> None:
        """Draw it on a figure of matplotlib."""
        from matplotlib.colors import TwoSlopeNorm

        axes = figure.add_subplot()
        cells = [[float("nan") if value is None else value for value in row] for row in self.values]
        centre = self.centre
        colours = "Blues" if centre is None else "RdBu"
        scale = {"vmin": self.low, "vmax": self.high} if centre is None else {}
        norm = None if centre is None else TwoSlopeNorm(centre, self.low, self.high)
        image = axes.imshow(cells, cmap=colours, norm=norm, aspect="auto", **scale)
        axes.set_xticks(range(len(self.columns)), self.columns, rotation=45, ha="right")
        axes.set_yticks(range(len(self.rows)), self.rows)
        if self._numbered:
            for i, row in enumerate(self.values):
                for j, value in enumerate(row):
                    if value is not None:
                        colour = "white" if abs(self.level(value)) > STEPS - 2 else "black"
                        axes.text(j, i, self.shown(value), ha="center", va="center", color=colour, fontsize=8)
        axes.set_title(self.title)
        figure.colorbar(image, format=lambda value, _: self.shown(value))
        figure.supxlabel(textwrap.fill(self.how, int(_LETTERS * self.size[0])), fontsize=8)


def draw(heats: Sequence[Heat], path: str | Path) -> Path:
    """Write several heat maps as one picture: below each other while they are low, beside each other where not.

    Args:
        heats: one at least.
        path: the file; its ending says the kind (png, svg, pdf).

    Returns:
        The file.

    Raises:
        OptionError: matplotlib is not installed, or the file's ending is none that it knows.
    """
    widths, heights = zip(*(heat.size for heat in heats), strict=True)
    low = max(len(heat.rows) for heat in heats) <= _NUMBERED
    if low:
        figure = new_figure(max(widths), sum(heights), path)
        parts = figure.subfigures(len(heats), 1, height_ratios=heights, squeeze=False).flat
    else:
        figure = new_figure(sum(widths), max(heights), path)
        parts = figure.subfigures(1, len(heats), width_ratios=widths, squeeze=False).flat
    for heat, part in zip(heats, parts, strict=True):
        heat.draw_on(part)
    return write(figure, path)


def grouped_bars(
    path: str | Path,
    values: Mapping[str, Mapping[str, float | None]],
    names: Sequence[str],
    title: str,
    label: str,
    note: str,
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
    figure.supxlabel(note, fontsize=8, wrap=True)
    return write(figure, path)


def check_picture(path: str | Path) -> None:
    """Refuse, before any long work, a picture that could not be drawn.

    Raises:
        OptionError: matplotlib is not installed, or the file's ending is none that it knows.
        OutputExistsError: there is something else than a file, or its folder cannot be written to.
    """
    from samerge.adapters.writable import check_file

    new_figure(1.0, 1.0, path)
    check_file(path, overwrite=True)


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
    from samerge.adapters.atomic import atomic_file

    target = Path(path)
    drawn = BytesIO()
    figure.savefig(drawn, format=target.suffix.removeprefix(".").lower(), dpi=150)
    with atomic_file(target, overwrite=True) as file:
        file.write_bytes(drawn.getvalue())
    return target
