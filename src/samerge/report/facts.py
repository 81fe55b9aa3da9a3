"""A table for people: whole at any width, in a terminal, a pipe, a notebook and a card, with a word on every column."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from samerge.report.markdown import code, table
from samerge.report.sinks import shown

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

#: A column of names gives way down to this many characters; names are folded, never cut.
_LEAST_NAME = 8

#: Between two columns.
_GAP = 2

#: Behind these a name, or a text, is broken first.
_PARTING = " ./:,=_-"

#: A name up to such a mark.
_PARTS = re.compile(rf"[^{re.escape(_PARTING)}]*[{re.escape(_PARTING)}]+|[^{re.escape(_PARTING)}]+")

#: Where a word may be broken.
_SOFT = "\u00ad"


@dataclass(frozen=True)
class Column:
    """A column.

    Args:
        header: its words, wrapped between them, and at a soft hyphen within a long one.
        told: what it says, for the legend; empty where the header says it all.
        name: whether it holds names (left, folded) and no figures (right, whole).
        bar: whether its figures are parts of a whole, to be drawn as such where something can be drawn.
    """

    header: str
    told: str = ""
    name: bool = False
    bar: bool = False

    @property
    def title(self) -> str:
        """The header on one line."""
        return self.header.replace(_SOFT, "")

    def lines(self, width: int) -> list[str]:
        """The header in lines of some width, at least as wide as its longest part."""
        parts = [part for word in self.header.split() for part in _parts(word)]
        width = max(width, *(len(part) for part, _ in parts))
        found = [""]
        for part, joined in parts:
            longer = found[-1].removesuffix("-") + part if joined else f"{found[-1]} {part}".strip()
            if len(longer) <= width:
                found[-1] = longer
            else:
                found.append(part)
        return found


@dataclass(frozen=True)
class Facts:
    """Rows under columns, for rich's `print`.

    Where the columns do not fit beside each other, even folded, each row is a block of lines instead.

    Args:
        title: over it.
        columns: the first one holds what the rows are of.
        rows: the cells, as text.
        note: lines below, before the legend.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    note: str = ""

    @property
    def legend(self) -> str:
        """What the columns say, a line each."""
        return "\n".join(f"{column.title}: {column.told}" for column in self.columns if column.told)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        least = [self._least(n) for n in range(len(self.columns))]
        yield Text(shown(self.title), style="bold")
        if sum(least) + _GAP * len(least) > options.max_width:
            for row in self.rows:
                yield Text(shown(row[0]), style="italic")
                for column, cell in zip(self.columns[1:], row[1:], strict=True):
                    if cell:
                        yield Text(f"  {column.title}: {shown(cell)}")
        else:
            grid = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
            widths = self._widths(least, options.max_width)
            for column, width in zip(self.columns, widths, strict=True):
                justify: Any = "left" if column.name else "right"
                grid.add_column(Text("\n".join(column.lines(width))), justify=justify, no_wrap=True, min_width=width)
            for row in self.rows:
                cells = (_folded(shown(cell), width) for cell, width in zip(row, widths, strict=True))
                grid.add_row(*(Text("\n".join(lines)) for lines in cells))
            yield grid
        for line in self.note.splitlines():
            yield Text(shown(line))
        yield Text(self.legend, style="dim")

    def markdown(self) -> str:
        """As a table of Markdown, with the note and the legend below."""
        rows = [
            [code(cell) if column.name and cell else cell for column, cell in zip(self.columns, row, strict=True)]
            for row in self.rows
        ]
        told = [f"- {column.title}: {column.told}" for column in self.columns if column.told]
        parts = [
            table([column.title for column in self.columns], rows),
            self.note.replace("\n", "\n\n"),
            "\n".join(told),
        ]
        return "\n\n".join(part for part in parts if part)

    def html(self) -> str:
        """As a table of HTML with a caption, to be scrolled by itself; the notes and the legend are below it."""
        head = "".join(f'<th scope="col"{_left(column)}>{escaped(column.title)}</th>' for column in self.columns)
        body = "".join(f"<tr>{self._cells(row)}</tr>" for row in self.rows)
        table = f"<caption>{escaped(self.title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        notes = "".join(f"<p>{escaped(line)}</p>" for line in self.note.splitlines())
        legend = "".join(f"<li>{escaped(line)}</li>" for line in self.legend.splitlines())
        below = f'<ul class="legend">{legend}</ul>' if legend else ""
        return f"{scrolled(self.title, f'<table>{table}</table>')}{notes}{below}"

    def _repr_html_(self) -> str:
        """For notebooks."""
        return self.html()

    def _cells(self, row: Sequence[str]) -> str:
        found = [f'<th scope="row"><span>{breaking(row[0])}</span></th>']
        for column, cell in zip(self.columns[1:], row[1:], strict=True):
            text = breaking(cell) if column.name else escaped(cell)
            found.append(f"<td{_left(column)}>{text}{_bar(cell) if column.bar else ''}</td>")
        return "".join(found)

    def _least(self, n: int) -> int:
        """The width below which a column would cut a part of its header, or a figure."""
        column = self.columns[n]
        head = max(len(line) for line in column.lines(0))
        return max(head, min(self._widest(n), _LEAST_NAME) if column.name else self._widest(n))

    def _widths(self, least: Sequence[int], most: int) -> list[int]:
        """A width for each column: the widest column of names gives way first, down to its least."""
        wanted = [
            max(low, self._widest(n)) if column.name else low
            for n, (column, low) in enumerate(zip(self.columns, least, strict=True))
        ]
        over = sum(wanted) + _GAP * len(wanted) - most
        while over > 0:
            place = max((n for n in range(len(wanted)) if wanted[n] > least[n]), key=lambda n: wanted[n])
            wanted[place] -= 1
            over -= 1
        return wanted

    def _widest(self, n: int) -> int:
        return max((_width(row[n]) for row in self.rows), default=0)


def _parts(word: str) -> list[tuple[str, bool]]:
    """A word at its soft hyphens: the parts, a hyphen after all but the last, and whether each goes on a word."""
    found = word.split(_SOFT)
    return [(part + "-" * (place < len(found) - 1), place > 0) for place, part in enumerate(found)]


def _folded(text: str, width: int) -> list[str]:
    """Text in lines of some width, broken at a space, or behind a mark that parts a name, where there is one.

    Example:
        >>> _folded("encoder.layer.attention.output.dense", 32)
        ['encoder.layer.attention.output.', 'dense']
    """
    from rich.cells import cell_len, set_cell_size

    lines = []
    while cell_len(text) > width:
        fits = len(set_cell_size(text, width).rstrip())
        place = max((text.rfind(mark, 1, fits) + 1 for mark in _PARTING), default=0) or max(1, fits)
        lines.append(text[:place].rstrip())
        text = text[place:].lstrip()
    return [*lines, text]


def _width(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(shown(text))


def escaped(text: str) -> str:
    """Text for HTML, on one line: each letter stands for itself."""
    return html.escape(shown(text))


def breaking(text: str) -> str:
    """A name for HTML, which may be broken behind a mark that parts it, as a terminal's tables break it.

    Example:
        >>> breaking("h.0.q_proj")
        'h.<wbr>0.<wbr>q_<wbr>proj'
    """
    return "<wbr>".join(html.escape(part) for part in _PARTS.findall(shown(text)))


def scrolled(name: str, content: str) -> str:
    """HTML that may be wider than the screen, to be scrolled by itself, with the keyboard, too."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escaped(name)}">{content}</div>'


def _left(column: Column) -> str:
    return ' class="name"' if column.name else ""


def _bar(cell: str) -> str:
    """A number from 0 to 1, or to 100%, as a bar; a reader that hears the number need not hear it twice."""
    figure = cell.removesuffix("%")
    try:
        share = float(figure) / (1 if figure == cell else 100)
    except ValueError:
        return ""
    return f'<span class="bar" aria-hidden="true"><i style="width:{max(0.0, min(1.0, share)):.1%}"></i></span>'


def number(value: float | None, digits: int = 2) -> str:
    """A number with some decimals; a dash for what does not exist."""
    return "-" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"  # no minus before zero


def percent(value: float | None, digits: int = 1) -> str:
    """A share in per cent; a dash for what does not exist."""
    return "-" if value is None else f"{value:.{digits}%}"


def span(low: float, high: float) -> str:
    """From the least to the largest, or the one that both are."""
    ends = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in (low, high)]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
