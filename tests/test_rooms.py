"""The table of rooms in docs/architecture.md: it has every file, and what a file imports stands above it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "samerge"
ROWS = [row for row in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines() if row[:3] == "| `"]
PLACES = {
    room: place for place, row in enumerate(ROWS) for room in re.findall(r"`([\w/]+(?:/|\.py))`", row.split(" | ")[0])
}
#: The front doors, which import what they show when it is asked for.
DOORS = ("__init__.py", "__main__.py")
FILES = sorted(
    path for path in (file.relative_to(SOURCE).as_posix() for file in SOURCE.rglob("*.py")) if path not in DOORS
)


def room_of(path: str) -> str | None:
    """The room of a file: its own, or else its folder."""
    return next((room for room in (path, path.split("/")[0] + "/") if room in PLACES), None)


def imported(path: str) -> set[str]:
    """The files of samerge that a file imports when it is imported itself."""
    found = set()
    for node in ast.parse((SOURCE / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "samerge":
            package = SOURCE.joinpath(*(node.module or "").split(".")[1:])
            modules = [package, *(package / alias.name for alias in node.names)]
            files = [file for module in modules for file in (module.with_suffix(".py"), module / "__init__.py")]
            found |= {file.relative_to(SOURCE).as_posix() for file in files if file.is_file()} - set(DOORS)
    return found


def test_every_room_is_there() -> None:
    assert len(PLACES) > 40
    assert [room for room in PLACES if not (SOURCE / room).exists()] == []


@pytest.mark.parametrize("path", FILES)
def test_a_file_stands_in_a_room_and_knows_only_those_above(path: str) -> None:
    room = room_of(path)
    assert room is not None, f"docs/architecture.md has no row for {path}"
    below = [other for other in imported(path) if PLACES[room_of(other) or ""] > PLACES[room]]
    assert below == [], f"docs/architecture.md puts {room} above what {path} imports"


def test_files_named_in_a_room_are_in_it() -> None:
    for row in ROWS:
        rooms, told = row.split(" | ", 1)
        folders = [SOURCE / room for room in re.findall(r"`([\w/]+)/`", rooms)] + [SOURCE]
        for name in re.findall(r"`([\w/*]+\.(?:py|c))`", told):
            assert any(list(folder.glob(name)) for folder in folders), (name, rooms)
