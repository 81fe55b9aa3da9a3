"""Tables in the docs, each between two markers, written there by the script that measured what it shows.

`benchmarks/tests/test_tables.py` holds every one of them to what its script makes of its results.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"
RESULTS = Path(__file__).parent / "results"
END = "<!-- end of table -->"


def shown(page: Path, script: str) -> str:
    """The table of a script, as a page has it."""
    return _parts(page, script)[1].strip("\n")


def write(page: Path, script: str, table: str) -> None:
    """Put a table into a page, in place of the one that stands between the script's markers.

    Args:
        page: of the docs.
        script: as its marker names it: its file in this folder, and what of it.
        table: Markdown.
    """
    before, _, after = _parts(page, script)
    page.write_text(f"{before}\n{table}\n{after}", encoding="utf-8")


def _parts(page: Path, script: str) -> tuple[str, str, str]:
    """A page up to the first marker, between the two, and from the second on."""
    begin = f"<!-- table: benchmarks/{script} -->"
    before, rest = page.read_text(encoding="utf-8").split(begin)
    table, after = rest.split(END, 1)
    return before + begin, table, END + after


def rows(header: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    first, *rest = (f"| {' | '.join(line)} |" for line in (header, *cells))
    return "\n".join([first, "|" + "---|" * len(header), *rest])


def origin(found: dict[str, Any]) -> str:
    """Where something was measured, and with what, in a line."""
    return f"{found['machine']}; {', '.join(f'{name} {version}' for name, version in found['versions'].items())}."
