"""Where the commands print: results to stdout, notes to stderr, JSON alone on stdout when asked for."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import typer

from samerge.cli.shell_words import said

if TYPE_CHECKING:
    from rich.console import Console

#: Columns of tables where stdout is not a terminal, unless COLUMNS says how many.
PIPE_WIDTH = 120


def stdout() -> Console:
    """The console for results."""
    from samerge.report.sinks import console

    found = console(highlight=False)
    return found if found.is_terminal or "COLUMNS" in os.environ else console(highlight=False, width=PIPE_WIDTH)


def stderr() -> Console:
    """The console for notes, warnings and errors; it leaves the folding of long lines to the terminal."""
    from samerge.report.sinks import console

    return console(stderr=True, highlight=False, soft_wrap=True)


def show_json(value: Any) -> None:
    """Print one JSON document on stdout. Numbers that are not finite become null."""
    from samerge.report.sinks import visible_json

    typer.echo(visible_json(json.dumps(_plain(value), indent=2, ensure_ascii=False)))


def show_warnings(warnings: Iterable[str]) -> None:
    """Print the warnings of a merge on stderr."""
    from rich.text import Text

    console = stderr()
    for warning in warnings:
        console.print(Text.assemble(("warning: ", "bold yellow"), said(warning)))


def show_notes(notes: Iterable[str]) -> None:
    """Print what is worth knowing of a merge on stderr, where no table shows it."""
    for note in notes:
        stderr().print(f"note: {said(note)}", markup=False)


def show_ways(load: str | None, url: str | None, look: str | None = None) -> None:
    """Print how to load what was written, how to look into it, and where it was pushed to; nothing of what is None."""
    for title, told in (("Load it:", load), ("Look in:", look), ("Pushed to:", url)):
        if told is not None:
            stdout().print(f"{title:<10} {told}", markup=False, soft_wrap=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
