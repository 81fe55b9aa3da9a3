"""Pieces of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def one_line(value: Any) -> str:
    """On one line, and with nothing in it that would end a table's cell."""
    return " ".join(str(value).split()).replace("|", "\\|")


def code(value: Any) -> str:
    """Between backticks, on one line."""
    return f"`{one_line(value).replace('`', chr(39))}`"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table from the names of its columns and its cells."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
