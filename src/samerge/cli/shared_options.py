"""Options that more than one command has, and how the values of some are read."""

from __future__ import annotations

from typing import Annotated

import typer

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an adapter that is already there.")]
PushToHub = Annotated[str | None, typer.Option(metavar="USER/NAME", help="Push to this repository on the Hub.")]
Private = Annotated[bool, typer.Option("--private", help="Make a new repository on the Hub private.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No table and no progress; warnings and errors still come.")]


def number_or_word(text: str) -> float | str:
    """A number where the text is one, else the text as it is: `merge` says what it may be."""
    try:
        return float(text)
    except ValueError:
        return text
