"""Which adapters and base models lie in the named folders, for the page to offer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from samerge.weights.folder import CONFIG_NAME as BASE_CONFIG
from samerge.weights.hub import CONFIG_NAME, PIPELINE_NAME

#: How deep folders are looked through, how many of them, and how many finds are offered; others can be typed.
_DEPTH, _MOST_FOLDERS, _MOST_OFFERED = 4, 5000, 200

#: What the page shows, and the path.
Offer = tuple[str, str]


def adapters_in(folders: Sequence[Path]) -> list[Offer]:
    """The folders with an adapter's configuration."""
    return _offered(folders, lambda names: CONFIG_NAME in names)


def bases_in(folders: Sequence[Path]) -> list[Offer]:
    """The folders with a model's configuration and weights in safetensors, or a pipeline's index."""
    return _offered(
        folders,
        lambda names: (
            PIPELINE_NAME in names or (BASE_CONFIG in names and any(name.endswith(".safetensors") for name in names))
        ),
    )


def _offered(folders: Sequence[Path], wanted: Callable[[set[str]], bool]) -> list[Offer]:
    found = []
    for folder in folders:
        for place, names in _below(folder):
            if wanted(names):
                shown = place.relative_to(folder).as_posix() if place != folder else folder.name
                found.append((shown if len(folders) == 1 else f"{folder.name}: {shown}", str(place)))
    return found[:_MOST_OFFERED]


def _below(folder: Path) -> Iterator[tuple[Path, set[str]]]:
    """A folder and those in it, each with the names of its files; no links, nothing hidden."""
    left = _MOST_FOLDERS
    for place, inner, files in os.walk(folder):
        depth = len(Path(place).relative_to(folder).parts)
        inner[:] = sorted(name for name in inner if not name.startswith(".")) if depth < _DEPTH else []
        yield Path(place), set(files)
        left -= 1
        if not left:
            return
