"""The file of a page: there whole or not at all."""

from __future__ import annotations

from pathlib import Path

from samerge.adapters.atomic import atomic_file
from samerge.adapters.writable import check_file
from samerge.errors import OptionError

ENDINGS = (".html", ".htm")


def check_page(path: str | Path) -> Path:
    """The file in full; refused, before any long work, where it could not be written.

    Raises:
        OptionError: its ending is not that of a page.
        OutputExistsError: there is something else than a file, or its folder cannot be written to.
    """
    if Path(path).suffix.lower() not in ENDINGS:
        raise OptionError(f"writing the report {path}: it is a page of HTML; give a file that ends in .html")
    return check_file(path, overwrite=True)


def write_page(path: str | Path, text: str) -> Path:
    """Write it; a page that is there already is replaced.

    Raises:
        OptionError: the ending is not that of a page.
        OutputExistsError: there is something else than a file, or its folder cannot be written to.
    """
    target = check_page(path)
    with atomic_file(target, overwrite=True) as file:
        file.write_text(text, encoding="utf-8", errors="replace")
    return target
