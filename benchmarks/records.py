"""Files of results: lists of records, of which a newer one replaces that with the same settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def replaced(path: Path, record: dict[str, Any], settings: Sequence[str]) -> list[dict[str, Any]]:
    """The records of a file with this one last, in place of one with the same settings; the file stays as it is."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return [old for old in known if any(old[key] != record[key] for key in settings)] + [record]


def write(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """A line for each."""
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in records) + "\n]\n", encoding="utf-8")
